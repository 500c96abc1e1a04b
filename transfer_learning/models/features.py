"""What the frozen part of a network makes of each image: computed once, and kept for every later run."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from transfer_learning.kept import KeptArrays, space_told

# Images that go through the network at a time. Not the batch size of the run: another one may change the last bits of
# the features, and those of an image must not depend on which run computed them first.
BATCH = 32
BATCHES_KEPT_AT_ONCE = 8  # what a kill loses at most; each keeping waits for the disk


def kept_features(
    extractor: keras.Model, images: np.ndarray, rows: np.ndarray, hashes: Sequence[str], key: str,
    cache_dir: str | Path, say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns what `extractor` makes of ``images[rows]``; an image is computed unless an earlier run kept its features.

    Every batch is full, the last one filled up with zeros, and is made of the missing images in the order of their
    first appearance; whole batches are kept, so a killed extraction goes on with the batches of an unbroken one.

    Args:
        images: uint8 (records, size, size, 3).
        rows: int64 (n,), which of `images`; some may repeat.
        hashes: of the n images' contents.
        key: what features depend on beside an image's content: weights, architecture, sizes, precision and versions.
        say: takes the sentence that tells how many are computed, and those about damage.
        progress: called with the images computed so far and how many are to be computed.

    Returns:
        Features, float32 (records, width), read-only; and their positions, int64 (n,), in the order of `rows`.

    Raises:
        UserError: there is no space for the features, or their folder cannot be written.
    """
    width = extractor.output_shape[-1]
    row = dict(zip(reversed(hashes), np.asarray(rows)[::-1].tolist(), strict=True))  # of the first of equal contents
    distinct = list(dict.fromkeys(hashes))

    def writing(num_images: int):
        return space_told("The features", num_images * width * 4, cache_dir)

    folder = Path(cache_dir) / "features" / hashlib.sha256(f"{key} {BATCH}".encode()).hexdigest()[:32]
    with writing(len(distinct)):
        kept = KeptArrays(folder, (width,), np.float32, say)
    with kept:
        with writing(len(distinct)):
            position = dict(zip(distinct, kept.positions(distinct).tolist(), strict=True))
        missing = [digest for digest in distinct if position[digest] < 0]
        if missing:
            say(
                f"Computing the features of {len(missing):,} images, once: a frozen backbone gives the same ones in "
                f"every epoch; {len(distinct) - len(missing):,} are kept from earlier runs."
            )
            compute = frozen_graph(extractor, BATCH)
        else:
            say(f"The features of {len(distinct):,} images are kept from earlier runs, so they are not computed again.")
        computed: list[np.ndarray] = []
        for start in range(0, len(missing), BATCH):
            batch = images[[row[digest] for digest in missing[start : start + BATCH]]]
            filled = np.zeros((BATCH, *batch.shape[1:]), np.float32)
            filled[: len(batch)] = batch
            computed.extend(compute(tf.constant(filled)).numpy()[: len(batch)])
            done = start + len(batch)
            if len(computed) >= BATCHES_KEPT_AT_ONCE * BATCH or done == len(missing):
                keys = missing[done - len(computed) : done]
                with writing(len(missing) - done + len(computed)):
                    position |= zip(keys, kept.add(keys, computed).tolist(), strict=True)
                computed = []
            progress(done, len(missing))
        return kept.array, np.array([position[digest] for digest in hashes], np.int64)


def frozen_graph(extractor: keras.Model, batch_size: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """The extractor as one graph of constants, in which TensorFlow folds BatchNorm into the convolutions."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    @tf.function(autograph=False)
    def compute(images):
        return tf.cast(extractor(images, training=False), tf.float32)

    signature = tf.TensorSpec((batch_size, *extractor.input_shape[1:]), tf.float32)
    graph = convert_variables_to_constants_v2(compute.get_concrete_function(signature))
    return lambda images: graph(images)[0]
