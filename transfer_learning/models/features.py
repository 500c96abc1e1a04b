"""Activations: the outputs of the frozen part of a network, computed once per image and cached for later runs."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import keras
import numpy as np
import tensorflow as tf

from transfer_learning.cli.formatting import counted
from transfer_learning.cli.progress import count_progress
from transfer_learning.machine.device_memory import results
from transfer_learning.models.weights import weights_digest
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.cache_index import ACTIVATIONS, FEATURES, EntrySpec, describe_facts
from transfer_learning.storage.feature_store import FeatureStore
from transfer_learning.storage.rows import Rows

logger = logging.getLogger(__name__)

# Images per call of the network. Not the batch size of the run, because another number may change the last bits, and
# the activations of an image must not depend on which run computed them.
BATCH = 32
METHOD = "graph of constants, BatchNorm folded"  # part of the cache key: another method changes the last bits
DTYPE = "float32"  # of activations; 16 bits would halve the disk space and change the last bits
_architectures: WeakKeyDictionary[keras.Model, str] = WeakKeyDictionary()  # as JSON, which takes as long as the digest
BYTES_PER_WRITE = 32e6  # at most this is lost when a run is killed; each write waits for the disk


class FrozenPart(NamedTuple):
    """The layers below the cut, and the cache entry of their outputs."""

    entry: EntrySpec
    compute: Callable[[tf.Tensor], tf.Tensor]  # float32 images (BATCH, size, size, 3) -> activations (BATCH, ...)


class NamedImages(NamedTuple):
    """n images, each with a name that decides the pixels that the network sees."""

    pixels: Rows  # uint8 (records, size, size, 3)
    rows: np.ndarray  # int64 (n,), positions in `pixels`; some may repeat
    names: Sequence[str]  # n of them, as the SHA-256 of the file
    augment: Callable[[np.ndarray, list[str]], tf.Tensor] | None = None  # a full batch and its names -> float32


def activations_entry(network: keras.Model, key: str, backbone: str, image_size: int) -> EntrySpec:
    """The cache entry for the outputs of `network`.

    Args:
        network: none of its layers trains; images float32 (n, size, size, 3) -> activations (n, ...).
        key: what activations depend on besides the pixels and `network`: precision and versions.
        backbone: its name; with `image_size`, for listing and finding the entry.

    Returns:
        An entry of the kind FEATURES for outputs (n, width) of the pooling, else ACTIVATIONS.
    """
    shape = tuple(network.output_shape[1:])
    kind = FEATURES if len(shape) == 1 else ACTIVATIONS
    if network not in _architectures:
        # Keras numbers unnamed inputs of nested models, as in ConvNeXt, per process.
        architecture = re.sub(r"\binput_layer(_\d+)?\b", "input_layer", network.to_json())
        # What another phase trains does not matter.
        _architectures[network] = architecture.replace('"trainable": true', '"trainable": false')
    all_keys = json.dumps([key, _architectures[network], weights_digest(network.weights), METHOD, DTYPE, BATCH])
    name = hashlib.sha256(all_keys.encode()).hexdigest()[:32]
    return EntrySpec(kind, name, shape, DTYPE, {"backbone": backbone, "image_size": image_size})


class ComputedActivations:
    """Activations (n, ...) that are computed at each access, with the same bits as those of `cached_activations`.

    Any number of threads may read at once.
    """

    dtype = np.dtype(DTYPE)

    def __init__(self, frozen: FrozenPart, images: NamedImages):
        assert frozen.entry.shape is not None
        self.shape = len(images.names), *frozen.entry.shape
        self._frozen, self._images = frozen, images

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """Returns float32 (k, ...) for integers (k,)."""
        none = np.empty((0, *self.shape[1:]), self.dtype)
        return np.concatenate([none, *_computed(self._frozen, self._images, positions)])


def cached_activations(frozen: FrozenPart, images: NamedImages, cache: Cache) -> tuple[Rows, np.ndarray]:
    """Returns the activations of `images`; computes those that are not in the cache and stores them there.

    Batches are always full, the last one padded with zeros, and hold the missing images in the order of their first
    appearance. Whole batches are stored, so a killed computation continues with the batches of an uninterrupted one.

    Returns:
        Activations, float32 (records, ...), read-only; and the position of each image in them, int64 (n,).

    Raises:
        NoSpace: neither disk nor memory has room for the activations; `ComputedActivations` need none.
    """
    entry = frozen.entry
    num_images = len(images.names)
    first = dict(zip(reversed(images.names), reversed(range(num_images)), strict=True))  # position of each name
    distinct = list(dict.fromkeys(images.names))

    def writing(count: int):
        return cache.disk_full_as_user_error(entry.describe(), count * entry.record_bytes)

    with writing(len(distinct)):
        cached = cache.open(entry)
    with cached:
        with writing(len(distinct)):
            position = dict(zip(distinct, cached.positions(distinct).tolist(), strict=True))
        missing = [name for name in distinct if position[name] < 0]
        if missing and cache.store and entry.kind == FEATURES:
            with writing(len(missing)):
                position |= _copy_from_store(cache, entry, cached, set(missing))
            missing = [name for name in distinct if position[name] < 0]
        if missing:
            logger.info(
                f"Computing the {entry.kind} of {counted(len(missing), 'image')} ({describe_facts(entry.facts)}); "
                f"{len(distinct) - len(missing):,} are in the cache."
            )
            cache.reserve(cached, len(missing) * entry.record_bytes)
        elif distinct:
            logger.info(
                f"The {entry.kind} of {counted(len(distinct), 'image')} ({describe_facts(entry.facts)}) are in the cache."
            )
        progress = count_progress(f"Computing {entry.kind}")
        computed: list[np.ndarray] = []
        done = 0
        for batch in _computed(frozen, images, np.array([first[name] for name in missing], np.int64)):
            computed.extend(batch)
            done += len(batch)
            if len(computed) * entry.record_bytes >= BYTES_PER_WRITE or done == len(missing):
                names, num_left = missing[done - len(computed) : done], len(missing) - done + len(computed)
                with writing(num_left):
                    added = cached.add(names, computed, needed_bytes=num_left * entry.record_bytes)
                position |= zip(names, added.tolist(), strict=True)
                computed = []
            progress(done, len(missing))
        return cast(Rows, cached.rows), np.array([position[name] for name in images.names], np.int64)


def _copy_from_store(cache: Cache, entry: EntrySpec, cached: ArrayCache, missing: set[str]) -> dict[str, int]:
    """Adds what the feature store has of the `missing` to `cached`; returns the positions."""
    cache.reserve(cached, len(missing) * entry.record_bytes)
    found: dict[str, int] = {}
    for keys, features in FeatureStore(cache.store).shards(entry):
        wanted = [row for row, key in enumerate(keys) if key in missing and key not in found]
        names = [keys[row] for row in wanted]
        found |= zip(names, cached.add(names, list(features[wanted])).tolist(), strict=True)
        if len(found) == len(missing):
            break
    logger.info(f"Copied the features of {len(found):,} of {len(missing):,} images from {cache.store}.")
    return found


def _computed(frozen: FrozenPart, images: NamedImages, positions: np.ndarray) -> Iterator[np.ndarray]:
    """Yields activations float32 (k, ...) of up to BATCH images at a time; those of one do not depend on the others."""

    def steps() -> Iterator[tuple[tf.Tensor]]:
        for start in range(0, len(positions), BATCH):
            part = positions[start : start + BATCH]
            pixels = images.pixels[images.rows[part]]
            batch = np.zeros((BATCH, *pixels.shape[1:]), pixels.dtype)
            batch[: len(pixels)] = pixels
            if images.augment is not None:
                names = [images.names[position] for position in part]
                batch = images.augment(batch, names + names[-1:] * (BATCH - len(names)))
            yield (frozen.compute(tf.cast(batch, tf.float32))[: len(pixels)],)

    for (activations,) in results(steps()):
        yield activations.astype(DTYPE, copy=False)
