"""The store: what is decoded once is not decoded again, whatever stands beside it, and is never there by half."""

import dataclasses
import errno
import io
import math
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.support import ROOT
from tests.support.logs import log_messages
from tests.support.photos import draw_photos
from transfer_learning.cli.formatting import counted
from transfer_learning.datasets.dataset import Dataset, Example, FilePart
from transfer_learning.datasets.decoding import pixel_cache
from transfer_learning.datasets.decoding.decode import Decoded, decode
from transfer_learning.datasets.decoding.pixel_cache import FACTS, JpegPixels, cached_images
from transfer_learning.datasets.decoding.workers import DecodeWorkers
from transfer_learning.datasets.pipeline import Examples, training_batches
from transfer_learning.datasets.sources import folder
from transfer_learning.errors import UserError
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.cache import Cache


@pytest.fixture
def photos_here(tmp_path):
    return draw_photos(tmp_path / "photos", num_per_class=3)


@pytest.fixture
def opened(tmp_path):
    """Opens a store in a cache of its own; returns it and what was said."""

    def open_it(root_or_dataset, size=8, resize="squash", cache_gb=100.0, **limits):
        dataset = root_or_dataset if isinstance(root_or_dataset, Dataset) else folder.read(root_or_dataset)
        said = log_messages()
        return cached_images(dataset, size, resize, Cache(tmp_path / "cache", cache_gb), **limits), said

    return open_it


def summary(num_decoded, num_cached):
    return [f"Decoded {counted(num_decoded, 'image')} ({num_cached} in cache)."]


def as_array(pixels):
    return pixels[np.arange(len(pixels))]


def test_pixels_and_facts_have_the_order_of_the_examples(photos_here, opened):
    kept, said = opened(photos_here)
    dataset = folder.read(photos_here)
    assert kept.pixels.shape == (9, 8, 8, 3) and kept.pixels.dtype == np.uint8
    assert kept.rows.dtype == np.int64 and kept.rows.tolist() == list(range(9))
    assert tuple(kept.facts.columns) == FACTS and len(kept.facts) == 9
    assert (kept.facts[["width", "height"]] == 16).all(axis=None) and (kept.facts["problem"] == "").all()
    for example, pixels in zip(dataset.examples, as_array(kept.pixels), strict=True):
        expected = Image.open(example.source).resize((8, 8), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(pixels, np.asarray(expected))
    assert said == summary(9, 0)


def test_the_second_opening_decodes_nothing(photos_here, opened, monkeypatch):
    first, _ = opened(photos_here)
    monkeypatch.setattr(DecodeWorkers, "decode", lambda *arguments: pytest.fail("an image is decoded again"))
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
    names, original = [], DecodeWorkers.decode

    def decode(self, path):
        names.append(path.name)
        return original(self, path)

    monkeypatch.setattr(DecodeWorkers, "decode", decode)
    return names


@pytest.mark.parametrize(("change", "expected"), [(change_one, ["000.png"]), (add_one, ["new.png"]), (swap_two, [])])
def test_what_is_changed_or_added_is_decoded_alone(change, expected, photos_here, opened, decoded):
    first, _ = opened(photos_here)
    before = as_array(first.pixels)
    change(photos_here)
    decoded.clear()
    second, said = opened(photos_here)
    assert decoded == expected
    num_kept = len(second.rows) - len(expected)
    assert said == summary(len(expected), num_kept) * bool(expected)
    np.testing.assert_array_equal(as_array(first.pixels), before)
    for example, row in zip(folder.read(photos_here).examples, second.rows, strict=True):
        expected = Image.open(example.source).resize((8, 8), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(second.pixels[[row]][0], np.asarray(expected))


@pytest.mark.parametrize("chunk", [1, 3, 128])  # the copies in one chunk, in neighbours, or apart
def test_the_same_content_is_decoded_and_kept_once(chunk, photos_here, opened, decoded, monkeypatch):
    monkeypatch.setattr(pixel_cache, "CHUNK", chunk)
    for copy in ("circle/002 again.png", "cross/copy a.png", "cross/copy b.png"):
        shutil.copy(photos_here / "circle" / "002.png", photos_here / copy)
    kept, said = opened(photos_here)
    assert len(decoded) == 9 and len(kept.pixels) == 9 and len(kept.rows) == 12 and said == summary(9, 0)
    assert kept.rows[2] == kept.rows[3] == kept.rows[7] == kept.rows[8] and (kept.facts["width"] == 16).all()


def test_another_dataset_with_the_same_images_finds_them(photos_here, opened, decoded, tmp_path):
    opened(photos_here)
    decoded.clear()
    other = draw_photos(tmp_path / "other", classes=("circle", "cross", "stripes", "more"), num_per_class=1)
    kept, _ = opened(other)
    expected = [Image.open(example.source).resize((8, 8), 3) for example in folder.read(other).examples]
    np.testing.assert_array_equal(kept.pixels[kept.rows], np.stack([np.asarray(image) for image in expected]))
    assert len(decoded) < len(expected), "the first image of the noise is the same"


@pytest.mark.parametrize("changed", [{"size": 12}, {"resize": "crop"}])
def test_another_size_or_shape_makes_another_store(changed, photos_here, opened):
    assert opened(photos_here)[0].pixel_key != opened(photos_here, **changed)[0].pixel_key


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
        assert said == summary(7 - num_kept, num_kept)
        assert len(decoded) == 9 - num_kept


def test_memory_that_was_short_once_is_not_remembered(photos_here, opened, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(DecodeWorkers, "decode", lambda *arguments: ("", Decoded(None, 0, 0, "it takes more memory")))
        kept, _ = opened(photos_here)
        assert (kept.rows == -1).all() and (kept.facts["problem"] != "").all()
        assert kept.pixels.shape == (0, 8, 8, 3)
    kept, _ = opened(photos_here)
    assert (kept.rows >= 0).all() and (kept.facts["problem"] == "").all()


def test_a_file_that_changes_while_it_is_read_is_not_kept_under_its_old_hash(photos_here, opened, monkeypatch):
    original = DecodeWorkers.decode

    def decode(self, path):
        if path.name == "000.png" and path.parent.name == "cross":
            change_one(photos_here)
        return original(self, path)

    with monkeypatch.context() as patched:
        patched.setattr(DecodeWorkers, "decode", decode)
        kept, _ = opened(photos_here)
    assert kept.facts["problem"].tolist() == [""] * 3 + ["the file changed while it was read"] + [""] * 5
    kept, said = opened(photos_here)
    assert (kept.pixels[kept.rows[[3]]] == (255, 0, 0)).all() and said == summary(1, 8)


def test_a_dataset_without_examples_has_a_store(opened):
    kept, said = opened(Dataset("nothing", (), ()))
    assert kept.pixels.shape == (0, 8, 8, 3) and kept.rows.shape == (0,) and said == []
    assert tuple(kept.facts.columns) == FACTS


def test_arrays_are_kept_like_files(opened):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8)).astype(np.uint8)
    examples = [Example(str(number), "ab"[number % 2], "", image) for number, image in enumerate(pixels)]
    kept, _ = opened(Dataset("arrays", ("a", "b"), tuple(examples)))
    np.testing.assert_array_equal(kept.pixels[kept.rows], np.repeat(pixels[..., None], 3, axis=3))


def test_progress_counts_what_is_decoded(photos_here, tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "CHUNK", 4)
    counted: list[tuple[int, int]] = []
    monkeypatch.setattr(pixel_cache, "count_progress", lambda title: lambda *numbers: counted.append(numbers))
    for _ in range(2):
        dataset = folder.read(photos_here)
        cached_images(dataset, 8, "squash", Cache(tmp_path))
    assert counted == [(4, 9), (8, 9), (9, 9)] * 2


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(pixel_cache, "CHUNK", 4)


@pytest.mark.parametrize("as_jpegs", [False, True])
@pytest.mark.parametrize("failing_write", [1, 2])
def test_on_a_full_disk_the_rest_is_held_in_memory_and_what_was_kept_stays(
    failing_write, as_jpegs, photos_here, opened, monkeypatch, decoded, small_chunks
):
    original, calls = ArrayCache._append, []

    def full_disk(*arguments):
        calls.append(arguments)
        if len(calls) == 4 * failing_write:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    limits = {"decoded_gb": 0.0} if as_jpegs else {}
    with monkeypatch.context() as patched:
        patched.setattr(ArrayCache, "_append", full_disk)
        held, said = opened(photos_here, **limits)
    assert sum("No space left on device" in sentence and "in memory" in sentence for sentence in said) == 1
    decoded.clear()
    kept, said = opened(photos_here, **limits)
    assert len(decoded) == 9 - 4 * (failing_write - 1)
    np.testing.assert_array_equal(held.pixels[held.rows], kept.pixels[kept.rows])
    assert held.facts.equals(kept.facts)


def test_neither_disk_nor_memory_names_the_space_it_needs(photos_here, opened, monkeypatch):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(ArrayCache, "_append", full_disk)
    with pytest.raises(UserError, match="The decoded images need 1 MB in .*No space left on device.*--cache-dir"):
        opened(photos_here)


def test_a_cache_that_may_hold_nothing_keeps_nothing(photos_here, opened, decoded, tmp_path):
    plain, _ = opened(photos_here, cache_gb=0.0)
    kept, said = opened(photos_here, cache_gb=0.0)
    assert len(decoded) == 18 and said[:1] == [s for s in said if "--cache-gb 0 allows no more" in s]
    np.testing.assert_array_equal(kept.pixels[kept.rows], plain.pixels[plain.rows])
    assert not any(path.stat().st_size for path in (tmp_path / "cache").rglob("records.bin"))


def test_where_no_room_can_be_made_nothing_is_written_and_it_is_asked_for_once(
    photos_here, opened, monkeypatch, small_chunks, tmp_path
):
    opened(photos_here)
    before = [path.stat().st_size for path in (tmp_path / "cache").rglob("records.bin")]
    for number, path in enumerate(sorted(photos_here.rglob("*.png"))[3:]):  # 1 of the first 4, and all the others
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
    asked = []
    monkeypatch.setattr(Cache, "make_room", lambda *arguments: bool(asked.append(arguments)))
    kept, said = opened(photos_here)
    assert len(asked) == 1 and sum("allows no more" in sentence for sentence in said) == 1
    assert kept.pixels[kept.rows[3:]][:, 0, 0, 0].tolist() == list(range(6))
    assert [path.stat().st_size for path in (tmp_path / "cache").rglob("records.bin")] == before


@pytest.mark.parametrize(
    ("as_jpegs", "num_bytes"), [(False, 8 * 8 * 3), (True, math.floor(8 * 8 * pixel_cache.JPEG_BYTES_PER_PIXEL))]
)
def test_room_is_made_for_what_is_expected_ahead_of_what_is_decoded(
    as_jpegs, num_bytes, photos_here, opened, monkeypatch, decoded, small_chunks
):
    asked, limits = [], {"decoded_gb": 0.0, "cache_gb": 3.0} if as_jpegs else {"cache_gb": 3.0}

    def room(cache, num_bytes):
        asked.append((num_bytes, cache.limit_gb, len(decoded)))
        return True

    monkeypatch.setattr(Cache, "make_room", room)
    opened(photos_here, **limits)
    assert asked == [(9 * num_bytes, 3.0, 0)], "all, before the first"
    asked.clear()
    opened(photos_here, **limits)
    assert asked == []
    add_one(photos_here)  # in the second of three chunks: 1 of 8 is missing, so of the last 2 that is at most 1
    decoded.clear()
    opened(photos_here, **limits)
    assert asked == [(2 * num_bytes, 3.0, 0)] and decoded == ["new.png"]


def test_a_damaged_cache_entry_is_repaired(photos_here, opened, decoded, tmp_path):
    first, _ = opened(photos_here)
    expected = first.pixels[first.rows]
    del first  # reads what is there now
    (records,) = (tmp_path / "cache").rglob("records.bin")
    os.truncate(records, records.stat().st_size - 1)
    decoded.clear()
    kept, said = opened(photos_here)
    assert len(decoded) == 1 and "1 record damaged" in said[0]
    np.testing.assert_array_equal(kept.pixels[kept.rows], expected)


KILLED = """
import os, signal, sys
from transfer_learning.datasets.decoding import decoders, pixel_cache as store
from transfer_learning.datasets.sources import folder
from transfer_learning.storage.cache import Cache
from pathlib import Path

decode, count = decoders.DecodeWorkers.decode, 0
def decode_some(*arguments):
    global count
    count += 1
    if count == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(*arguments)

decoders.DecodeWorkers.decode, store.CHUNK, decoders.usable_cores = decode_some, 2, lambda: 1
store.cached_images(folder.read(Path(sys.argv[1])), 8, "squash", Cache(Path(sys.argv[2])))
"""


def test_killed_in_the_middle_it_continues_with_the_rest_to_the_same_bits(photos_here, opened, decoded, tmp_path):
    command = [sys.executable, "-c", KILLED, photos_here, tmp_path / "cache"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    kept, said = opened(photos_here)
    assert len(decoded) <= 9 - 4 and said == summary(len(decoded), 9 - len(decoded)), "two chunks were written before"
    unbroken = cached_images(folder.read(photos_here), 8, "squash", Cache(tmp_path / "other cache"))
    np.testing.assert_array_equal(kept.pixels[kept.rows], unbroken.pixels[unbroken.rows])
    assert kept.facts.equals(unbroken.facts)
    assert len([path for path in (tmp_path / "cache").rglob("*.*") if path.is_file()]) == 2, "nothing is left over"


def test_a_file_is_read_whole_from_wherever_the_command_is_given(photos_here, opened, monkeypatch):
    first, _ = opened(photos_here)
    monkeypatch.chdir(photos_here.parent)
    relative = folder.read(Path(photos_here.name))
    assert not any(os.path.isabs(example.source) for example in relative.examples)
    second, said = opened(dataclasses.replace(relative, name="other"))
    assert said == [] and np.array_equal(second.rows, first.rows)


def test_a_pipe_that_a_table_names_costs_itself_alone(photos_here, opened):
    os.mkfifo(photos_here / "pipe.png")  # to read it would wait for ever
    dataset = folder.read(photos_here)
    pipe = Example("pipe", dataset.class_names[0], "", photos_here / "pipe.png")
    kept, said = opened(dataclasses.replace(dataset, examples=(pipe, *dataset.examples)))
    assert kept.facts["problem"].tolist() == ["cannot be decoded (it is a folder, a pipe or a device)"] + [""] * 9
    assert kept.facts["sha256"][0] == "" and kept.rows.tolist()[0] == -1 and (kept.rows[1:] >= 0).all()
    assert said == summary(9, 0)


def test_workers_that_cannot_start_are_no_fault_of_the_images(photos_here, opened, monkeypatch):
    monkeypatch.setattr(
        "transfer_learning.datasets.decoding.workers.COMMAND", (sys.executable, "-c", "raise SystemExit(7)")
    )
    with pytest.raises(RuntimeError, match="does not start .exit code 7."):
        opened(photos_here)


@pytest.mark.parametrize(("excess", "is_jpegs"), [(0, False), (1, True)])
def test_a_set_that_exceeds_its_limit_is_kept_as_jpegs_and_the_sentence_says_why(excess, is_jpegs, photos_here, opened):
    limit = (9 * 8 * 8 * 3 - excess) / 1e9
    kept, said = opened(photos_here, decoded_gb=limit)
    assert isinstance(kept.pixels, JpegPixels) == is_jpegs
    if is_jpegs:
        assert (
            "decoded they take 0.00 GB" in said[0] and f"--decoded-gb is {limit:g}" in said[0] and "as JPEGs" in said[0]
        )
    else:
        assert said == summary(9, 0)


@pytest.fixture
def smooth_photos(tmp_path):
    """Three colour gradients, 40 x 24 pixels, and one of them again."""
    x, y = np.meshgrid(np.linspace(0, 255, 40), np.linspace(0, 255, 24))
    for number, channels in enumerate(([x, y, 255 - x], [y, x, y], [255 - y, x, 128 + 0 * x], [x, y, 255 - x])):
        path = tmp_path / "smooth" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack(channels, axis=2).astype(np.uint8)).save(path)
    return tmp_path / "smooth"


def test_jpegs_are_read_like_the_array_that_they_stand_for(smooth_photos, opened, decoded):
    plain, _ = opened(smooth_photos, size=16)
    kept, said = opened(smooth_photos, size=16, decoded_gb=0.0)
    assert (
        said[1:] == summary(3, 0) and kept.pixel_key != plain.pixel_key and kept.cached_in.name != plain.cached_in.name
    )
    assert len(kept.pixels) == 3 and kept.pixels.shape == (3, 16, 16, 3) and kept.pixels.dtype == np.uint8
    assert kept.rows.tolist() == [0, 1, 2, 0]
    facts = [name for name in FACTS if name != "pixels"]  # whose hash is that of the JPEG here
    assert kept.facts[facts].equals(plain.facts[facts]) and kept.facts["pixels"].nunique() == 3
    pixels = kept.pixels[kept.rows]
    assert pixels.shape == (4, 16, 16, 3) and pixels.dtype == np.uint8
    gap = np.abs(pixels.astype(int) - plain.pixels[plain.rows])
    assert 0 < gap.mean() < 1 and gap.max() <= 6
    for position in range(3):
        np.testing.assert_array_equal(kept.pixels[np.array([position])], pixels[[position]])
    assert kept.pixels[np.empty(0, np.int64)].shape == (0, 16, 16, 3)
    for wrong in ([3], [-1], [0, 3]):
        with pytest.raises(IndexError):
            kept.pixels[np.array(wrong)]
    decoded.clear()
    again, _ = opened(smooth_photos, size=16, decoded_gb=0.0)
    assert decoded == []
    np.testing.assert_array_equal(again.pixels[again.rows[::-1]], pixels[::-1])


def test_jpegs_give_the_same_pixels_to_many_threads_at_once(smooth_photos, opened):
    kept, _ = opened(smooth_photos, size=16, decoded_gb=0.0)
    expected = kept.pixels[kept.rows]
    rng = np.random.default_rng(0)
    orders = [rng.integers(0, 4, 50) for _ in range(40)]
    with ThreadPoolExecutor(8) as threads:
        for order, pixels in zip(orders, threads.map(lambda order: kept.pixels[kept.rows[order]], orders), strict=True):
            np.testing.assert_array_equal(pixels, expected[order])


def test_arrays_are_kept_as_jpegs_too(opened):
    values = np.linspace(0, 255, 64).reshape(8, 8)
    examples = [Example(str(n), "ab"[n], "", np.roll(values, n, 0).astype(np.uint8)) for n in range(2)]
    kept, _ = opened(Dataset("arrays", ("a", "b"), tuple(examples)), decoded_gb=0.0)
    for example, pixels in zip(examples, kept.pixels[kept.rows], strict=True):
        assert np.abs(pixels.astype(int) - decode(example.source, 8, "squash").pixels).mean() < 3


def peak_memory(num_images, tmp_path):
    """Most bytes that Python and NumPy held while a set of 100 times the limit was kept, and read; beside them, what
    the set would take decoded."""
    size, table = 64, tmp_path / f"{num_images} images"
    parts, offset, rng = [], 0, np.random.default_rng(0)
    with open(table, "wb") as file:
        for _ in range(num_images):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((size, size)).save(stream, "JPEG")
            parts.append(FilePart(table, offset, file.write(stream.getvalue())))
            offset += parts[-1].length
    examples = [Example(str(number), "ab"[number % 2], "", part) for number, part in enumerate(parts)]
    dataset, decoded_bytes = Dataset("table", ("a", "b"), tuple(examples)), num_images * size**2 * 3
    tracemalloc.start()
    opened = cached_images(dataset, size, "squash", Cache(tmp_path / "cache"), decoded_gb=decoded_bytes / 1e9 / 100)
    assert isinstance(opened.pixels, JpegPixels)
    ids = np.array([example.id for example in examples], object)
    images = Examples(opened.pixels, opened.rows, np.zeros(num_images, np.int32), ids)
    assert sum(len(labels) for _, labels in training_batches(images, 32, 0, 0)) == num_images
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, decoded_bytes


def test_memory_does_not_grow_with_the_images_of_a_set_of_100_times_the_limit(tmp_path):
    """Three times the images take as much: a few batches and chunks, and of each image the facts alone."""
    peak_memory(20, tmp_path)  # what is imported and cached once
    (few, _), (many, decoded_bytes) = peak_memory(270, tmp_path), peak_memory(810, tmp_path)
    assert (many - few) / 540 < 4_000 < 64 * 64 * 3
    assert many < decoded_bytes / 3
