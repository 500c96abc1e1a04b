"""Grad-CAM: which regions of an image support a class (Selvaraju et al., 2017, arXiv:1610.02391)."""

import numpy as np
import tensorflow as tf

from transfer_learning.models.classifier import Classifier


def grad_cam(classifier: Classifier, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Computes Grad-CAM on the last feature map that the head sees.

    The channels of the feature map are summed, each weighted by the mean gradient of the logit of the class; negative
    values become 0. With a linear head this equals CAM (Zhou et al., 2016, arXiv:1512.04150).

    Args:
        images: uint8 (n, stored, stored, 3), few enough for one batch.
        classes: int (n,), positions in the class names.

    Returns:
        float32 (n, rows, columns) in the resolution of the feature map, 0..1 with the maximum of each image at 1; all 0
        if no value is positive.
    """
    *backbone, pooling = classifier.extractor.layers[1:]  # the first is the input
    maps = tf.constant(images, tf.float32)
    for layer in backbone:
        maps = layer(maps, training=False)
    highest = tf.nest.flatten(maps)[0]
    with tf.GradientTape() as tape:
        tape.watch(highest)
        logits = classifier.head(pooling(maps), training=False)
        of_classes = tf.gather(logits, tf.constant(classes, tf.int32), batch_dims=1)
    gradients = tape.gradient(of_classes, highest)
    weights = tf.reduce_mean(tf.cast(gradients, tf.float32), axis=(1, 2), keepdims=True)
    importance = tf.nn.relu(tf.reduce_sum(weights * tf.cast(highest, tf.float32), axis=-1))
    return tf.math.divide_no_nan(importance, tf.reduce_max(importance, axis=(1, 2), keepdims=True)).numpy()
