"""What the frozen part of a network makes of each image: computed once, and kept for every later run."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from transfer_learning.cli.progress import count_progress
from transfer_learning.models.weights import weights_digest
from transfer_learning.storage.array_cache import CachedRows
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.cache_index import ACTIVATIONS, FEATURES, EntrySpec, describe_facts

logger = logging.getLogger(__name__)

# Images that go through the network at a time. Not the batch size of the run: another one may change the last bits of
# the activations, and those of an image must not depend on which run computed them first.
BATCH = 32
METHOD = "graph of constants, BatchNorm folded"  # another one changes the last bits, so it must not find these
DTYPE = "float32"  # of what the network computes; 16 bits would halve the disk and change the last bits
BYTES_KEPT_AT_ONCE = 32e6  # what a kill loses at most; each keeping waits for the disk


def activations_entry(network: keras.Model, key: str, backbone: str, image_size: int) -> EntrySpec:
    """The cache entry for the output of `network` for images.

    Args:
        network: no layer of it trains; images float32 (n, size, size, 3) -> activations (n, ...).
        key: what activations depend on besides the pixels and `network` itself: precision and versions.
        backbone: name of the backbone that `network` belongs to; with `image_size`, for listing and finding the entry.

    Returns:
        Its kind is FEATURES behind the pooling, else ACTIVATIONS.
    """
    shape = tuple(network.output_shape[1:])
    kind = FEATURES if len(shape) == 1 else ACTIVATIONS
    all_keys = json.dumps([key, network.to_json(), weights_digest(network.weights), METHOD, DTYPE, BATCH])
    name = hashlib.sha256(all_keys.encode()).hexdigest()[:32]
    return EntrySpec(kind, name, shape, DTYPE, {"backbone": backbone, "image_size": image_size})


class ComputedActivations:
    """Activations that are computed whenever they are read, to the bits that `cached_activations` keeps.

    It is indexed by positions in `names`; arguments as there. Any number of threads may read at once.
    """

    dtype = np.dtype(DTYPE)

    def __init__(self, activations: EntrySpec, compute, images, rows: np.ndarray, names: Sequence[str], change=None):
        self.shape = len(names), *activations.shape
        self._compute, self._images, self._rows, self._names, self._change = compute, images, rows, names, change

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """Returns (k, ...) for int64 (k,)."""
        results = np.empty((len(positions), *self.shape[1:]), self.dtype)
        for start in range(0, len(positions), BATCH):
            part = positions[start : start + BATCH]
            names = [self._names[position] for position in part]
            results[start : start + BATCH] = _batch(self._compute, self._images[self._rows[part]], names, self._change)
        return results


def cached_activations(
    activations: EntrySpec,
    compute: Callable[[tf.Tensor], tf.Tensor],
    images,
    rows: np.ndarray,
    names: Sequence[str],
    cache: Cache,
    change: Callable[[np.ndarray, list[str]], tf.Tensor] | None = None,
) -> tuple[CachedRows, np.ndarray]:
    """Returns what `compute` makes of ``images[rows]``; an image is computed unless an earlier run kept the result.

    Every batch is full, the last one filled up with zeros, and is made of the missing images in the order of their
    first appearance; whole batches are kept, so a killed extraction goes on with the batches of an unbroken one.

    Args:
        compute: float32 images (BATCH, size, size, 3) -> activations (BATCH, ...), see `inference_graph`.
        images: uint8 (records, size, size, 3).
        rows: int64 (n,), which of `images`; some may repeat.
        names: of the n images: what decides the pixels that the network sees, as their contents' hash.
        cache: where activations are found and stored.
        change: of a batch of `images` and their names, to what the network shall see of them, float32; None: as stored.

    Returns:
        Activations, float32 (records, ...), read-only; and their positions, int64 (n,), in the order of `rows`.

    Raises:
        NoSpace: for the activations, neither on disk nor in memory; `ComputedActivations` need none.
    """
    kind, of_network = activations.kind, f"images ({describe_facts(activations.facts)})"
    row = dict(zip(reversed(names), np.asarray(rows)[::-1].tolist(), strict=True))  # of the first of equal names
    distinct = list(dict.fromkeys(names))

    def writing(num_images: int):
        return cache.disk_full_as_user_error(activations.describe(), num_images * activations.record_bytes)

    with writing(len(distinct)):
        kept = cache.open(activations)
    with kept:
        with writing(len(distinct)):
            position = dict(zip(distinct, kept.positions(distinct).tolist(), strict=True))
        missing = [name for name in distinct if position[name] < 0]
        if missing:
            logger.info(
                f"Computing the {kind} of {len(missing):,} {of_network} once, since frozen layers make the same of them "
                f"in every epoch; {len(distinct) - len(missing):,} are kept from earlier runs."
            )
            cache.reserve(kept, len(missing) * activations.record_bytes)
        elif distinct:
            logger.info(f"The {kind} of {len(distinct):,} {of_network} are kept from earlier runs.")
        progress, computed = count_progress(f"Computing {kind}"), []
        for start in range(0, len(missing), BATCH):
            batch_names = missing[start : start + BATCH]
            batch = images[np.array([row[name] for name in batch_names])]
            computed.extend(_batch(compute, batch, batch_names, change))
            done = start + len(batch)
            if len(computed) * activations.record_bytes >= BYTES_KEPT_AT_ONCE or done == len(missing):
                keys, num_left = missing[done - len(computed) : done], len(missing) - done + len(computed)
                with writing(num_left):
                    added = kept.add(keys, computed, needed_bytes=num_left * activations.record_bytes)
                position |= zip(keys, added.tolist(), strict=True)
                computed = []
            progress(done, len(missing))
        return kept.rows, np.array([position[name] for name in names], np.int64)


def _batch(compute, images: np.ndarray, names: list[str], change) -> np.ndarray:
    """What `compute` makes of at most BATCH images; an image's result hangs on nothing that stands beside it."""
    filled = np.zeros((BATCH, *images.shape[1:]), images.dtype)
    filled[: len(images)] = images
    if change is not None:
        filled = change(filled, names + names[-1:] * (BATCH - len(names)))
    return compute(tf.cast(filled, tf.float32)).numpy()[: len(images)].astype(DTYPE)
