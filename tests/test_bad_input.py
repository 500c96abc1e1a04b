"""What a user can do wrong: one line with what was given and what to do, exit code 2, nothing lost."""

import dataclasses
import errno
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.support.logs import log_messages
from tests.support.photos import draw_photos
from transfer_learning import run
from transfer_learning.cli.parser import run_main
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.datasets.sources import table
from transfer_learning.errors import UserError
from transfer_learning.experiments import train
from transfer_learning.recipes.resolve import resolve_config
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.run_directory import RunDir


@pytest.fixture
def refused(here, refused):
    """Calls `run` with flags that it has to refuse, and returns the one line that it says."""

    def refuse(*arguments):
        line = refused(run.main, *arguments)
        assert not (here / "runs").exists() or not list((here / "runs").iterdir()), "an empty run directory is left"
        return line

    return refuse


def add_damaged(folder):
    damaged = folder / "cross" / "damaged.png"
    damaged.write_bytes((folder / "cross" / "000.png").read_bytes()[:60])
    return damaged


def no_folder_at_all(folder):
    pass


def empty_folder(folder):
    folder.mkdir()


def only_texts(folder):
    (folder / "cats").mkdir(parents=True)
    (folder / "cats" / "list.txt").write_text("1.jpg")


def images_beside_class_folders(folder):
    draw_photos(folder)
    Image.new("RGB", (8, 8)).save(folder / "stray.png")


def one_class(folder):
    draw_photos(folder, classes=("circle",))


def class_without_image(folder):
    draw_photos(folder, classes=("circle",))
    (folder / "birds").mkdir()
    (folder / "birds" / "1.jp2").write_bytes(b"x")


def splits_beside_others(folder):
    for split in ("train", "test", "unsorted"):
        draw_photos(folder / split, num_per_class=1)


def unreadable_image(folder):
    draw_photos(folder)
    add_damaged(folder)


def class_of_unreadable_images(folder):
    draw_photos(folder, num_per_class=4)
    (folder / "damaged").mkdir()
    for name in "abc":
        (folder / "damaged" / f"{name}.png").write_bytes(name.encode())


def name_that_is_no_text(folder):
    draw_photos(folder)
    (folder / "circle" / "000.png").rename(folder / "circle" / "gr\udcfcn.png")


@pytest.mark.parametrize(
    ("make", "flags", "words"),
    [
        (no_folder_at_all, [], ["photos", "not a known dataset", "Known:", "drawn_pills", "path,label"]),
        (empty_folder, [], ["photos", "has no images", "cats/1.jpg"]),
        (only_texts, [], ["photos", "has no images"]),
        (images_beside_class_folders, [], ["stray.png", "beside the class folders", "move it"]),
        (one_class, [], ["only one class", "circle", "add the images of another class"]),
        (class_without_image, [], ["only one class", "circle", "add the images of another class"]),
        (splits_beside_others, [], ["unsorted", "splits", "move"]),
        (unreadable_image, [], ["1 of 43 images", "damaged.png", "--skip-unreadable"]),
        (class_of_unreadable_images, ["--skip-unreadable"], ["The class damaged", "3 skipped", "add training images"]),
        (name_that_is_no_text, [], ["UTF-8", "\\udcfc", "rename it"]),
    ],
)
def test_a_folder_that_cannot_be_trained_on(make, flags, words, refused, here):
    make(here / "photos")
    line = refused("--dataset", "photos", "--image-size", "32", "--cache-dir", here / "cache", *flags)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--dataset is missing", "drawn_pills", "--resume"]),
        (["--dataset", "digit"], ["digit", "Did you mean digits?"]),
        (["--dataset", "digits", "--backbone", "resnet5"], ["resnet5", "Did you mean resnet50"]),
        (["--dataset", "no/such/folder", "--backbone", "resnet5"], ["resnet5"]),  # before a look at the data
        (["--dataset", "no/such/folder", "--preset", "bets"], ["--preset bets", "Did you mean best?"]),
        (["--dataset", "digits", "--optimiser", "adam"], ["--optimiser", "--help"]),
        (["--dataset", "digits", "--time-limit", "20"], ["--time-limit 20", "with a unit", "20m"]),
        (
            ["--dataset", "digits", "--time-limit", "0.01s"],
            ["--time-limit 0.01s is too short", "decoding 1,797 images"],
        ),
        (["--dataset", "digits", "--batch-size", "x"], ["--batch-size", "'x'", "--help"]),
        (
            ["--dataset", "digits", "--gradient-accumulation-steps", "3"],
            ["--gradient-accumulation-steps 3", "--batch-size 32", "divisor"],
        ),
        (["--dataset", "digits", "--weights", "none"], ["--weights none", "--frozen.epochs 0"]),
        (["--dataset", "digits", "--frozen.epochs", "0", "--fine-tune.epochs", "0"], ["Both phases have 0 epochs"]),
        (["--dataset", "digits", "--fine-tune.unfreeze", "conv5"], ["conv5", "efficientnet_lite0", "stage5", "0.3"]),
        (["--dataset", "digits", "--fine-tune.unfreeze", "1.5"], ["1.5", "efficientnet_lite0", "stage5", "0.3"]),
        (["--dataset", "digits", "--unseen-classes", "1,x"], ["--unseen-classes 1,x", "no class x", "Known: 0, 1"]),
        (
            ["--dataset", "digits", "--unseen-classes", "0,1,2,3,4,5,6,7,8"],
            ["leaves 1 of the 10 classes", "name fewer"],
        ),
        (["--resume", "no/such/run"], ["no/such/run", "no run directory"]),
        (["--resume", "x", "--run-dir", "y"], ["--resume already names", "--run-dir"]),
    ],
)
def test_a_flag_that_is_wrong(arguments, words, refused):
    line = refused(*arguments)
    assert all(word in line for word in words), line


def test_a_stage_that_the_backbone_lacks_becomes_a_fraction_of_its_layers(capsys):
    flags = run.parse(["--dataset", "pharma", "--backbone", "efficientnet_lite0"])
    config, reasons = resolve_config(flags)
    assert config.fine_tune.unfreeze == "0.3"
    assert len(reasons) == 1 and "conv5" in reasons[0] and "efficientnet_lite0" in reasons[0]
    assert capsys.readouterr().out == reasons[0] + "\n"


def test_a_choice_that_a_flag_makes_is_not_given_another_reason(photos):
    config, reasons = resolve_config(run.parse(["--dataset", str(photos), "--backbone", "small_cnn"]))
    assert config.backbone == "small_cnn"
    assert not [reason for reason in reasons if "efficientnet" in reason]
    assert [reason for reason in reasons if "Batch size" in reason]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["(none)", "path,label"]),
        ("file;class\nnowhere/to.png;circle\n", ["None of the paths", "'nowhere/to.png'"]),
        ("a:b\na.png:circle\n", ["a:b", "path,label", "separated by"]),
        ("path,label\n,circle\n", ["line 2", "a path in every row"]),
        ("path,label\na.png,circle\n\nb.png,\n", ["line 4", "a label in every row"]),
        ("path,label\na.png\n", ["line 2", "a label in every row"]),
        ("path,label\na.png,circle\na.png,cross\n", ["line 3", "'a.png'", "every path once"]),
        ("path,label,split\na.png,circle,later\n", ["line 2", "'later'", "train, val, test"]),
        ("path,label\na.png,circle,extra\n", ["line 2", "['extra']", "path,label"]),
        ("path,label\n", ["has no images"]),
        ("\x00\x00", ["table.csv"]),
    ],
)
def test_a_table_that_cannot_be_trained_on(text, words, refused, here):
    (here / "table.csv").write_text(text)
    line = refused("--dataset", "table.csv")
    assert all(word in line for word in words), line


def test_an_image_is_no_table(here):
    Image.new("RGB", (8, 8)).save(here / "photo.png")
    with pytest.raises(UserError, match="cannot be read as a table"):
        table.read(here / "photo.png")


def test_skipping_goes_on_and_counts_what_cannot_be_read(small_config, here):
    damaged = add_damaged(draw_photos(here / "photos"))
    config = dataclasses.replace(small_config, dataset=str(here / "photos"), skip_unreadable=True)
    messages = log_messages()
    data = load_prepared(config)
    assert "42 images" not in data.describe() and "1 skipped" in data.describe()
    assert [
        sentence
        for sentence in messages
        if sentence.startswith("1 of 43 images cannot be read") and str(damaged) in sentence
    ]
    row = data.manifest[data.manifest["file"] == str(damaged)].iloc[0]
    assert row["split"] == "" and row["problem"]
    assert sum(len(data.split(split)) for split in ("train", "val", "test")) == 42


@pytest.fixture
def small(small_config):
    """The photos and a network that is built in a moment."""
    return [
        *("--dataset", small_config.dataset, "--cache-dir", small_config.cache_dir, "--image-size", "32"),
        *("--backbone", small_config.backbone, "--weights", small_config.weights),
    ]


def test_a_monitored_val_metric_needs_validation_images(refused, small):
    line = refused(*small, *"--val-fraction 0 --monitor val_loss".split())
    assert "needs validation images" in line and "--val-fraction" in line


def test_an_evaluation_split_is_needed(refused, small):
    line = refused(*small, *"--val-fraction 0 --test-fraction 0 --frozen.patience 0 --monitor loss".split())
    assert "neither validation nor test images" in line and "--test-fraction" in line


def test_views_need_something_frozen_below(refused, small):
    flags = "--fine-tune.epochs 1 --fine-tune.unfreeze all --fine-tune.augmentation light --fine-tune.copies 4"
    line = refused(*small, *flags.split())
    assert "--fine-tune.copies 4" in line and "--fine-tune.unfreeze all" in line and "name a stage" in line


@pytest.mark.parametrize(
    ("flags", "from_ridge"),
    [
        ([], True),
        (["--head", "16"], False),
        (["--head-init", "random"], False),
        (["--frozen.augmentation", "light"], False),
    ],
)
def test_a_head_that_starts_at_random_gets_the_epochs_that_it_needs(flags, from_ridge, photos):
    config, reasons = resolve_config(run.parse(["--dataset", str(photos), *flags]))
    assert any("ridge regression" in reason for reason in reasons) == from_ridge
    assert any("random weights" in reason for reason in reasons) != from_ridge
    assert (
        config.frozen.learning_rate == (3e-4 if from_ridge else 1e-3) and config.starts_from_closed_form == from_ridge
    )


@pytest.fixture
def begun(small_config, tmp_path):
    """The directory of a run that was begun, with its config alone."""
    path = tmp_path / "begun"
    path.mkdir()
    (path / "config.json").write_text(small_config.to_json())
    return path


def test_resume_with_another_config_names_the_fields_that_differ(begun, refused):
    line = refused("--resume", begun, "--seed", "5", "--fine-tune.epochs", "9", "--batch-size", "8", "--csv-log")
    assert "seed is 0, not 5" in line and "fine_tune.epochs is 2, not 9" in line and "leave the flags out" in line
    assert "batch_size" not in line and "csv_log" not in line, "what is alike, or free, is not named"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"seed": 1}'])
def test_resume_with_a_damaged_config_says_so(content, begun, refused):
    (begun / "config.json").write_bytes(content)
    line = refused("--resume", begun)
    assert "config.json" in line and ("start a new run" in line or "give a directory that `run` made" in line)


def test_a_directory_that_holds_something_is_refused(begun, refused, here):
    assert f"--resume {begun}" in refused("--dataset", "digits", "--run-dir", begun)
    (begun / "report.html").touch()
    assert "finished run" in refused("--dataset", "digits", "--run-dir", begun)
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").touch()
    assert "holds other files" in refused("--dataset", "digits", "--run-dir", "mine")
    assert (here / "mine" / "thesis.tex").exists()


def test_a_finished_run_needs_no_resume(begun, capsys):
    (begun / "report.html").touch()
    assert run_main(run.main, ["--resume", str(begun)]) == 0
    assert "is finished" in capsys.readouterr().out


def test_pharma_out_of_reach_says_where_to_put_it_and_what_works_without(refused, monkeypatch):
    import kagglehub

    def unreachable(name):
        raise ConnectionError(f"no route to Kaggle for {name}\nsecond line\nthird line")

    monkeypatch.setattr(kagglehub, "dataset_download", unreachable)
    # The weights of resnet50, which the recipe wants, are not looked for before the images are there.
    line = refused("--dataset", "pharma", "--data-dir", "my data")
    for words in ("my data/pharma", "no route to Kaggle", "kaggle.com/datasets/", "--dataset drawn_pills"):
        assert words in line


def test_fashion_mnist_that_cannot_be_downloaded_says_where_to_put_it(refused, monkeypatch, here):
    from transfer_learning.datasets.sources import fashion_mnist

    for name in ("DEBIAN_FOLDER", "KERAS_FOLDER"):
        monkeypatch.setattr(fashion_mnist, name, here / "no such")
    monkeypatch.setattr(fashion_mnist, "URL", (here / "no such").as_uri())
    line = refused("--dataset", "fashion_mnist", "--data-dir", "my data")
    for words in ("my data/fashion_mnist", "No such file", "dataset-fashion-mnist", "--dataset digits"):
        assert words in line


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_where_neither_disk_nor_memory_has_room_it_says_how_much_is_needed_and_where(
    number, refused, monkeypatch, photos, here
):
    def fail(*arguments):
        raise OSError(number, "It cannot be")

    monkeypatch.setattr(ArrayCache, "_add_on_disk", fail)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    line = refused("--dataset", photos, "--image-size", "32", "--cache-dir", here / "cache")
    for words in ("need 1 MB in", str(here / "cache"), "It cannot be", "--cache-dir"):
        assert words in line


@pytest.fixture(scope="module")
def with_cache(small_config, tmp_path_factory):
    return train.run_experiment(small_config, RunDir(tmp_path_factory.mktemp("runs") / "cached"))


def test_a_disk_that_refuses_the_cache_alone_does_not_end_the_run(monkeypatch, small_config, with_cache, here):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "It cannot be")

    monkeypatch.setattr(ArrayCache, "_add_on_disk", fail)
    config = dataclasses.replace(small_config, cache_dir=str(here / "cache"))
    messages = log_messages()
    evaluation = train.run_experiment(config, RunDir(here / "in memory"))
    output = "\n".join(messages)
    assert evaluation["weights_sha256"] == with_cache["weights_sha256"]
    assert (
        output.count("It cannot be") == 2 and output.count("holds this data in memory instead") == 2
    )  # pixels, features


def test_a_cache_that_is_a_file_is_named(refused, photos, here):
    (here / "cache").write_text("x")
    assert str(here / "cache") in refused("--dataset", photos, "--image-size", "32", "--cache-dir", here / "cache")


def test_a_disk_that_is_full_later_loses_nothing_and_says_how_to_go_on(monkeypatch, begun, refused):
    before = (begun / "config.json").read_bytes()

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(begun / "model.keras"))

    monkeypatch.setattr(train, "run_experiment", full)
    line = refused("--resume", begun)
    assert "disk is full" in line and "model.keras" in line and "--resume" in line
    assert (begun / "config.json").read_bytes() == before


def test_a_run_that_another_process_holds(begun, refused, monkeypatch):
    import fcntl

    with open(begun / ".lock", "w") as lock:  # a lock belongs to what opened the file, so this is as good as a process
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(train, "write_environment", lambda *arguments: pytest.fail("it went on"))
        assert "another process" in refused("--resume", begun)
