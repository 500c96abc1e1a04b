"""Grad-CAM against the contributions to the logit of a linear head, and on heads with hidden layers."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from transfer_learning.evaluation.grad_cam import grad_cam
from transfer_learning.models.classifier import build_classifier

NAMES = ("a", "b", "c")
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)


def built(small_config, **changes):
    return build_classifier(dataclasses.replace(small_config, image_size=64, **changes), NAMES)


@pytest.mark.parametrize("input_size", [0, 20])
def test_with_a_linear_head_it_equals_cam(small_config, input_size):
    classifier = built(small_config, head=(), input_size=input_size)
    images, classes = IMAGES[:, : input_size or 64, : input_size or 64], np.array([0, 1, 2, 1])
    seen = tf.image.resize(tf.cast(images, tf.float32), (64, 64))  # as Keras' layer does
    maps = np.asarray(classifier.backbone(seen, training=False))
    kernel = classifier.head.get_layer("logits").kernel.numpy()
    parts = np.maximum(np.einsum("nhwc,cn->nhw", maps, kernel[:, classes]), 0)
    expected = parts / np.maximum(parts.max(axis=(1, 2), keepdims=True), 1e-12)
    result = grad_cam(classifier, images, classes)
    assert result.shape == (4, 2, 2) and result.dtype == np.float32
    assert result == pytest.approx(expected, abs=1e-4)


def test_it_depends_on_the_class_and_lies_between_0_and_1(small_config):
    classifier = built(small_config, head=(16,))
    by_class = [grad_cam(classifier, IMAGES, np.full(4, place)) for place in range(3)]
    assert len({result.tobytes() for result in by_class}) == 3
    for result in by_class:
        assert np.isfinite(result).all() and result.min() >= 0
        assert set(result.max(axis=(1, 2)).tolist()) <= {0.0, 1.0}


def test_it_is_0_where_nothing_supports_the_class(small_config):
    classifier = built(small_config, head=())
    layer = classifier.head.get_layer("logits")
    layer.set_weights([-np.ones_like(layer.kernel), layer.bias])  # features are 0 or more
    assert np.array_equal(grad_cam(classifier, IMAGES, np.zeros(4, int)), np.zeros((4, 2, 2)))
