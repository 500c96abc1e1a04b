"""Features of a dataset computed by many workers: shards of its manifest are tasks of Ray, which write to a shared store.

A shard is a pure function of its rows of the manifest, so it does not matter who computes it, or how often.
"""

import logging
import math
import os
import socket
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transfer_learning.cli.progress import count_progress
from transfer_learning.config import RunConfig
from transfer_learning.datasets.dataset import Dataset, Example, FilePart, Source
from transfer_learning.datasets.decoding.pixel_cache import cached_images, pixel_format
from transfer_learning.datasets.decoding.value_range import values_in
from transfer_learning.datasets.prepared import load_dataset_of
from transfer_learning.errors import UserError, WorkerLost
from transfer_learning.machine.ray_cluster import PerWorker, joined_cluster
from transfer_learning.machine.resources import usable_cores
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.feature_store import FeatureStore
from transfer_learning.storage.object_store import is_address

logger = logging.getLogger(__name__)

SHARD = 8192  # images; 42 MB of 1,280 features each
RETRIES = 10  # of a shard whose worker or node is lost
STALLED_SECONDS = 3600.0  # without a finished shard


class Shard(NamedTuple):
    """What one task computes."""

    config: RunConfig
    manifest: str
    num_images: int  # in the whole manifest
    number: int
    size: int


class Written(NamedTuple):
    """What one task has done."""

    entry: str  # the name of the cache entry
    host: str
    is_new: bool
    num_unreadable: int


def extract_features(config: RunConfig, workers: int, per_worker: PerWorker, address: str) -> int:
    """Computes the features of a dataset into ``config.feature_store``; what it holds already stays.

    Args:
        config: its folders are those of all nodes.
        workers: tasks at a time.
        address: of a Ray cluster; "" for this machine alone.

    Returns:
        The number of images that cannot be read.

    Raises:
        UserError: images that tasks cannot read or that depend on others; workers that compute other bits; a store that
            cannot be used.
        WorkerLost: workers were lost more often than RETRIES, or have finished nothing for STALLED_SECONDS.
    """
    store, dataset = FeatureStore(config.feature_store), load_dataset_of(config)
    manifest = store.write_manifest([_manifest_row(example) for example in dataset.examples], SHARD)
    count = len(dataset.examples)
    shards = [Shard(config, manifest, count, number, SHARD) for number in range(math.ceil(count / SHARD))]
    logger.info(f"Computing the features of {count:,} images in {len(shards):,} shards into {store.place}.")
    done: list[Written] = []
    progress = count_progress("Computing features")
    with joined_cluster(address, num_cpus=0 if address else workers * per_worker.cpus):
        for written in _computed(shards, workers, per_worker):
            done.append(written)
            if written.entry != done[0].entry:
                raise UserError(
                    f"{written.host} computes other bits than {done[0].host}, because it has another processor, GPU or "
                    "version of a package; give all workers the same."
                )
            progress(len(done), len(shards))
    num_new, num_unreadable = sum(one.is_new for one in done), sum(one.num_unreadable for one in done)
    logger.info(f"Wrote {num_new:,} shards; {len(done) - num_new:,} were there.")
    return num_unreadable


def _manifest_row(example: Example) -> tuple[str, str, int, int]:
    match example.source:
        case Path():
            return example.id, str(example.source.absolute()), 0, -1
        case FilePart() as part:
            file = part.file if isinstance(part.file, str) else str(part.file.absolute())
            return example.id, file, part.offset, part.length
    raise UserError("--workers needs images in files, and those of this dataset are in one array; leave it out.")


def _computed(shards: list[Shard], workers: int, per_worker: PerWorker):
    """Yields what was written, while at most `workers` tasks compute."""
    import ray

    threads = os.environ.get("TF_NUM_INTRAOP_THREADS") or str(usable_cores())  # as a run on this machine
    compute = ray.remote(
        num_cpus=per_worker.cpus,
        num_gpus=per_worker.gpus,
        max_retries=RETRIES,
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": {"TF_NUM_INTRAOP_THREADS": threads}},
    )(compute_shard)
    waiting = list(reversed(shards))
    tasks: list[Any] = []
    while waiting or tasks:
        while waiting and len(tasks) < workers:
            tasks.append(compute.remote(waiting.pop()))
        finished, tasks = ray.wait(tasks, timeout=STALLED_SECONDS)
        if not finished:
            raise WorkerLost(f"No shard was finished within {STALLED_SECONDS:g} s; see `ray status`, then try again.")
        try:
            yield ray.get(finished[0])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:300]
            raise WorkerLost(
                f"A shard was lost with its worker {RETRIES} times ({reason}); try again: finished shards stay."
            ) from None


def compute_shard(shard: Shard) -> Written:
    """The task: computes the features of some images, unless the store has them."""
    from transfer_learning.models.features import NamedImages, cached_activations

    config, store = shard.config, FeatureStore(shard.config.feature_store)
    pixels = pixel_format(shard.num_images, config.stored_size, config.resize, config.decoded_gb)
    frozen = _network(config)(pixels.entry.name)
    name = f"{Path(shard.manifest).stem}-{shard.number:08}"
    if store.has_shard(frozen.entry, name):
        return Written(frozen.entry.name, socket.gethostname(), False, 0)
    rows = store.manifest_rows(shard.manifest, shard.number, shard.size)
    examples = tuple(Example(row.id, "", "", _source(row)) for row in rows.itertuples())
    decoded_gb = config.decoded_gb * len(examples) / shard.num_images  # cached in the form of them all
    dataset = Dataset(config.dataset, (), examples)
    images = cached_images(dataset, config.stored_size, config.resize, Cache.of(config), decoded_gb, {})
    for example, remarks in zip(examples, images.facts["remarks"], strict=True):
        if values_in(remarks):
            raise UserError(
                f"{example.id} has more than 8 bits, and such values are scaled by those of all images; leave --workers out."
            )
    readable = np.flatnonzero(images.rows >= 0)
    hashes = images.facts["sha256"].iloc[readable].tolist()
    named = NamedImages(images.pixels, images.rows[readable], hashes)
    activations, positions = cached_activations(frozen, named, replace(Cache.of(config), store=""))
    position_of = dict(zip(hashes, positions.tolist(), strict=True))
    features = np.asarray(activations[np.array(list(position_of.values()), np.int64)])
    store.write_shard(frozen.entry, name, list(position_of), features)
    return Written(frozen.entry.name, socket.gethostname(), True, len(examples) - len(readable))


def _source(row: Any) -> Source:
    if row.length < 0:
        return Path(row.file)
    return FilePart(row.file if is_address(row.file) else Path(row.file), int(row.offset), int(row.length))


@cache  # for all tasks of a process
def _network(config: RunConfig):
    """The frozen layers, by the key of the pixels; see `frozen_features`."""
    from transfer_learning.training.phase_inputs import frozen_features

    return frozen_features(config, ("0", "1"))[0]
