"""Where a network looked: Grad-CAM (Selvaraju et al., 2017, arXiv:1610.02391) on the last feature map of the backbone."""

import numpy as np
import tensorflow as tf

from transfer_learning.models.classifier import Classifier


def attention(classifier: Classifier, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How much each place of an image speaks for a class.

    The channels of the feature map, each weighted by the mean gradient of the class' logit, are summed; what speaks
    against the class is 0. With a linear head these are the parts of which the logit is made (Zhou et al., 2016).

    Args:
        images: uint8 (n, stored, stored, 3), few enough for one batch.
        classes: int (n,), positions in the class names.

    Returns:
        float32 (n, height, width) of the feature map, from 0 to 1, the highest of each image; all 0 where nothing does.
    """
    *below, pooling = classifier.extractor.layers[1:]  # resizing, if any, and the backbone
    maps = tf.constant(images, tf.float32)
    for layer in below:
        maps = layer(maps, training=False)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        logits = classifier.head(pooling(maps), training=False)
        chosen = tf.gather(logits, tf.constant(classes, tf.int32), batch_dims=1)
    gradients = tape.gradient(chosen, maps)
    weights = tf.reduce_mean(tf.cast(gradients, tf.float32), axis=(1, 2), keepdims=True)
    spoken = tf.nn.relu(tf.reduce_sum(weights * tf.cast(maps, tf.float32), axis=-1))
    return tf.math.divide_no_nan(spoken, tf.reduce_max(spoken, axis=(1, 2), keepdims=True)).numpy()
