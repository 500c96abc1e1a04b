"""The network that every format is written from: raw pixels in, calibrated probabilities out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from transfer_learning.exports.metadata import Metadata
from transfer_learning.models.classifier import Classifier
from transfer_learning.models.inference_graph import fold_batch_norm


@dataclass(frozen=True)
class Network:
    """A trained classifier and what its files say about it."""

    classifier: Classifier
    metadata: Metadata
    # Returns some training images, uint8 (n, size, size, 3), from which int8 formats learn the ranges of activations.
    calibration_images: Callable[[], np.ndarray]

    @cached_property
    def function(self) -> Any:
        """A `tf.function` of uint8 ``image`` (n, size, size, 3) to float32 probabilities, its weights as constants.

        BatchNorm is folded into the convolutions, as in the inference graph that made the run's predictions.
        """
        folded = fold_batch_norm(self.classifier.model)
        values = [(variable, variable.numpy()) for variable in folded.variables]
        size = self.metadata.image_size
        image = tf.TensorSpec((None, size, size, 3), tf.uint8, name="image")

        @tf.function(autograph=False, input_signature=[image])
        def probabilities(image):
            with keras.StatelessScope([(variable, tf.constant(value)) for variable, value in values]):
                logits = tf.cast(folded(tf.cast(image, tf.float32), training=False), tf.float32)
            return tf.nn.softmax(logits * (1 / self.classifier.temperature), name="probabilities")

        return probabilities
