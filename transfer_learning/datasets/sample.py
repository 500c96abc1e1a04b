"""A few images of a dataset, looked at before all of them: how many are decoded already, and how fast the others are."""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.decode import content_hash, decode
from transfer_learning.datasets.decode_worker import usable_cores
from transfer_learning.datasets.store import POOLS, how_kept
from transfer_learning.kept import share_kept

NUM_IMAGES = 64
SECONDS = 0.3  # of decoding; at least one image


class Sample(NamedTuple):
    """What a sample tells of its dataset."""

    hashes: list[str]  # of the images that can be read
    missing: float  # share of the images that no earlier run has decoded
    rate: float  # images decoded in a second, by all processors
    record_bytes: int  # that a decoded image takes on disk
    decoding: str  # see `Store`


def look_at_sample(dataset: Dataset, size: int, resize: str, cache_dir: str | Path, decoded_gb: float) -> Sample:
    """Looks at images spread evenly over the dataset; decodes some of them only to measure how long that takes."""
    step = max(1, len(dataset.examples) // NUM_IMAGES)
    contents = [example.content for example in dataset.examples[::step]]
    hashes = [hashed for hashed in map(content_hash, contents) if hashed]
    kept = how_kept(len(dataset.examples), size, resize, decoded_gb)
    shape = None if kept.as_jpeg else (size, size, 3)
    missing = 1.0 - share_kept(Path(cache_dir) / POOLS / kept.decoding, shape, np.uint8, hashes)
    rate = _rate(contents, size, resize) if missing else np.inf
    return Sample(hashes, missing, rate, kept.record_bytes, kept.decoding)


def _rate(contents: list[Path | np.ndarray], size: int, resize: str) -> float:
    started, num_decoded = time.monotonic(), 0
    for content in contents:
        decode(content, size, resize)
        num_decoded += 1
        if time.monotonic() - started > SECONDS:
            break
    return num_decoded / (time.monotonic() - started) * usable_cores()
