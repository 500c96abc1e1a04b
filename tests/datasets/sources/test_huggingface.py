"""Datasets of Hugging Face: every kind of folder, columns by their types, splits, what is left out, what is refused."""

import io
import json
import pickle
import tracemalloc
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from datasets import ClassLabel, DatasetDict, Features, Image, List, Value
from huggingface_hub.errors import GatedRepoError
from PIL import Image as Picture

from tests.support.logs import log_messages
from transfer_learning.cli.parser import run_main
from transfer_learning.datasets.dataset import FilePart
from transfer_learning.datasets.decoding.decode import content_hash, decode
from transfer_learning.datasets.decoding.pixel_cache import cached_images
from transfer_learning.datasets.sources import folder, huggingface
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.datasets.survey import survey
from transfer_learning.errors import UserError
from transfer_learning.recipes.resolve import resolve_config
from transfer_learning.storage.cache import Cache

NAMES = ["cat", "dog", "axolotl"]  # not in the order of the alphabet


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Nothing is asked of the hub, and nothing is written into the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "huggingface")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def png(seed, side=12):
    stream = io.BytesIO()
    Picture.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def table(num_rows=9, first=0, **columns):
    """Rows of images and labels 0, 1, 2, 0, ...; `columns` adds others as (feature, values), and takes away as None."""
    images = [{"bytes": png(first + row), "path": None} for row in range(num_rows)]
    labels = [row % 3 for row in range(num_rows)]
    all_columns = {"image": (Image(), images), "label": (ClassLabel(names=NAMES), labels)} | columns
    kept = {name: column for name, column in all_columns.items() if column}
    features = Features({name: feature for name, (feature, _) in kept.items()})
    return datasets.Dataset.from_dict({name: values for name, (_, values) in kept.items()}, features)


def read(place, tmp_path):
    return load_dataset(f"hf:{place}", tmp_path / "data")


def images_of(dataset):
    return [content_hash(example.source) for example in dataset.examples]


def expected_images(num_rows=9, first=0):
    return [content_hash(png(first + row)) for row in range(num_rows)]


# --------------------------------------------------------------------------------------------------- kinds of folders


def saved(folder):
    table().save_to_disk(folder)


def saved_in_shards(folder):
    table().save_to_disk(folder, num_shards=4)


def saved_after_a_choice_of_rows(folder):
    table(18).select(range(0, 9)).save_to_disk(folder)


def saved_with_splits(folder):
    DatasetDict({"train": table()}).save_to_disk(folder)


def parquet(folder):
    folder.mkdir()
    table().to_parquet(folder / "data.parquet")


def class_folders(folder):
    for row in range(9):
        path = folder / NAMES[row % 3] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(row))


@pytest.mark.parametrize(
    "write", [saved, saved_in_shards, saved_after_a_choice_of_rows, saved_with_splits, parquet, class_folders]
)
def test_every_kind_of_folder_gives_the_encoded_bytes_and_the_labels(write, tmp_path):
    write(tmp_path / "set")
    dataset = read(tmp_path / "set", tmp_path)
    assert sorted(images_of(dataset)) == sorted(expected_images())
    by_hash = dict(zip(images_of(dataset), (example.label for example in dataset.examples), strict=True))
    assert [by_hash[image] for image in expected_images()] == [NAMES[row % 3] for row in range(9)]
    assert len({example.id for example in dataset.examples}) == 9
    if write is not class_folders:  # whose classes have no numbers of their own
        assert dataset.class_names == tuple(NAMES)
        assert images_of(dataset) == expected_images(), "in the order of the rows"


def test_an_image_in_a_table_is_the_same_as_its_file_to_the_store(tmp_path):
    """So what a run on class folders has decoded, one on a table of the same images finds."""
    class_folders(tmp_path / "files")
    saved(tmp_path / "table")
    cached_images(folder.read(tmp_path / "files"), 8, "squash", Cache(tmp_path / "cache"))
    said = log_messages()
    dataset = read(tmp_path / "table", tmp_path)
    store = cached_images(dataset, 8, "squash", Cache(tmp_path / "cache"))
    assert said == []
    for example, row in zip(dataset.examples, store.rows, strict=True):
        np.testing.assert_array_equal(store.pixels[[row]][0], decode(example.source, 8, "squash").pixels)


@pytest.mark.parametrize("as_jpeg", [False, True])
def test_a_table_is_decoded_by_the_workers(as_jpeg, tmp_path):
    saved(tmp_path / "set")
    dataset, said = read(tmp_path / "set", tmp_path), log_messages()
    limit = {"decoded_gb": 0.0} if as_jpeg else {}
    store = cached_images(dataset, 8, "squash", Cache(tmp_path / "cache"), **limit)
    assert said[-1] == "Decoded 9 images (0 in cache)."
    assert (store.facts["problem"] == "").all() and (store.facts[["width", "height"]] == [16, 12]).all(axis=None)
    assert store.facts["sha256"].tolist() == expected_images()


def test_an_image_that_is_none_is_a_problem_of_its_own(tmp_path):
    rows = [{"bytes": png(0), "path": None}, {"bytes": b"no image", "path": None}, {"bytes": png(2), "path": None}]
    table(3, image=(Image(), rows)).save_to_disk(tmp_path / "set")
    store = cached_images(read(tmp_path / "set", tmp_path), 8, "squash", Cache(tmp_path / "cache"))
    assert store.facts["problem"].str.contains("cannot be decoded").tolist() == [False, True, False]


def test_a_table_that_was_cut_off_gives_no_wrong_image(tmp_path):
    saved(tmp_path / "set")
    dataset = read(tmp_path / "set", tmp_path)
    last = dataset.examples[-1].source
    with open(last.file, "r+b") as file:
        file.truncate(last.offset + last.length - 1)
    assert images_of(dataset) == [*expected_images(8), ""]
    assert "ends before byte" in decode(last, 8, "squash").problem
    last.file.unlink()
    assert images_of(dataset) == [""] * 9


# ------------------------------------------------------------------------------------------------- columns and splits

STRINGS = (Value("string"), ["b", "a", "b"] * 3)
COLUMNS = {
    "classes in the order of their numbers": ({}, "", NAMES),
    "texts": ({"label": STRINGS}, "", ["a", "b"]),
    "large texts": ({"label": (Value("large_string"), STRINGS[1])}, "", ["a", "b"]),
    "numbers, in their order": ({"label": (Value("int64"), [10, 9, 1] * 3)}, "", ["1", "9", "10"]),
    "truth values": ({"label": (Value("bool"), [True, False, True] * 3)}, "", ["False", "True"]),
    "another name": ({"label": None, "fine_label": STRINGS}, "", ["a", "b"]),
    "a ClassLabel of any name before a text called label": (
        {"label": STRINGS, "kind": (ClassLabel(names=NAMES), [0, 1, 2] * 3)},
        "",
        NAMES,
    ),
    "the ClassLabel called label among several": ({"coarse": (ClassLabel(names=["x", "y"]), [0, 1, 0] * 3)}, "", NAMES),
    "the column that is named": (
        {"coarse": (ClassLabel(names=["x", "y"]), [0, 1, 0] * 3)},
        ",label=coarse",
        ["x", "y"],
    ),
    "a text that is named": ({"taken by": STRINGS}, ",label=taken by", ["a", "b"]),
    "the image called image among several": ({"mask": (Image(), [{"bytes": png(0), "path": None}] * 9)}, "", NAMES),
    "other columns beside": ({"boxes": (List(Value("float32")), [[0.0, 1.0]] * 9)}, "", NAMES),
}


@pytest.mark.parametrize(("columns", "option", "class_names"), COLUMNS.values(), ids=COLUMNS)
def test_columns_are_found_by_their_types(columns, option, class_names, tmp_path):
    table(**columns).save_to_disk(tmp_path / "set")
    dataset = read(f"{tmp_path / 'set'}{option}", tmp_path)
    assert list(dataset.class_names) == class_names
    assert images_of(dataset) == expected_images()


TWO_LABELS = {
    "label": None,
    "fine": (ClassLabel(names=NAMES), [0, 1, 2] * 3),
    "coarse": (ClassLabel(names=["x", "y"]), [0, 1, 0] * 3),
}
UNCLEAR = {
    "two labels": (TWO_LABELS, "", ["fine (ClassLabel), coarse (ClassLabel)", "fine or coarse", ",label=fine"]),
    "no label": ({"label": None}, "", ["no label column among image (Image)"]),
    "no likely label": ({"label": None, "taken by": STRINGS}, "", ["taken by may be the label", ",label=taken by"]),
    "no image": ({"image": None}, "", ["no image column among label (ClassLabel)"]),
    "two images": (
        {
            "image": None,
            "left": (Image(), [{"bytes": png(0), "path": None}] * 9),
            "right": (Image(), [{"bytes": png(0), "path": None}] * 9),
        },
        "",
        ["left or right may be the image", ",image=left"],
    ),
    "a label that is no column": (TWO_LABELS, ",label=fien", ["the label column fien", "fine"]),
    "a label that is no label": ({}, ",label=image", ["the label column image", "label of image (Image)"]),
    "an option of another name": ({}, ",lable=label", ["'lable'", "config=, image= or label=", "label"]),
    "an option without a value": ({}, ",label=", ["'label'"]),
}


@pytest.mark.parametrize(("columns", "option", "words"), UNCLEAR.values(), ids=UNCLEAR)
def test_ambiguous_columns_are_named(columns, option, words, tmp_path):
    table(**columns).save_to_disk(tmp_path / "set")
    with pytest.raises(UserError) as caught:
        read(f"{tmp_path / 'set'}{option}", tmp_path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train"], [""]),
        (["test"], [""]),
        (["whatever"], [""]),
        (["train", "test"], ["train", "test"]),
        (["train", "validation"], ["train", "val"]),
        (["test", "train", "valid"], ["test", "train", "val"]),
        (["train", "extra"], ["train", None]),
    ],
)
def test_splits_by_their_names(names, splits, tmp_path):
    tables = {name: table(6, first=10 * number) for number, name in enumerate(names)}
    DatasetDict(tables).save_to_disk(tmp_path / "set")
    dataset = read(tmp_path / "set", tmp_path)
    expected = [split for split in splits for _ in range(6) if split is not None]
    assert [example.split for example in dataset.examples] == expected
    assert all(example.id.startswith(tuple(names)) for example in dataset.examples)
    assert bool(dataset.ignored) == (None in splits)
    if dataset.ignored:
        assert dataset.ignored == (("extra (6 rows)", "a split that is neither train, validation nor test"),)


def test_splits_without_a_train_are_refused(tmp_path):
    DatasetDict({"fold1": table(), "fold2": table()}).save_to_disk(tmp_path / "set")
    with pytest.raises(UserError, match="fold1, fold2"):
        read(tmp_path / "set", tmp_path)


def test_rows_without_image_or_label_and_classes_without_image_are_counted(tmp_path):
    images = [{"bytes": png(row), "path": None} for row in range(6)]
    train = table(6, image=(Image(), [*images[:5], None]), label=(ClassLabel(names=NAMES), [0, 1, None, 0, 1, 1]))
    test = table(3, label=(ClassLabel(names=NAMES), [-1, -1, -1]))
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "set")
    dataset = read(tmp_path / "set", tmp_path)
    assert [example.id for example in dataset.examples] == [f"train/{row:07d}" for row in (0, 1, 3, 4)]
    assert dataset.class_names == ("cat", "dog")
    assert dataset.ignored == (
        ("train/0000002", "a row without a label"),
        ("train/0000005", "a row without an image"),
        *((f"test/{row:07d}", "a row without a label") for row in range(3)),
        ("axolotl", "a class without an image"),
    )


# ---------------------------------------------------------------------------------------------------- memory, choices


def test_images_are_in_memory_one_by_one(tmp_path):
    """Places of 60 images of 100 KB take a few KB, are handed to another process by name, and read one at a time."""
    rng = np.random.default_rng(0)
    images = [{"bytes": rng.bytes(100_000), "path": None} for _ in range(60)]
    table(60, image=(Image(), images)).save_to_disk(tmp_path / "set")
    del images
    read(tmp_path / "set", tmp_path)  # imports
    tracemalloc.start()
    before = pyarrow.total_allocated_bytes()
    dataset = read(tmp_path / "set", tmp_path)
    assert pyarrow.total_allocated_bytes() - before < 100_000
    assert tracemalloc.get_traced_memory()[1] < 1_000_000 < 60 * 100_000
    tracemalloc.reset_peak()
    hashes = [content_hash(example.source) for example in dataset.examples]
    assert tracemalloc.get_traced_memory()[1] < 1_000_000 and len(set(hashes)) == 60
    tracemalloc.stop()
    assert all(isinstance(example.source, FilePart) for example in dataset.examples)
    assert len(pickle.dumps(dataset)) < 60 * 300
    assert content_hash(pickle.loads(pickle.dumps(dataset)).examples[7].source) == hashes[7]


def test_the_rule_for_ones_own_images_chooses_without_reading_them_all(tmp_path, monkeypatch, capsys):
    table(450).save_to_disk(tmp_path / "set")
    num_read, original = [], FilePart.read_bytes
    monkeypatch.setattr(FilePart, "read_bytes", lambda part: num_read.append(part) or original(part))
    assert survey(read(tmp_path / "set", tmp_path)) == (450, 3, 150, 150, 12)
    assert len(num_read) <= 200
    from transfer_learning import run

    monkeypatch.chdir(tmp_path)
    for place in ("set", "set,label=label"):
        config, reasons = resolve_config(run.parse(["--dataset", f"hf:{place}", "--data-dir", str(tmp_path / "data")]))
        assert config.dataset == f"hf:{tmp_path / place}", "a relative path would bind --resume to this folder"
        assert (config.image_size, config.input_size) == (96, 12) and len(reasons) >= 5


# --------------------------------------------------------------------------------------------------------- out of reach


def gated():
    return datasets.exceptions.DatasetNotFoundError(
        "Dataset 'someone/set' is a gated dataset on the Hub. You must be authenticated to access it."
    )


def gated_later():
    """As it comes from the download of a file, after the page was open to all."""
    answer = SimpleNamespace(headers={}, request=None, status_code=403)
    return GatedRepoError("Access to this dataset is restricted", response=answer)


def damaged():
    error = datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset")
    error.__cause__ = ValueError("Invalid string class label")
    return error


PROBLEMS = {
    "gated": (gated, ["is gated: accept its terms on https://huggingface.co/datasets/someone/set", "`hf auth login`"]),
    "gated, noticed later": (gated_later, ["is gated: accept its terms", "`hf auth login`"]),
    "missing or private": (
        lambda: datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub or cannot be accessed."),
        ["There is no folder someone/set", "or it is private", "log in with `hf auth login`"],
    ),
    "no network": (
        lambda: ConnectionError("Couldn't reach 'x' on the Hub (ConnectError)"),
        ["huggingface.co cannot be reached", "load_dataset('someone/set').save_to_disk(FOLDER)"],
    ),
    "a script": (
        lambda: RuntimeError("Dataset scripts are no longer supported, but found x.py"),
        ["foreign code is not run"],
    ),
    "configurations": (
        lambda: ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']"),
        ["several configurations", "['a', 'b']", "hf:someone/set,config=NAME"],
    ),
    "no data files": (
        lambda: datasets.exceptions.DataFilesNotFoundError("No (supported) data files found"),
        ["data files"],
    ),
    "damaged": (
        damaged,
        ["cannot be read (An error occurred while generating the dataset: Invalid string class label)"],
    ),
    "anything else": (lambda: pyarrow.ArrowInvalid("Not an Arrow file"), ["cannot be read (Not an Arrow file)"]),
}


@pytest.mark.parametrize(("problem", "words"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_is_out_of_reach_is_one_sentence(problem, words, tmp_path, monkeypatch, refused):
    from transfer_learning import run

    def load(name, config, keep_in_memory):
        assert (name, config) == ("someone/set", None)
        raise problem()

    monkeypatch.setattr(datasets, "load_dataset", load)
    line = refused(run.main, "--dataset", "hf:someone/set")
    assert all(word in line for word in words), line


def test_without_a_network_the_library_says_so_and_we_do(tmp_path, capsys):
    """Nothing is simulated here but the switch that turns the hub off."""
    with pytest.raises(UserError, match="huggingface.co cannot be reached"):
        read("someone/set", tmp_path)


def test_a_configuration_is_handed_on(tmp_path, monkeypatch):
    asked = []

    def load(name, config, keep_in_memory):
        asked.append((name, config))
        return table()

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface, "_rows", lambda *arguments: iter(()))
    with pytest.raises(UserError, match="has no images"):
        read("someone/set,config=large", tmp_path)
    assert asked == [("someone/set", "large")]


@pytest.mark.parametrize("path", ["https://example.org/1.png", "zip://1.png::/somewhere/images.zip"])
def test_links_in_place_of_images_are_refused(path, tmp_path):
    rows = table(3, image=(Image(), [{"bytes": None, "path": path}] * 3))
    (tmp_path / "set").mkdir()
    pyarrow.parquet.write_table(
        rows.data.table, tmp_path / "set" / "data.parquet"
    )  # as it is, without fetching the images
    with pytest.raises(UserError, match="has links instead of images"):
        read(tmp_path / "set", tmp_path)


@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize("path", ["{}/private/0.png", "{}/set/../private/0.png", "private/0.png"])
def test_a_table_that_asks_for_other_files_of_the_user_is_refused(path, is_saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("private", "set"):
        (tmp_path / name).mkdir()
    (tmp_path / "private" / "0.png").write_bytes(png(0))
    rows = table(3, image=(Image(), [{"bytes": None, "path": path.format(tmp_path)}] * 3))
    if is_saved:
        rows.save_to_disk(tmp_path / "set")  # puts the images into the table, where a stranger would leave them
        (arrow,) = (tmp_path / "set").glob("*.arrow")
        with pyarrow.ipc.new_stream(arrow, rows.data.schema) as stream:
            stream.write_table(rows.data.table)
    else:
        pyarrow.parquet.write_table(rows.data.table, tmp_path / "set" / "data.parquet")
    with pytest.raises(UserError, match=r"asks for the file .*private/0.png, which is outside of it"):
        read(tmp_path / "set", tmp_path)


def test_images_that_are_files_are_read_as_files(tmp_path):
    class_folders(tmp_path / "set")
    (tmp_path / "link").symlink_to("set")
    for name in ("set", "link"):
        contents = {example.source for example in read(tmp_path / name, tmp_path).examples}
        assert contents == set((tmp_path / "set").rglob("*.png"))


# ---------------------------------------------------------------------------------------------------------- a whole run


@pytest.mark.long
def test_a_run_goes_from_rows_to_a_report(tmp_path, weights_file):
    """With the rule for one's own images, and flags that make it small."""
    from transfer_learning import evaluate, run

    stripes = [{"bytes": striped(row), "path": None} for row in range(60)]
    rows = table(60, image=(Image(), stripes))
    test = table(12, image=(Image(), stripes[:12]), label=(ClassLabel(names=NAMES), [-1] * 12))
    DatasetDict({"train": rows, "test": test}).save_to_disk(tmp_path / "set")
    run_dir = tmp_path / "run"
    arguments = [
        *("--dataset", f"hf:{tmp_path / 'set'}", "--weights", str(weights_file)),
        *"--backbone small_cnn --image-size 16 --input-size 0".split(),
        *"--frozen.epochs 1 --fine-tune.epochs 1 --fine-tune.unfreeze block4".split(),
        *("--cache-dir", str(tmp_path / "cache"), "--run-dir", str(run_dir)),
    ]
    assert run_main(run.main, arguments) == 0
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert evaluation["class_names"] == NAMES and evaluation["split"] == "test"
    assert (run_dir / "ignored.csv").read_text().count("a row without a label") == 12
    assert (run_dir / "report.html").exists()
    assert run_main(evaluate.main, [str(run_dir)]) == 0  # val images are in the head, too


def striped(row):
    """A picture that shows its class."""
    pixels = np.random.default_rng(row).integers(0, 120, (16, 16, 3), np.uint8)
    pixels[row % 3 * 5 : row % 3 * 5 + 5] += 100
    stream = io.BytesIO()
    Picture.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
