"""The decoded images of a dataset: every file is looked at once, and its uint8 pixels are kept in a memory-mapped file."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import PIL

from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.decode import content_hash, decode
from transfer_learning.errors import UserError
from transfer_learning.files import written_atomically

VERSION = 1  # a part of the key: raise it when `decode` changes what it returns


@dataclass(frozen=True)
class Store:
    """Pixels and facts of the examples of a dataset, in their order."""

    pixels: np.ndarray  # uint8 (examples, size, size, 3), RGB, read-only; black where `problem` says why
    facts: pd.DataFrame  # a row an example: sha256, width, height, problem
    key: str  # changes with any image's content, the order, the size and the way of resizing


def open_store(
    dataset: Dataset, size: int, resize: str, cache_dir: str | Path, say: Callable[[str], None] = print
) -> Store:
    """Opens the store of `dataset`, which is made first where no earlier run on the same images left it.

    Args:
        size: side of the kept images in pixels.
        resize: how they become square, as `decode` takes it.
        cache_dir: folder of the stores of all datasets.
        say: takes the sentence that tells whether images were decoded.

    Raises:
        UserError: there is no space for the store, or its folder cannot be written.
    """
    contents = [example.content for example in dataset.examples]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow and hashlib work outside of Python's lock
        hashes = list(pool.map(content_hash, contents))
        key = _key(hashes, size, resize)
        pixels_file, facts_file = (Path(cache_dir) / "pixels" / f"{key}{suffix}" for suffix in (".npy", ".csv"))
        if not (pixels_file.exists() and facts_file.exists()):
            say(f"Decoding {len(contents):,} images to {size} x {size} pixels, once for this and every later run.")
            decoded = pool.map(lambda content: decode(content, size, resize), contents)
            try:
                _write(pixels_file, facts_file, hashes, decoded, size)
            except OSError as error:
                needed = -(-len(contents) * size * size * 3 // 10**6)
                raise UserError(
                    f"The decoded images need {needed:,} MB in {cache_dir}, which cannot be written ({error.strerror}); "
                    "free some space, or name another folder with --cache-dir."
                ) from None
    facts = pd.read_csv(facts_file, dtype={"sha256": str, "problem": str}, keep_default_na=False)
    return Store(np.load(pixels_file, mmap_mode="r"), facts, key)


def _key(hashes: Iterable[str], size: int, resize: str) -> str:
    return hashlib.sha256("\n".join([f"{VERSION} {PIL.__version__} {size} {resize}", *hashes]).encode()).hexdigest()[:32]


def _write(pixels_file: Path, facts_file: Path, hashes: list[str], decoded: Iterable, size: int) -> None:
    facts = []
    black = np.zeros((size, size, 3), np.uint8)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(hashes), size, size, 3)}
    # Not through a memory map: a full disk would end the process by a signal, without a word.
    with written_atomically(pixels_file) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for digest, image in zip(hashes, decoded, strict=True):
            file.write((black if image.pixels is None else image.pixels).tobytes())
            facts.append((digest, image.width, image.height, image.problem))
    with written_atomically(facts_file) as temporary:
        pd.DataFrame(facts, columns=["sha256", "width", "height", "problem"]).to_csv(temporary, index=False)
