"""The store: what is decoded once is not decoded again, whatever stands beside it, and is never there by half."""

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_photos
from PIL import Image

from transfer_learning.datasets import folder, store
from transfer_learning.datasets.dataset import Dataset, Example
from transfer_learning.datasets.store import open_store
from transfer_learning.errors import UserError
from transfer_learning.kept import KeptArrays

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def photos_here(tmp_path):
    return draw_photos(tmp_path / "photos", num_per_class=3)


@pytest.fixture
def opened(tmp_path):
    """Opens a store in a cache of its own; returns it and what was said."""

    def open_it(root_or_dataset, size=8, resize="squash"):
        dataset = root_or_dataset if isinstance(root_or_dataset, Dataset) else folder.read(root_or_dataset)
        said = []
        return open_store(dataset, size, resize, tmp_path / "cache", said.append), said

    return open_it


def test_pixels_and_facts_stand_in_the_order_of_the_examples(photos_here, opened):
    kept, said = opened(photos_here)
    dataset = folder.read(photos_here)
    assert kept.pixels.shape == (9, 8, 8, 3) and kept.pixels.dtype == np.uint8
    assert not kept.pixels.flags.writeable and isinstance(kept.pixels, np.memmap)
    assert kept.rows.dtype == np.int64 and kept.rows.tolist() == list(range(9))
    assert list(kept.facts.columns) == ["sha256", "width", "height", "problem"] and len(kept.facts) == 9
    assert (kept.facts[["width", "height"]] == 16).all(axis=None) and (kept.facts["problem"] == "").all()
    for example, pixels in zip(dataset.examples, kept.pixels, strict=True):
        expected = Image.open(example.content).resize((8, 8), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(pixels, np.asarray(expected))
    assert said == ["Decoding 9 images to 8 x 8 pixels; 0 are kept from earlier runs."]


def test_the_second_opening_decodes_nothing(photos_here, opened, monkeypatch):
    first, _ = opened(photos_here)
    monkeypatch.setattr(store, "decode", lambda *arguments: pytest.fail("an image is decoded again"))
    second, said = opened(photos_here)
    assert said == []
    np.testing.assert_array_equal(second.pixels[second.rows], first.pixels[first.rows])
    assert second.facts.equals(first.facts)


def change_one(root):
    Image.new("RGB", (16, 16), "red").save(root / "cross" / "000.png")


def add_one(root):
    Image.new("RGB", (16, 16), "red").save(root / "cross" / "new.png")


def swap_two(root):
    a, b, c = (root / "cross" / name for name in ("000.png", "001.png", "x"))
    a.rename(c)
    b.rename(a)
    c.rename(b)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded from here on."""
    names, original = [], store.decode

    def decode(content, *arguments):
        names.append(content.name)
        return original(content, *arguments)

    monkeypatch.setattr(store, "decode", decode)
    return names


@pytest.mark.parametrize(
    ("change", "expected"), [(change_one, ["000.png"]), (add_one, ["new.png"]), (swap_two, [])]
)  # fmt: skip
def test_what_is_changed_or_added_is_decoded_alone(change, expected, photos_here, opened, decoded):
    first, _ = opened(photos_here)
    before = first.pixels.copy()
    change(photos_here)
    decoded.clear()
    second, said = opened(photos_here)
    assert decoded == expected
    num_kept = len(second.rows) - len(expected)
    sentence = f"Decoding {len(expected)} images to 8 x 8 pixels; {num_kept} are kept from earlier runs."
    assert said == [sentence] * bool(expected)
    np.testing.assert_array_equal(first.pixels, before)
    for example, row in zip(folder.read(photos_here).examples, second.rows, strict=True):
        expected = Image.open(example.content).resize((8, 8), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(second.pixels[row], np.asarray(expected))


def test_the_same_content_is_decoded_and_kept_once(photos_here, opened, decoded):
    for name in "ab":
        shutil.copy(photos_here / "circle" / "001.png", photos_here / "cross" / f"copy {name}.png")
    kept, said = opened(photos_here)
    assert len(decoded) == 9 and len(kept.pixels) == 9 and len(kept.rows) == 11
    assert kept.rows[1] == kept.rows[6] == kept.rows[7] and (kept.facts["width"] == 16).all()


def test_another_dataset_with_the_same_images_finds_them(photos_here, opened, decoded, tmp_path):
    opened(photos_here)
    decoded.clear()
    other = draw_photos(tmp_path / "other", classes=("circle", "cross", "stripes", "more"), num_per_class=1)
    kept, _ = opened(other)
    expected = [Image.open(example.content).resize((8, 8), 3) for example in folder.read(other).examples]
    np.testing.assert_array_equal(kept.pixels[kept.rows], np.stack([np.asarray(image) for image in expected]))
    assert len(decoded) < len(expected), "the first image of the noise is the same"


@pytest.mark.parametrize("changed", [{"size": 12}, {"resize": "crop"}])
def test_another_size_or_shape_makes_another_store(changed, photos_here, opened):
    assert opened(photos_here)[0].decoding != opened(photos_here, **changed)[0].decoding


def test_other_names_and_labels_keep_the_store(photos_here, opened):
    first, _ = opened(photos_here)
    (photos_here / "cross").rename(photos_here / "cruz")  # the same place in the order
    second, said = opened(photos_here)
    assert said == []


def test_an_unreadable_image_is_named_and_tried_again(photos_here, opened, decoded):
    (photos_here / "cross" / "000.png").write_bytes(b"no image")
    (photos_here / "cross" / "001.png").unlink()
    (photos_here / "cross" / "001.png").symlink_to("gone")
    for num_kept in (0, 7):
        decoded.clear()
        kept, said = opened(photos_here)
        assert (kept.facts["problem"] != "").to_numpy().nonzero()[0].tolist() == [3, 4]
        assert "cannot be decoded" in kept.facts["problem"][3] and "no such file" in kept.facts["problem"][4]
        assert (kept.rows == -1).nonzero()[0].tolist() == [3, 4] and len(kept.pixels) == 7
        assert kept.facts["sha256"][4] == "" and (kept.facts[["width", "height"]].iloc[3:5] == 0).all(axis=None)
        assert said == [f"Decoding {9 - num_kept} images to 8 x 8 pixels; {num_kept} are kept from earlier runs."]
        assert len(decoded) == 9 - num_kept


def test_memory_that_was_short_once_is_not_remembered(photos_here, opened, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(store, "decode", lambda *arguments: store.Decoded(None, 0, 0, "it takes more memory"))
        kept, _ = opened(photos_here)
        assert (kept.rows == -1).all() and (kept.facts["problem"] != "").all()
        assert kept.pixels.shape == (0, 8, 8, 3)
    kept, _ = opened(photos_here)
    assert (kept.rows >= 0).all() and (kept.facts["problem"] == "").all()


def test_a_file_that_changes_while_it_is_read_is_not_kept_under_its_old_hash(photos_here, opened, monkeypatch):
    original = store.decode

    def decode(content, *arguments):
        if content.name == "000.png" and content.parent.name == "cross":
            change_one(photos_here)
        return original(content, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(store, "decode", decode)
        kept, _ = opened(photos_here)
    assert kept.facts["problem"].tolist() == [""] * 3 + ["the file changed while it was read"] + [""] * 5
    kept, said = opened(photos_here)
    assert (kept.pixels[kept.rows[3]] == (255, 0, 0)).all() and "Decoding 1 images" in said[0]


def test_a_dataset_without_examples_has_a_store(opened):
    kept, said = opened(Dataset("nothing", (), ()))
    assert kept.pixels.shape == (0, 8, 8, 3) and kept.rows.shape == (0,) and said == []
    assert list(kept.facts.columns) == ["sha256", "width", "height", "problem"]


def test_arrays_are_kept_like_files(opened):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8)).astype(np.uint8)
    examples = [Example(str(number), "ab"[number % 2], "", image) for number, image in enumerate(pixels)]
    kept, _ = opened(Dataset("arrays", ("a", "b"), tuple(examples)))
    np.testing.assert_array_equal(kept.pixels[kept.rows], np.repeat(pixels[..., None], 3, axis=3))


def test_progress_counts_what_is_decoded(photos_here, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 4)
    counted = []
    for _ in range(2):
        dataset = folder.read(photos_here)
        open_store(dataset, 8, "squash", tmp_path, lambda _: None, lambda *counts: counted.append(counts))
    assert counted == [(4, 9), (8, 9), (9, 9)]


@pytest.mark.parametrize("failing_write", [1, 2])
def test_a_full_disk_is_told_with_the_space_it_needs_and_what_was_kept_stays(
    failing_write, photos_here, opened, monkeypatch, decoded
):
    original, calls = KeptArrays._append, []

    def full_disk(*arguments):
        calls.append(arguments)
        if len(calls) == 4 * failing_write:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(store, "CHUNK", 4)
    with monkeypatch.context() as patched:
        patched.setattr(KeptArrays, "_append", full_disk)
        with pytest.raises(UserError, match="The decoded images need 1 MB in .*No space left on device.*--cache-dir"):
            opened(photos_here)
    decoded.clear()
    kept, said = opened(photos_here)
    assert len(decoded) == 9 - 4 * (failing_write - 1) and kept.pixels[kept.rows].any(axis=(1, 2, 3)).all()


def test_a_damaged_pool_is_mended(photos_here, opened, decoded, tmp_path):
    first, _ = opened(photos_here)
    expected = first.pixels[first.rows]
    (records,) = (tmp_path / "cache").rglob("records.bin")
    os.truncate(records, records.stat().st_size - 1)
    decoded.clear()
    kept, said = opened(photos_here)
    assert len(decoded) == 1 and "1 kept arrays" in said[0] and "damaged" in said[0]
    np.testing.assert_array_equal(kept.pixels[kept.rows], expected)


KILLED = """
import os, signal, sys
from transfer_learning.datasets import folder, store
from pathlib import Path

decode, count = store.decode, 0
def decode_some(*arguments):
    global count
    count += 1
    if count == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(*arguments)

store.decode, store.CHUNK, os.cpu_count = decode_some, 2, lambda: 1
store.open_store(folder.read(Path(sys.argv[1])), 8, "squash", sys.argv[2])
"""


def test_killed_in_the_middle_it_continues_with_the_rest_to_the_same_bits(photos_here, opened, decoded, tmp_path):
    command = [sys.executable, "-c", KILLED, photos_here, tmp_path / "cache"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    kept, said = opened(photos_here)
    assert len(decoded) <= 9 - 4 and f"Decoding {len(decoded)} images" in said[0], "two chunks were written before"
    unbroken = open_store(folder.read(photos_here), 8, "squash", tmp_path / "other cache", lambda _: None)
    np.testing.assert_array_equal(kept.pixels[kept.rows], unbroken.pixels[unbroken.rows])
    assert kept.facts.equals(unbroken.facts)
    assert len([path for path in (tmp_path / "cache").rglob("*.*") if path.is_file()]) == 2, "nothing is left over"


def test_a_file_is_read_whole_from_wherever_the_command_is_given(photos_here, opened, monkeypatch):
    first, _ = opened(photos_here)
    monkeypatch.chdir(photos_here.parent)
    relative = folder.read(Path(photos_here.name))
    assert not any(os.path.isabs(example.content) for example in relative.examples)
    second, said = opened(dataclasses.replace(relative, name="other"))
    assert said == [] and np.array_equal(second.rows, first.rows)
