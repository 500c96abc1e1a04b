"""A few images of a dataset, looked at before all of them: how many are decoded already, and how fast the others are."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from transfer_learning.datasets.dataset import Dataset, Source
from transfer_learning.datasets.decoding.decode import content_hash, decode
from transfer_learning.datasets.decoding.pixel_cache import pixel_format
from transfer_learning.datasets.decoding.workers import DecodeWorkers
from transfer_learning.machine.resources import usable_cores
from transfer_learning.storage.cache import Cache

NUM_IMAGES = 64
SECONDS = 0.3  # of decoding; at least one image a processor
SECONDS_PER_IMAGE = 5  # one that takes longer is none to measure by


class Sample(NamedTuple):
    """What a sample tells of its dataset."""

    hashes: list[str]  # of the images that can be read
    missing_fraction: float  # share of the images that no earlier run has decoded
    images_per_second: float  # images decoded in a second, by all processors
    record_bytes: int  # that a decoded image takes on disk
    pixel_key: str  # see `CachedImages`


def sample_dataset(dataset: Dataset, size: int, resize: str, cache: Cache, decoded_gb: float) -> Sample:
    """Looks at images spread evenly over the dataset; decodes some of them only to measure how long that takes."""
    sources = [example.source for example in dataset.examples[:: -(-len(dataset.examples) // NUM_IMAGES) or 1]]
    readable = {hashed: source for source in sources if (hashed := content_hash(source))}
    hashes = list(readable)
    stored = pixel_format(len(dataset.examples), size, resize, decoded_gb)
    missing = 1.0 - cache.cached_fraction(stored.entry, hashes)
    rate = _rate(list(readable.values()), size, resize) if missing else np.inf
    return Sample(hashes, missing, rate, stored.record_bytes, stored.entry.name)


def _rate(sources: list[Source], size: int, resize: str) -> float:
    """Decodes as the store does: files in processes of their own, arrays in this one."""
    cores, num_decoded = usable_cores(), 0
    with DecodeWorkers(size, resize, seconds=SECONDS_PER_IMAGE) as workers, ThreadPoolExecutor(cores) as threads:

        def decode_one(source: Source) -> None:
            if isinstance(source, np.ndarray):
                decode(source, size, resize)
            else:
                workers.decode(source)

        list(threads.map(decode_one, sources[:cores]))  # starts the processes
        started = time.monotonic()
        for start in range(0, len(sources), cores):
            num_decoded += len(list(threads.map(decode_one, sources[start : start + cores])))
            if time.monotonic() - started > SECONDS:
                break
        return max(1, num_decoded) / max(1e-9, time.monotonic() - started)
