"""Standardized features while a head trains, and their folding into its first layer, so that the saved model is plain.

Means and maxima of different stages differ in scale by orders of magnitude, which gradient steps would feel.
"""

from dataclasses import replace

import keras
import numpy as np

from transfer_learning.models.classifier import BATCH, Classifier
from transfer_learning.models.inference_graph import InferenceFunction

NAME = "standardize"


class Standardize(keras.layers.Layer):
    """(features - mean) * scale with fixed values, which are in every checkpoint; at first it changes nothing."""

    def build(self, input_shape):
        shape = input_shape[-1:]
        self.mean = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="mean")
        self.scale = self.add_weight(shape=shape, initializer="ones", trainable=False, name="scale")

    def call(self, inputs):
        return (inputs - self.mean) * self.scale

    def compute_output_shape(self, input_shape):
        return input_shape


def standardized(classifier: Classifier) -> Classifier:
    """Returns a classifier for training: the same layers, with `Standardize` in front of the head."""
    features = keras.Input(classifier.head.input_shape[1:], dtype="float32", name="features")
    logits = Standardize(dtype="float32", name=NAME)(features)
    for layer in classifier.head.layers[1:]:
        logits = layer(logits)
    head = keras.Model(features, logits, name="head")
    model = keras.Model(classifier.model.input, head(classifier.extractor(classifier.model.input)), name="classifier")
    return replace(classifier, head=head, model=model, inference=InferenceFunction(model, BATCH))


def unfold_standardization(trained: Classifier, mean: np.ndarray, scale: np.ndarray) -> None:
    """Sets `Standardize`, so far the identity, and the first dense layer, so that the classifier computes the same."""
    trained.head.get_layer(NAME).set_weights([mean, scale])
    mean, scale = (value.astype(np.float32).astype(np.float64) for value in (mean, scale))
    dense = next(layer for layer in trained.head.layers if isinstance(layer, keras.layers.Dense))
    kernel, bias = (value.astype(np.float64) for value in dense.get_weights())
    dense.set_weights([kernel / scale[:, None], bias + mean @ kernel])


def fold_standardization(trained: Classifier, plain: Classifier) -> Classifier:
    """Folds `Standardize` of a trained classifier into the first dense layer, which `plain` shares; returns `plain`."""
    standardize = trained.head.get_layer(NAME)
    dense = next(layer for layer in plain.head.layers if isinstance(layer, keras.layers.Dense))
    mean, scale = (value.numpy().astype(np.float64) for value in (standardize.mean, standardize.scale))
    kernel, bias = (value.astype(np.float64) for value in dense.get_weights())
    kernel = scale[:, None] * kernel
    dense.set_weights([kernel, bias - mean @ kernel])
    standardize.set_weights([np.zeros_like(mean), np.ones_like(scale)])  # so that `trained` still computes the same
    return plain
