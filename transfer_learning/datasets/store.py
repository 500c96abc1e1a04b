"""The decoded images of datasets: every content is decoded once, and its uint8 pixels are kept for every later run."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import PIL

from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.decode import Decoded, content_hash, decode
from transfer_learning.kept import KeptArrays, space_told

VERSION = 1  # a part of the pool's name: raise it when `decode` changes what it returns
CHUNK = 128  # images that are kept at a time, while as many again are decoded: what a kill loses and memory holds


@dataclass(frozen=True)
class Store:
    """Pixels and facts of the examples of a dataset."""

    pixels: np.ndarray  # uint8 (records, size, size, 3), RGB, read-only: of this dataset and of others
    rows: np.ndarray  # int64 (examples,), which of `pixels` is an example's; -1 where `problem` says why there is none
    facts: pd.DataFrame  # a row an example, in their order: sha256, width, height, problem
    decoding: str  # what else than its content decides the pixels of an image: size, way of resizing, versions


def open_store(
    dataset: Dataset, size: int, resize: str, cache_dir: str | Path,
    say: Callable[[str], None] = print, progress: Callable[[int, int], None] = lambda done, total: None,
) -> Store:  # fmt: skip
    """Opens the store of `dataset`; what no earlier run has decoded, of this dataset or another one, is decoded first.

    What cannot be decoded is not kept, so it is tried again each time: its reason may be gone.

    Args:
        size: side of the kept images in pixels.
        resize: how they become square, as `decode` takes it.
        cache_dir: folder of everything that is kept for later runs.
        say: takes the sentence that tells how many images are decoded, and those about damage.
        progress: called with the images decoded so far and how many are to be decoded.

    Raises:
        UserError: there is no space for the images, or their folder cannot be written.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # Pillow and hashlib work outside of Python's lock
        hashes = list(threads.map(content_hash, [example.content for example in dataset.examples]))
    # Examples of the same content share a record; one that cannot even be read has a name of its own.
    names = [digest or f"unreadable {index}" for index, digest in enumerate(hashes)]
    contents = {name: example.content for name, example in reversed(list(zip(names, dataset.examples, strict=True)))}
    distinct = list(dict.fromkeys(names))

    def writing(num_images: int):
        return space_told("The decoded images", num_images * size * size * 3, cache_dir)

    decoding = f"{size}-{resize}-{VERSION}-{PIL.__version__}"
    folder = Path(cache_dir) / "pixels" / decoding
    with writing(len(distinct)):
        kept = KeptArrays(folder, (size, size, 3), np.uint8, say)
    with kept:
        with writing(len(distinct)):
            found = zip(distinct, kept.positions(distinct).tolist(), kept.notes(distinct), strict=True)
        known = {name: (row, *map(int, note.split()), "") for name, row, note in found if row >= 0 and note}
        missing = {name: contents[name] for name in distinct if name not in known}
        if missing:
            num_kept = sum(name in known for name in names)
            say(f"Decoding {len(missing):,} images to {size} x {size} pixels; {num_kept:,} are kept from earlier runs.")
        done = 0
        for chunk in _decoded(missing, size, resize):
            with writing(len(missing) - done):
                known |= _write(kept, chunk)
            done += len(chunk)
            progress(done, len(missing))
        pixels = kept.array
    rows = np.array([known[name][0] for name in names], np.int64)
    facts = [(digest, *known[name][1:]) for digest, name in zip(hashes, names, strict=True)]
    facts = pd.DataFrame(facts, columns=["sha256", "width", "height", "problem"])
    return Store(pixels, rows, facts, decoding)


def _decoded(contents: dict[str, Path | np.ndarray], size: int, resize: str) -> Iterator[dict[str, Decoded]]:
    """Decodes `contents`, by their hashes, in threads; yields CHUNK of them while the next ones are decoded."""

    def decode_one(name: str) -> Decoded:
        image = decode(contents[name], size, resize)
        if not image.problem and content_hash(contents[name]) != name:
            return Decoded(None, 0, 0, "the file changed while it was read")  # and has another hash now
        return image

    names = list(contents)
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        coming = threads.map(decode_one, names[:CHUNK])
        for chunk, following in pairwise([*chunks, []]):
            images = dict(zip(chunk, coming, strict=True))
            coming = threads.map(decode_one, following)
            yield images


def _write(kept: KeptArrays, images: dict[str, Decoded]) -> dict[str, tuple[int, int, int, str]]:
    """Keeps the images without a problem; returns row (-1 where there is one), width, height and problem of each."""
    good = {name: image for name, image in images.items() if not image.problem}
    sizes = [f"{image.width} {image.height}" for image in good.values()]
    rows = kept.add(list(good), [image.pixels for image in good.values()], sizes) if good else []
    row = dict(zip(good, map(int, rows), strict=True))
    return {name: (row.get(name, -1), image.width, image.height, image.problem) for name, image in images.items()}
