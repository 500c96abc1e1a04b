"""The store: what is decoded once is not decoded again, and is never there by half."""

import dataclasses
import errno
import os
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
    assert list(kept.facts.columns) == ["sha256", "width", "height", "problem"] and len(kept.facts) == 9
    assert (kept.facts[["width", "height"]] == 16).all(axis=None) and (kept.facts["problem"] == "").all()
    for example, pixels in zip(dataset.examples, kept.pixels, strict=True):
        expected = Image.open(example.content).resize((8, 8), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(pixels, np.asarray(expected))
    assert said == ["Decoding 9 images to 8 x 8 pixels, once for this and every later run."]


def test_the_second_opening_decodes_nothing(photos_here, opened, monkeypatch):
    first, _ = opened(photos_here)
    monkeypatch.setattr(store, "decode", lambda *arguments: pytest.fail("an image is decoded again"))
    second, said = opened(photos_here)
    assert said == [] and second.key == first.key
    np.testing.assert_array_equal(second.pixels, first.pixels)
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


@pytest.mark.parametrize("change", [change_one, add_one, swap_two])
def test_other_content_makes_another_store_and_leaves_the_first(change, photos_here, opened):
    first, _ = opened(photos_here)
    before = first.pixels.copy()
    change(photos_here)
    second, said = opened(photos_here)
    assert second.key != first.key and said
    np.testing.assert_array_equal(first.pixels, before)


@pytest.mark.parametrize("changed", [{"size": 12}, {"resize": "crop"}])
def test_another_size_or_shape_makes_another_store(changed, photos_here, opened):
    assert opened(photos_here)[0].key != opened(photos_here, **changed)[0].key


def test_other_names_and_labels_keep_the_store(photos_here, opened):
    first, _ = opened(photos_here)
    (photos_here / "cross").rename(photos_here / "cruz")  # the same place in the order
    second, said = opened(photos_here)
    assert second.key == first.key and said == []


def test_an_unreadable_image_is_black_and_named(photos_here, opened):
    (photos_here / "cross" / "000.png").write_bytes(b"no image")
    (photos_here / "cross" / "001.png").unlink()
    (photos_here / "cross" / "001.png").symlink_to("gone")
    for _ in range(2):  # decoded, and read from what is kept
        kept, _ = opened(photos_here)
        assert (kept.facts["problem"] != "").to_numpy().nonzero()[0].tolist() == [3, 4]
        assert "cannot be decoded" in kept.facts["problem"][3] and "no such file" in kept.facts["problem"][4]
        assert not kept.pixels[3:5].any() and kept.pixels[5].any()
        assert kept.facts["sha256"][4] == ""


def test_arrays_are_kept_like_files(opened):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8)).astype(np.uint8)
    examples = [Example(str(number), "ab"[number % 2], "", image) for number, image in enumerate(pixels)]
    kept, _ = opened(Dataset("arrays", ("a", "b"), tuple(examples)))
    np.testing.assert_array_equal(kept.pixels, np.repeat(pixels[..., None], 3, axis=3))


@pytest.mark.parametrize("failing_write", [1, 2])
def test_a_full_disk_leaves_nothing_half_and_is_told_with_the_space_it_needs(
    failing_write, photos_here, opened, monkeypatch, tmp_path
):
    synced, calls = store.written_atomically, []

    def full_disk(path):
        calls.append(path)
        if len(calls) == failing_write:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return synced(path)

    with monkeypatch.context() as patched:
        patched.setattr(store, "written_atomically", full_disk)
        with pytest.raises(UserError, match="need 1 MB in .*No space left on device.*--cache-dir"):
            opened(photos_here)
    assert not list((tmp_path / "cache").rglob("*.csv")) and not list((tmp_path / "cache").rglob("*partial*"))
    kept, said = opened(photos_here)
    assert said and kept.pixels.any(axis=(1, 2, 3)).all()


KILLED = """
import os, signal, sys
from transfer_learning.datasets import folder, store
from pathlib import Path

decode, count = store.decode, 0
def decode_some(*arguments):
    global count
    count += 1
    if count == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(*arguments)

store.decode = decode_some
store.open_store(folder.read(Path(sys.argv[1])), 8, "squash", sys.argv[2])
"""


def test_killed_in_the_middle_it_leaves_nothing_that_is_taken_for_whole(photos_here, opened, tmp_path):
    command = [sys.executable, "-c", KILLED, photos_here, tmp_path / "cache"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    kept, said = opened(photos_here)
    assert len(said) == 1 and kept.pixels.any(axis=(1, 2, 3)).all()
    assert len(list((tmp_path / "cache").rglob("*.*"))) == 2, "what the killed process left is gone"


def test_pixels_without_their_facts_are_decoded_again(photos_here, opened, tmp_path):
    opened(photos_here)
    (facts,) = (tmp_path / "cache").rglob("*.csv")
    facts.unlink()  # killed between the two files
    kept, said = opened(photos_here)
    assert said and len(kept.facts) == 9


def test_a_file_is_read_whole_from_wherever_the_command_is_given(photos_here, opened, monkeypatch):
    first, _ = opened(photos_here)
    monkeypatch.chdir(photos_here.parent)
    relative = folder.read(Path(photos_here.name))
    assert not any(os.path.isabs(example.content) for example in relative.examples)
    assert opened(dataclasses.replace(relative, name="other"))[0].key == first.key
