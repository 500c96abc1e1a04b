"""What the frozen part of a network makes of each image: computed once, and kept for every later run."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from transfer_learning.files import written_atomically


def kept_features(
    extractor: keras.Model, images: np.ndarray, rows: np.ndarray, key: str, cache_dir: str | Path, batch_size: int,
    say: Callable[[str], None] = print, progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:  # fmt: skip
    """Returns float32 (len(rows), width), memory-mapped: `extractor` of ``images[rows]``, computed unless it is kept.

    Args:
        key: what the features depend on: images, weights, architecture, sizes, precision and versions.
        batch_size: images that go through the network at a time; the last batch is filled up, so that every image
            meets the same computation whatever stands beside it.
        progress: called with the images done and their number.
    """
    digest = hashlib.sha256(f"{key} {batch_size} ".encode() + np.asarray(rows, np.int64).tobytes()).hexdigest()[:32]
    path = Path(cache_dir) / "features" / f"{digest}.npy"
    if path.exists():
        say(f"The features of {len(rows):,} images are kept from an earlier run, so they are not computed again.")
        return np.load(path, mmap_mode="r")
    say(f"Computing the features of {len(rows):,} images, once: a frozen backbone gives the same ones in every epoch.")
    with written_atomically(path) as temporary:
        shape = (len(rows), extractor.output_shape[-1])
        features = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        compute = _frozen_graph(extractor, batch_size)
        for start in range(0, len(rows), batch_size):
            batch = images[rows[start : start + batch_size]]
            filled = np.zeros((batch_size, *batch.shape[1:]), np.float32)
            filled[: len(batch)] = batch
            features[start : start + len(batch)] = compute(tf.constant(filled)).numpy()[: len(batch)]
            progress(start + len(batch), len(rows))
        features.flush()
    return np.load(path, mmap_mode="r")


def _frozen_graph(extractor: keras.Model, batch_size: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """The extractor as one graph of constants, in which TensorFlow folds BatchNorm into the convolutions."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    @tf.function
    def compute(images):
        return tf.cast(extractor(images, training=False), tf.float32)

    signature = tf.TensorSpec((batch_size, *extractor.input_shape[1:]), tf.float32)
    graph = convert_variables_to_constants_v2(compute.get_concrete_function(signature))
    return lambda images: graph(images)[0]
