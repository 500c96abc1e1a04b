"""A sample of a dataset: how many of its images are cached already, and how fast the others are decoded."""

import math
import time
from typing import NamedTuple

import numpy as np

from transfer_learning.datasets.dataset import Dataset, Source
from transfer_learning.datasets.decoding.decode import content_hash
from transfer_learning.datasets.decoding.pixel_cache import pixel_format
from transfer_learning.datasets.decoding.workers import DecodeWorkers
from transfer_learning.machine.resources import usable_cores
from transfer_learning.storage.cache import Cache

NUM_IMAGES = 64
SECONDS = 0.3  # of decoding; at least one image per core
SECONDS_PER_IMAGE = 5  # slower ones are not measured


class Sample(NamedTuple):
    """Estimates for a dataset from a sample of its images."""

    hashes: list[str]  # SHA-256 of the readable images of the sample
    missing_fraction: float  # 0 to 1, of images that are not in the cache
    images_per_second: float  # decoded by all cores; infinite if none is missing
    record_bytes: int  # bytes per cached image
    pixel_key: str  # see `CachedImages`


def sample_dataset(dataset: Dataset, size: int, resize: str, cache: Cache, decoded_gb: float) -> Sample:
    """Looks up images spread evenly over the dataset, and decodes some of them to measure the speed."""
    sources = [example.source for example in dataset.examples[:: max(1, math.ceil(len(dataset.examples) / NUM_IMAGES))]]
    readable = {hashed: source for source in sources if (hashed := content_hash(source))}
    hashes = list(readable)
    stored = pixel_format(len(dataset.examples), size, resize, decoded_gb)
    missing = 1.0 - max(cache.cached_fraction(entry, hashes) for entry in (stored.entry, stored.facts_entry))
    rate = _rate(list(readable.values()), size, resize) if missing else np.inf
    record_bytes = min(stored.record_bytes, int(cache.limit_gb * 1e9 / max(1, len(dataset.examples))))
    return Sample(hashes, missing, rate, record_bytes, stored.entry.name)


def _rate(sources: list[Source], size: int, resize: str) -> float:
    """Images per second, decoded as `cached_images` does."""
    cores, num_decoded = usable_cores(), 0
    with DecodeWorkers(size, resize, seconds=SECONDS_PER_IMAGE) as workers:
        workers.map(sources[:cores])  # starts the processes
        started = time.monotonic()
        for start in range(0, len(sources), cores):
            num_decoded += len(workers.map(sources[start : start + cores]))
            if time.monotonic() - started > SECONDS:
                break
        return max(1, num_decoded) / max(1e-9, time.monotonic() - started)
