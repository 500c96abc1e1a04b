"""`prepare`: every file is reported, `run` finds everything cached, and nothing is written among the images."""

import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.support import ROOT
from tests.support.odd_photos import drawing, make_odd_photos
from tests.support.photos import draw_photos
from transfer_learning import prepare, run
from transfer_learning.cli.parser import run_main
from transfer_learning.config import difference
from transfer_learning.datasets.corrections import COLUMNS
from transfer_learning.datasets.decoding.workers import DecodeWorkers
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.recipes.resolve import resolve_config
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.cache_index import FEATURES, EntrySpec


@pytest.fixture
def prepared(here, capsys):
    """Calls the command with a cache of its own; returns exit code, output and errors."""

    def call(*arguments):
        capsys.readouterr()
        code = run_main(prepare.main, ["--cache-dir", "cache", *map(str, arguments)])
        return int(code), *capsys.readouterr()

    return call


def cells(output):
    """The rows of the table, by their first cell."""
    lines = [line for line in output.split("\n\n")[1].splitlines() if not line.startswith("Unseen classes")]
    assert len(set(map(len, lines))) == 1, "not aligned"
    rows = [re.split(r" {2,}", line) for line in lines]
    assert rows[0] == ["class", "train", "val", "test", "skipped", "images"]
    return {name: [int(number.replace(",", "")) for number in row] for name, *row in rows[1:]}


def files_of(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (folder, *folder.rglob("*"))}


def test_it_counts_every_image_and_every_file_and_writes_nothing_beside_them(prepared, here):
    photos = draw_photos(here / "photos", classes=("all", "circle", "a long name"))
    (photos / "list.txt").write_text("x")
    (photos / "more.txt").write_text("x")
    (photos / ".hidden").write_text("x")
    before = files_of(photos)
    code, output, errors = prepared("--dataset", photos)
    assert (code, errors) == (0, "") and files_of(photos) == before
    table = cells(output)
    assert list(table) == ["a long name", "all", "circle", "(all)"]
    data = load_prepared(resolve_config(run.parse(["--dataset", str(photos), "--cache-dir", "cache"]))[0])
    for name, (*splits, skipped, total) in table.items():
        rows = data.manifest[data.manifest["label"] == name] if name != "(all)" else data.manifest
        assert splits == [(rows["split"] == split).sum() for split in ("train", "val", "test")]
        assert skipped == 0 and total == sum(splits) == len(rows)
    assert "Ignored 3 other files:\n  2 not named like an image (.txt)\n  1 hidden" in output
    assert "Skipped" not in output
    pixels = here / "cache" / "pixels"
    (pool,) = pixels.iterdir()
    cached = f"pixels \\(size 16, resize squash, format pixels\\) in cache/pixels/{pool.name}"
    assert re.search(rf"Prepared in \d+\.\d s \([\d,]+ images/s\); {cached}\.\n", output)
    assert {path.name for path in here.iterdir()} == {"photos", "cache", "runs"}
    (audited,) = (here / "runs").iterdir()
    assert re.fullmatch(r"audit-photos-\d{8}-\d{6}", audited.name)
    assert {path.name for path in audited.iterdir()} == {"audit.html", "audit.csv", "corrections.csv"}
    assert "45 files on disk = 42 used + 0 skipped + 3 ignored\n" in output


@pytest.mark.parametrize(
    "flags",
    [
        [],  # a small picture: its own size, and no flag says so
        ["--image-size", "24"],
        ["--input-size", "12", "--resize", "crop", "--val-fraction", "0.3", "--test-fraction", "0"],
        ["--decoded-gb", "0", "--backbone", "small_cnn"],
    ],
)
def test_what_run_would_choose_is_prepared_so_that_it_decodes_nothing(flags, prepared, photos, monkeypatch):
    code, output, _ = prepared("--dataset", photos, *flags)
    program, _, flags = output.splitlines()[-1].removeprefix("Train with: ").partition(" run ")
    assert code == 0 and program in ("transfer-learning", f"{sys.executable} -m transfer_learning")
    monkeypatch.setattr(DecodeWorkers, "decode", lambda *arguments: pytest.fail("an image is decoded again"))
    config, _ = resolve_config(run.parse(shlex.split(flags)))
    data = load_prepared(config)
    assert (data.images.rows >= 0).all() and len(data.manifest) == 42
    splits = cells(output)["(all)"][:3]
    assert splits == [len(data.manifest[data.manifest["split"] == split]) for split in ("train", "val", "test")]


@pytest.mark.parametrize("num_broken", [1, 23])
def test_unreadable_images_are_all_printed_and_then_refused_as_run_would(num_broken, prepared, here):
    photos = draw_photos(here / "photos")
    broken = [photos / "cross" / f"broken {number:02d}.png" for number in range(num_broken)]
    for path in broken:
        path.write_bytes(b"no image")
    code, output, errors = prepared("--dataset", photos)
    assert code == 2 and errors.startswith(f"error: {num_broken} of {42 + num_broken} images cannot be read")
    assert "--skip-unreadable" in errors and "Train with" not in output
    named = [line for line in output.splitlines() if line.startswith(f"  {photos / 'cross' / 'broken'}")]
    assert len(named) == min(num_broken, 20) and all("cannot be decoded" in line for line in named)
    assert ("  and 3 more" in output.splitlines()) == (num_broken == 23)
    assert cells(output)["cross"][3:] == [num_broken, 14 + num_broken]
    code, output, errors = prepared("--dataset", photos, "--skip-unreadable")
    assert (code, errors) == (0, "") and "--skip-unreadable" in output.splitlines()[-1]


def test_names_give_the_terminal_no_orders(prepared, here):
    photos = draw_photos(here / "photos", classes=("cross", "ring\x1b[2J"))
    (photos / "cross" / "\x1b]0;owned\x07.png").write_bytes(b"no image")
    (photos / "cross" / "note.\x1b[31m").write_bytes(b"no image")
    code, output, errors = prepared("--dataset", photos, "--skip-unreadable")
    assert (code, errors) == (0, "")
    assert [line for line in output.split("\n") if not line.isprintable()] == []
    assert r"ring\x1b[2J" in cells(output) and r"/cross/\x1b]0;owned\x07.png: cannot be decoded" in output


@pytest.mark.parametrize("dataset", [".", "../photos"])
def test_nothing_comes_to_lie_among_the_images(dataset, here, monkeypatch, refused):
    photos = draw_photos(here / "photos", num_per_class=4)
    monkeypatch.chdir(photos)
    before = files_of(photos)
    for command in (prepare, run):
        assert "--cache-dir data/cache is inside the image folder" in refused(command.main, "--dataset", dataset)
    assert files_of(photos) == before


def test_an_image_that_is_skipped_for_another_reason_is_printed_and_not_refused(prepared, here):
    for seed, split in enumerate(("train", "test")):
        draw_photos(here / "photos" / split, num_per_class=4, seed=seed)
    train, test = (here / "photos" / split / "cross" / "000.png" for split in ("train", "test"))
    test.write_bytes(train.read_bytes())
    code, output, errors = prepared("--dataset", "photos")
    assert (code, errors) == (0, "") and f"  {train}: the same file is in the split test" in output
    assert cells(output)["cross"][3] == 1


def test_a_dataset_of_arrays_is_prepared_under_its_name(prepared, here, monkeypatch):
    from sklearn import datasets

    whole = datasets.load_digits()
    few = type(whole)(images=whole.images[:150], target=whole.target[:150])
    monkeypatch.setattr(datasets, "load_digits", lambda: few)
    code, output, _ = prepared("--dataset", "digits")
    assert code == 0 and cells(output)["(all)"][4] == 150 and "pixels (size 8, " in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--dataset is missing"]),
        (["--dataset", "digit"], ["Did you mean digits?"]),
        (["--dataset", "digits", "--resume", "x"], ["--resume", "prepare --help"]),
        (["--dataset", "digits", "--image-size", "4"], ["--image-size 4"]),
    ],
)
def test_what_it_cannot_prepare_is_one_sentence(arguments, words, prepared):
    code, _, errors = prepared(*arguments)
    assert code == 2 and errors.count("\n") == 1 and all(word in errors for word in words)


def test_it_needs_no_tensorflow(photos, tmp_path):
    code = "import sys; from transfer_learning import prepare; prepare.main(sys.argv[1:]); print('tensorflow' in sys.modules)"
    arguments = ["--dataset", photos, "--cache-dir", tmp_path / "cache", "--out", tmp_path / "audit"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False" and done.stderr == ""


def test_unseen_classes_are_counted_and_named(prepared, photos, here):
    flags = ["--unseen-classes", "stripes", "--val-fraction", "0"]
    code, output, errors = prepared("--dataset", photos, *flags, "--out", "seen")
    assert (code, errors) == (0, "") and "\nUnseen classes: stripes (14 images).\n" in output
    assert list(cells(output)) == ["circle", "cross", "(all)"] and cells(output)["(all)"][-1] == 28
    assert "42 files on disk = 42 used + 0 skipped + 0 ignored\n" in output and "--unseen-classes stripes" in output
    assert "stripes (14 images)." in Path("seen/audit.html").read_text()


def test_a_class_table_has_a_row_for_each_of_many_classes(prepared, here):
    for number in range(30):
        folder = here / "many" / f"{number:02d}"
        folder.mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (8, 8), (number, index, 0)).save(folder / f"{index}.png")
    code, output, _ = prepared("--dataset", "many")
    table = cells(output)
    assert len(table) == 31 and all(table[f"{number:02d}"][3:] == [0, 3] for number in range(30))
    assert all(table[f"{number:02d}"][0] and table[f"{number:02d}"][2] for number in range(30)), "train and test images"
    assert code == 0 and "Train with" in output
    assert (here / "runs").is_dir()


def rows_of(path):
    return pd.read_csv(path, dtype=str, na_filter=False, encoding_errors="surrogateescape")


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("odd_folder")
    return make_odd_photos(place / "photos"), (place / "photos").resolve()


def test_the_audit_is_a_page_and_a_table_of_every_file(odd_folder, prepared, here):
    expected, photos = odd_folder
    code, output, errors = prepared(
        photos, "--skip-unreadable", "--image-size", "48", "--resize", "crop", "--out", "seen"
    )
    assert (code, errors) == (0, "")
    table = rows_of("seen/audit.csv")
    parts = table["what"].value_counts()
    named = " + ".join(f"{parts[what]} {what}" for what in ("used", "skipped", "ignored"))
    assert f"{len(table)} files on disk = {named}\n" in output and parts.sum() == len(table)
    found = dict(zip(table["id"], table["findings"].str.split("; "), strict=True))
    assert all(kind in found[id] for id, kind in expected.items() if kind)
    for kind, count in Counter(kind for kinds in found.values() for kind in kinds if kind).items():
        assert re.search(rf"^ *{count} +{re.escape(kind)} ", output, re.MULTILINE), "one line per kind, with its count"
    assert len(output.split("\n\n")[-1].splitlines()) < 40
    assert "--resize crop discards 25.0% of the pixels of the median image, and 96.7% of the worst" in output
    page = Path("seen/audit.html").read_text()
    assert f"{len(table)} files on disk = {named}." in page and "96.7% discarded" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "it needs no other file"
    assert page.count('src="data:image/') > 24 and "shown on white" in page and "phone 0.jp2" in page


def test_corrections_are_taken_by_the_next_run_and_carried_over_by_the_next_audit(odd_folder, prepared, here):
    _, photos = odd_folder
    flags = [photos, "--skip-unreadable", "--image-size", "32"]
    code, output, _ = prepared(*flags, "--out", "first")
    table = rows_of("first/corrections.csv")
    assert code == 0 and tuple(table.columns) == COLUMNS and set(table["action"]) == {"keep"}
    assert f"{len(table)} images to review: edit first/corrections.csv" in output
    assert "--corrections first/corrections.csv" in Path("first/audit.html").read_text()
    assert set(table["id"]) == {
        "circle/outside.png",
        "cross/linked/out.png",
        "circle/soft.jpg",
        "cross/plain 03.jpg",
        "circle/blank.png",
    }
    actions = table.set_index("id")["action"]
    actions["cross/linked/out.png"], actions["circle/soft.jpg"] = "drop", "relabel:cross"
    table.assign(action=actions.to_numpy()).to_csv("decided.csv", index=False)
    code, output, _ = prepared(*flags, "--corrections", "decided.csv", "--out", "second")
    line = "1 of 66 images relabelled (circle/soft.jpg as cross), 1 dropped (cross/linked/out.png), 3 unchanged"
    assert code == 0 and line in output
    command = shlex.split(output.splitlines()[-1].removeprefix("Train with: "))
    assert command[command.index("--corrections") + 1] == "decided.csv"
    second = rows_of("second/corrections.csv").set_index("id")["action"]
    assert second.to_dict() == actions.to_dict(), "what was decided stands, and nothing is asked again"
    assert "to review" not in output
    config, _ = resolve_config(run.parse(command[command.index("run") + 1 :]))
    rows = load_prepared(config).manifest.set_index("id")
    assert rows.at["circle/soft.jpg", "label"] == "cross" and rows.at["circle/soft.jpg", "split"] != ""
    assert rows.at["cross/linked/out.png", "split"] == ""
    assert rows.at["cross/linked/out.png", "problem"] == "dropped by decided.csv"


def test_a_class_that_corrections_empty_is_left_out_as_the_sentence_says(prepared, photos, here):
    ids = sorted(path.name for path in (photos / "cross").iterdir())
    Path("c.csv").write_text("\n".join(["id,action", *(f"cross/{name},relabel:circle" for name in ids)]))
    code, _, errors = prepared(photos, "--corrections", "c.csv")
    assert code == 2 and "The class cross has no training image (its images: none)" in errors
    flags = shlex.split(re.search(r"leave the class out with (.*)\.", errors)[1])
    code, output, errors = prepared(photos, "--corrections", "c.csv", *flags)
    assert (code, errors) == (0, "")
    assert list(cells(output)) == ["circle", "stripes", "(all)"] and cells(output)["circle"][-1] == 28


def test_only_what_corrections_decide_counts_for_a_resume_and_not_where_they_lie(photos, here):
    def fingerprint_with(name, *rows):
        Path(name).write_text("\n".join(["id,action", *rows]))
        config, _ = resolve_config(run.parse(["--dataset", str(photos), "--cache-dir", "cache", "--corrections", name]))
        return config, load_prepared(config).fingerprint

    one = fingerprint_with("one.csv", "circle/001.png,drop")
    moved = fingerprint_with("moved.csv", "circle/001.png,drop", "circle/002.png,keep")
    others = [
        fingerprint_with(*arguments)
        for arguments in (
            ("drop.csv", "circle/003.png,drop"),
            ("label.csv", "circle/001.png,relabel:cross"),
            ("none.csv",),
        )
    ]
    assert not difference(one[0], moved[0]) and one[1] == moved[1]
    assert len({one[1], *(other for _, other in others)}) == 4
    assert Path(one[0].corrections).is_absolute(), "a relative path would bind --resume to this folder"


def test_groups_share_a_split_and_the_table_says_which(prepared, here):
    photos = here / "photos"
    for label, name in enumerate(("cat", "dog")):
        (photos / name).mkdir(parents=True)
        for number in range(60):
            drawing(label, number).save(photos / name / f"animal{number // 4}_{number % 4}.jpg")
    code, output, _ = prepared("photos", "--group-by", r"^([^/]*/animal\d+)_", "--image-size", "32")
    assert code == 0 and "--group-by: 120 images in 30 groups of 4 to 4" in output
    assert "--group-by '^([^/]*/animal" in output.splitlines()[-1]
    _, _, flags = output.splitlines()[-1].partition(" run ")
    manifest = load_prepared(resolve_config(run.parse(shlex.split(flags)))[0]).manifest
    assert (manifest.groupby("group")["split"].nunique() == 1).all() and manifest["group"].nunique() == 30
    assert set(manifest["split"]) == {"train", "val", "test"}


def test_features_that_a_run_has_kept_find_wrong_labels_without_tensorflow(prepared, here):
    photos = draw_photos(here / "photos", num_per_class=30)
    (photos / "circle" / "005.png").rename(photos / "cross" / "from circle.png")
    config, _ = resolve_config(run.parse(["--dataset", "photos", "--cache-dir", "cache"]))
    manifest = load_prepared(config).manifest
    rng = np.random.default_rng(0)
    is_circle = (manifest["label"] == "circle") | manifest["id"].str.contains("from circle")
    place = np.where(is_circle, 0, 1 + (manifest["label"] == "stripes"))
    values = (rng.normal(size=(3, 24))[place] + 0.6 * rng.normal(size=(len(place), 24))).astype(np.float32)
    kept_of = (manifest["split"] != "test").to_numpy()  # a run computes no features of test images
    for name, chosen in (("few", kept_of & (np.arange(90) < 20)), ("most", kept_of)):
        facts = {"backbone": "efficientnet_lite0", "image_size": 96}
        with Cache(Path("cache")).open(EntrySpec(FEATURES, name, (24,), "float32", facts)) as kept:
            kept.add(manifest["sha256"][chosen].tolist(), values[chosen])
    code, output, _ = prepared("photos", "--out", "seen")
    table = rows_of("seen/corrections.csv").set_index("id")
    assert code == 0 and table.at["cross/from circle.png", "suggestion"] == "circle"
    assert table.at["cross/from circle.png", "why"].startswith("label issue: circle ")
    page = Path("seen/audit.html").read_text()
    line = f"from cache entry features/most, of {kept_of.sum()} of 90 used images; pass --features for all"
    assert line in page and "cross → circle" in page
    code, output, _ = prepared("photos", "--backbone", "resnet50", "--out", "other")
    assert (
        code == 0
        and "Label issues and outliers need features, and none of these images are in the cache"
        in Path("other/audit.html").read_text()
    )


def test_features_that_are_asked_for_are_those_that_run_finds(prepared, photos, weights_file, here, capsys):
    flags = ["--dataset", str(photos), "--backbone", "small_cnn", "--weights", str(weights_file), "--image-size", "16"]
    code, output, errors = prepared(*flags, "--features", "--out", "seen")
    assert code == 0 and "Computing the features of 42 images" in output
    assert "of 42 of 42 used images." in Path("seen/audit.html").read_text()
    short = ["--frozen.epochs", "1", "--fine-tune.epochs", "0", "--head", "none", "--cache-dir", "cache"]
    assert run_main(run.main, [*flags, *short]) == 0
    assert re.search(r"The features of \d+ images .* are in the cache", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits", "--dataset", "photos"], "digits and --dataset photos are two datasets"),
        (["photos", "--out", "used"], "--out used holds files; give a new or empty directory"),
        (["photos", "--out", "used/file"], "--out used/file is a file"),
        (["photos", "--corrections", "none.csv"], "There is no table"),
        (["photos", "--group-by", "("], "--group-by ( is not a regular expression"),
        (["photos", "--group-by", "patient"], "--group-by patient matches none of the 12 ids"),
        (
            "photos --features --backbone small_cnn --weights none --frozen.epochs 0 --fine-tune.epochs 1 "
            "--fine-tune.unfreeze all".split(),
            "--features needs a pretrained backbone",
        ),
    ],
)
def test_what_it_refuses_it_says_and_nothing_is_written_over(arguments, words, prepared, here):
    draw_photos(here / "photos", num_per_class=4)
    (here / "used").mkdir()
    (here / "used" / "file").write_text("mine")
    code, _, errors = prepared(*arguments)
    assert code == 2 and errors.count("\n") == 1 and words in errors
    assert (here / "used" / "file").read_text() == "mine" and not (here / "runs").exists()
