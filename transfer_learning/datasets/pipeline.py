"""Batches for training and prediction, as pure functions of (seed, epoch, position): there is no state to save.

The order of an epoch is a permutation drawn from (seed, epoch); a resumed epoch continues in the same permutation.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import cast

import numpy as np
import pandas as pd
import tensorflow as tf

from transfer_learning.datasets.augmentation import AUGMENTATIONS, apply, draw
from transfer_learning.datasets.dataset import UNSEEN
from transfer_learning.datasets.mixing import mixed_labels
from transfer_learning.errors import UserError
from transfer_learning.machine.device_memory import DeviceRows
from transfer_learning.storage.rows import Rows

BATCHES_AHEAD = 2  # read while one is in use
Batch = tuple[np.ndarray | tf.Tensor, np.ndarray | tf.Tensor]  # inputs, labels int32 (batch,)


@dataclass(frozen=True)
class Share:
    """The part of each batch that one of several workers reads: consecutive examples, as many as each other worker, or one
    fewer.
    """

    index: int
    count: int  # of workers
    batch_size: int  # of all of them together

    def of(self, positions: np.ndarray, with_next: bool) -> np.ndarray:
        """Those of `positions`, (n,) in one or more batches; `with_next`: also the one that follows in the batch."""
        parts = []
        for start in range(0, len(positions), self.batch_size):
            batch = positions[start : start + self.batch_size]
            first, end = (number * len(batch) // self.count for number in (self.index, self.index + 1))
            parts.append(batch[np.arange(first, end + with_next) % len(batch)])
        return np.concatenate(parts)


@dataclass(frozen=True)
class Examples:
    """The examples of one split."""

    inputs: Rows  # (records, ...): uint8 images (size, size, 3), or activations
    rows: np.ndarray  # int64 (n,), rows of `inputs`; or (copies, n) for augmented copies, one per epoch
    labels: np.ndarray  # int32 (n,), positions in the class names; -1 for unseen classes
    ids: np.ndarray  # object (n,), strings
    share: Share | None = None  # of each batch that is trained on; None: all of it
    device: str | None = None  # to which batches are copied ahead of their use; None: that is left to TensorFlow

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, positions: np.ndarray) -> "Examples":
        """The examples at these positions, with all of their copies."""
        rows, labels, ids = self.rows[..., positions], self.labels[positions], self.ids[positions]
        return Examples(self.inputs, rows, labels, ids, device=self.device)

    def joined(self, other: "Examples") -> "Examples":
        """These examples, then the `other` ones, which have the same inputs; of neither there are copies."""
        rows, labels = (np.concatenate(pair) for pair in ((self.rows, other.rows), (self.labels, other.labels)))
        return replace(self, rows=rows, labels=labels, ids=np.concatenate([self.ids, other.ids]))

    def on_device(self, inputs: DeviceRows, held: np.ndarray) -> "Examples":
        """The same with `inputs`, of which each row is that of `held`, sorted, in the inputs so far."""
        return replace(self, inputs=cast(Rows, inputs), rows=np.searchsorted(held, self.rows), device=inputs.device)

    @cached_property
    def keys(self) -> np.ndarray:
        """uint64 (n,), `key_of` each id."""
        return np.fromiter(map(key_of, self.ids), np.uint64, len(self))

    def in_epoch(self, epoch: int) -> "Examples":
        """The copies for `epoch`; each example uses all of its copies in turn, shifted from example to example."""
        return self.in_copy(epoch + np.arange(len(self)))

    def in_copy(self, numbers: int | np.ndarray) -> "Examples":
        """The copy of that number of each example, modulo the number of copies."""
        if self.rows.ndim == 1:
            return self
        return replace(self, rows=self.rows[numbers % len(self.rows), np.arange(len(self))])


def examples_of_split(
    manifest: pd.DataFrame, split: str, class_names: tuple[str, ...], inputs: Rows, rows: np.ndarray
) -> Examples:
    """The examples of the manifest in `split`, in its order: `rows`, int64 (rows of the manifest,), are rows of
    `inputs`, uint8 images (records, size, size, 3).
    """
    positions = np.flatnonzero(manifest["split"] == split)
    number = {name: index for index, name in enumerate(class_names)}
    chosen = manifest.iloc[positions]
    labels = chosen["label"].map(number)
    if split == UNSEEN:
        labels = labels.fillna(-1)  # not a class of the model
    labels = labels.to_numpy(np.int32)
    return Examples(inputs, rows[positions], labels, chosen["id"].to_numpy(object))


def order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of the examples in `epoch`, a permutation int64 (num_examples,)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_examples)


def training_batches(
    examples: Examples,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    augmentation: str = "none",
    flip: bool = True,
) -> Iterable[Batch]:
    """The batches of an epoch without its first `start` images; the last may be short.

    Inputs are as stored, or float32 images in 0..255 where `augmentation` is not "none". Labels are int32 (n,), or what
    `mixed_labels` returns where it mixes images.
    """
    examples = examples.in_epoch(epoch)
    chosen = order(len(examples), seed, epoch)[start:]
    if augmentation == "none":
        return _batches(examples, chosen, batch_size)
    keys = examples.keys
    size = examples.inputs.shape[1]
    # An image is mixed with the next one of the batch, which then is read, too.
    num_more = 1 if examples.share and AUGMENTATIONS[augmentation].share else 0

    errors: list[Exception] = []  # which TensorFlow turns into texts

    def gather_and_draw(positions: np.ndarray) -> tuple[np.ndarray, ...]:
        if examples.share:
            positions = examples.share.of(positions, bool(num_more))
        parameters = draw(augmentation, flip, seed, epoch, keys[positions], size)
        try:
            return examples.inputs[examples.rows[positions]], examples.labels[positions], parameters
        except UserError as error:
            errors.append(error)
            raise

    if isinstance(examples.inputs, DeviceRows):  # the device augments them, too
        augmented = _compiled_augment(augmentation, num_more)
        parts = (chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size))
        return _ahead((augmented(*gather_and_draw(positions)) for positions in parts), examples.device)

    @tf.autograph.experimental.do_not_convert  # it has nothing to convert
    def read_and_augmented(positions: tf.Tensor) -> Batch:
        types = (tf.uint8, tf.int32, tf.float32)
        images, labels, parameters = tf.numpy_function(gather_and_draw, [positions], types, stateful=False)
        images.set_shape((None, *examples.inputs.shape[1:]))
        labels.set_shape((None,))
        parameters.set_shape((None, None))
        return _augment(augmentation, num_more, images, labels, parameters)

    batches = tf.data.Dataset.from_tensor_slices(chosen).batch(batch_size)
    read = _raising(errors, batches.map(read_and_augmented, num_parallel_calls=2).prefetch(BATCHES_AHEAD))
    return _ahead(read, examples.device) if examples.device else read


def _raising(errors: list[Exception], batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches; raises the first of `errors` for TensorFlow's error about it."""
    try:
        yield from batches
    except tf.errors.OpError:
        if errors:
            raise errors[0] from None
        raise


def _augment(kind: str, num_more: int, images: tf.Tensor, labels: tf.Tensor, parameters: tf.Tensor) -> Batch:
    """Changes and mixes all but the last `num_more` images of a batch."""
    of_mixture = AUGMENTATIONS[kind].share
    images = apply(kind, images, parameters)
    labels = mixed_labels(labels, of_mixture(parameters)) if of_mixture else labels
    num_images = tf.shape(images)[0] - num_more
    return images[:num_images], labels[:num_images]


@cache
def _compiled_augment(kind: str, num_more: int) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Batch]:
    return tf.function(partial(_augment, kind, num_more), autograph=False, reduce_retracing=True)


def batches_in_order(examples: Examples, batch_size: int) -> Iterable[Batch]:
    """All examples once, in their order; the last batch may be short."""
    return _batches(replace(examples, share=None), np.arange(len(examples)), batch_size)


def _batches(examples: Examples, chosen: np.ndarray, batch_size: int) -> Iterator[Batch]:
    def gather(start: int) -> Batch:
        positions = chosen[start : start + batch_size]
        if examples.share:
            positions = examples.share.of(positions, False)
        return examples.inputs[examples.rows[positions]], examples.labels[positions]

    return _ahead(map(gather, range(0, len(chosen), batch_size)), examples.device)


def _ahead(batches: Iterator[Batch], device: str | None) -> Iterator[Batch]:
    """Reads ahead in a thread, four times as fast as tf.data, which copies arrays of Python twice; and copies to `device`."""

    def read() -> Batch | None:
        with tf.device(device):
            batch = next(batches, None)
            return batch and (tf.identity(batch[0]), tf.identity(batch[1])) if device else batch

    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(read) for _ in range(BATCHES_AHEAD))
        while batch := coming.popleft().result():
            coming.append(thread.submit(read))
            yield batch


def key_of(id: str) -> int:
    """A hash of 64 bits of an id, the same on every machine."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "little")
