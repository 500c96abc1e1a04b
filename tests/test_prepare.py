"""The verb `prepare`: everything is told, `run` finds it done, and nothing is written where it does not belong."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import draw_photos
from PIL import Image

from transfer_learning import prepare, run
from transfer_learning.choice import chosen_config
from transfer_learning.command_line import run_main
from transfer_learning.datasets.data import load_data
from transfer_learning.datasets.decode_worker import DecodeWorkers

ROOT = Path(__file__).parent.parent


@pytest.fixture
def prepared(here, capsys):
    """Calls the verb with a cache of its own; returns exit code, output and errors."""

    def call(*arguments):
        capsys.readouterr()
        code = run_main(prepare.main, ["--cache-dir", "cache", *map(str, arguments)])
        return int(code), *capsys.readouterr()

    return call


def cells(output):
    """The rows of the table, by their first cell."""
    lines = output.split("\n\n")[1].splitlines()
    assert len(set(map(len, lines))) == 1, "not aligned"
    rows = [re.split(r" {2,}", line) for line in lines]
    assert rows[0] == ["class", "train", "val", "test", "skipped", "images"]
    return {name: [int(number.replace(",", "")) for number in row] for name, *row in rows[1:]}


def files_of(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (folder, *folder.rglob("*"))}


def test_it_tells_every_image_and_every_file_and_writes_nothing_beside_them(prepared, here):
    photos = draw_photos(here / "photos", classes=("all", "circle", "a long name"))
    (photos / "list.txt").write_text("x")
    (photos / "more.txt").write_text("x")
    (photos / ".hidden").write_text("x")
    before = files_of(photos)
    code, output, errors = prepared("--dataset", photos)
    assert (code, errors) == (0, "") and files_of(photos) == before
    table = cells(output)
    assert list(table) == ["a long name", "all", "circle", "(all)"]
    data = load_data(chosen_config(run.parse(["--dataset", str(photos), "--cache-dir", "cache"]))[0])
    for name, (*splits, skipped, total) in table.items():
        rows = data.manifest[data.manifest["label"] == name] if name != "(all)" else data.manifest
        assert splits == [(rows["split"] == split).sum() for split in ("train", "val", "test")]
        assert skipped == 0 and total == sum(splits) == len(rows)
    assert "Ignored 3 other files:\n  2 not named like an image (.txt)\n  1 hidden" in output
    assert "Skipped" not in output
    pixels = here / "cache" / "pixels"
    (pool,) = pixels.iterdir()
    assert f"Kept in cache/pixels/{pool.name}, with those of other datasets: images of 16 x 16 pixels (squash)" in output
    assert re.search(r"42 images in \d+\.\d s: [\d,]+ images/s", output)
    assert {path.name for path in here.iterdir()} == {"photos", "cache"}


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
    command = shlex.split(output.splitlines()[-1].removeprefix("Train on it with: "))
    assert code == 0 and command[:3] == [sys.executable, "-m", "transfer_learning.run"]
    monkeypatch.setattr(DecodeWorkers, "decode", lambda *arguments: pytest.fail("an image is decoded again"))
    config, _ = chosen_config(run.parse(command[3:]))
    data = load_data(config)
    assert (data.store.rows >= 0).all() and len(data.manifest) == 42
    splits = cells(output)["(all)"][:3]
    assert splits == [len(data.manifest[data.manifest["split"] == split]) for split in ("train", "val", "test")]


@pytest.mark.parametrize("num_broken", [1, 23])
def test_unreadable_images_are_all_told_and_then_refused_as_run_would(num_broken, prepared, here):
    photos = draw_photos(here / "photos")
    broken = [photos / "cross" / f"broken {number:02d}.png" for number in range(num_broken)]
    for path in broken:
        path.write_bytes(b"no image")
    code, output, errors = prepared("--dataset", photos)
    images = "1 image" if num_broken == 1 else "23 images"
    assert code == 2 and errors.startswith(f"error: {images} of {42 + num_broken} cannot be read")
    assert "--skip-unreadable" in errors and "Train on it" not in output
    named = [line for line in output.splitlines() if line.startswith(f"  {photos / 'cross' / 'broken'}")]
    assert len(named) == min(num_broken, 20) and all("cannot be decoded" in line for line in named)
    assert ("  and 3 more" in output.splitlines()) == (num_broken == 23)
    assert cells(output)["cross"][3:] == [num_broken, 14 + num_broken]
    code, output, errors = prepared("--dataset", photos, "--skip-unreadable")
    assert (code, errors) == (0, "") and "--skip-unreadable" in output.splitlines()[-1]


def test_an_image_that_is_skipped_for_another_reason_is_told_and_not_refused(prepared, here):
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
    assert code == 0 and cells(output)["(all)"][4] == 150 and "images of 8 x 8 pixels" in output
    assert output.startswith("digits: 150 images, found in ")


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
    arguments = ["--dataset", photos, "--cache-dir", tmp_path / "cache"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False" and done.stderr == ""


def test_a_class_table_has_a_row_for_each_of_many_classes(prepared, here):
    for number in range(30):
        folder = here / "many" / f"{number:02d}"
        folder.mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (8, 8), (number, index, 0)).save(folder / f"{index}.png")
    code, output, _ = prepared("--dataset", "many")
    table = cells(output)
    assert code == 0 and len(table) == 31 and all(table[f"{number:02d}"] == [1, 1, 1, 0, 3] for number in range(30))
