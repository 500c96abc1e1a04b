"""Folded networks: the same outputs without the batch normalization that stood behind convolutions."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from transfer_learning.models.backbones import build_backbone
from transfer_learning.models.inference_graph import fold_batch_norm, inference_graph, trainable_inference_fn

IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)


def norm(**options):
    return layers.BatchNormalization(**options)


def two_uses(images):
    """Of a convolution: as it is, and normalized."""
    convolved = layers.Conv2D(4, 3)(images)
    return layers.Concatenate()([convolved, norm()(convolved), norm(scale=False)(convolved)])


def nested(images):
    inner = keras.Input((14, 14, 4))
    return keras.Model(inner, norm()(layers.Conv2D(3, 1)(inner)))(layers.Conv2D(4, 3)(images))


def a_sequence(images):
    return keras.Sequential([layers.Conv2D(4, 3), norm()])(images)


def chain(*steps):
    def build(images):
        for step in steps:
            images = step()(images)
        return images

    return build


NETWORKS = {  # what is built, and how many BatchNorms have to stay
    "without a bias": (chain(lambda: layers.Conv2D(4, 3, use_bias=False), norm), 0),
    "with a bias": (chain(lambda: layers.Conv2D(4, 3, strides=2, padding="same"), norm, layers.ReLU), 0),
    "groups": (chain(lambda: layers.Conv2D(6, 3, groups=3), norm), 0),
    "depthwise, two outputs a channel": (chain(lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), norm), 0),
    "neither gamma nor beta": (chain(lambda: layers.Conv2D(4, 3), lambda: norm(center=False, scale=False)), 0),
    "two in a row": (chain(lambda: layers.Conv2D(4, 3), norm, norm), 1),
    "an activation between": (chain(lambda: layers.Conv2D(4, 3, activation="relu"), norm), 1),
    "in front of the convolution": (chain(norm, lambda: layers.Conv2D(4, 3)), 1),
    "behind a dense layer": (chain(lambda: layers.Dense(4), norm), 1),
    "over another axis": (chain(lambda: layers.Conv2D(4, 3), lambda: norm(axis=1)), 1),
    "used twice": (two_uses, 0),
    "nested": (nested, 0),
    "in a sequence": (a_sequence, 1),
    "nothing to fold": (chain(layers.Flatten), 0),
}


def leaves(network):
    for layer in network.layers:
        yield from leaves(layer) if isinstance(layer, keras.Model) else [layer]


def norms_of(network):
    return [layer for layer in leaves(network) if isinstance(layer, layers.BatchNormalization)]


def with_statistics(network, seed=0):
    """Gives biases and BatchNorms values that matter."""
    random = np.random.default_rng(seed)
    for layer in leaves(network):
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 2, value.shape) for value in layer.get_weights()])
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(random.normal(size=layer.bias.shape))
    return network


def assert_same_outputs(network, images, num_norms_left):
    before = [variable.numpy() for variable in network.variables]
    folded = fold_batch_norm(network)
    expected, actual = network(images, training=False).numpy(), folded(images, training=False).numpy()
    assert actual == pytest.approx(expected, rel=0, abs=2e-5 * float(np.abs(expected).max()))
    assert len(norms_of(folded)) == num_norms_left
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize(("build", "num_norms_left"), NETWORKS.values(), ids=NETWORKS)
def test_a_folded_network_gives_the_same_with_fewer_layers(build, num_norms_left):
    images = keras.Input((16, 16, 3))
    network = with_statistics(keras.Model(images, build(images)))
    for _ in range(2):  # to fold leaves the network as it was
        assert_same_outputs(network, IMAGES, num_norms_left)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "small_cnn"])
def test_backbones_lose_every_batch_norm(name):
    network = with_statistics(build_backbone(name, 32, "none"))
    assert norms_of(network)
    assert_same_outputs(network, np.repeat(np.repeat(IMAGES, 2, 1), 2, 2), 0)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_a_frozen_graph_keeps_the_weights_that_it_was_made_with(precision):
    keras.config.set_dtype_policy(precision)
    network = with_statistics(build_backbone("efficientnet_lite0", 32, "none"))
    images = np.repeat(np.repeat(IMAGES, 2, 1), 2, 2)
    expected = network(images, training=False).numpy().astype(np.float32)
    compute = inference_graph(network, len(images))
    for variable in network.weights:
        variable.assign(np.zeros(variable.shape))
    actual = compute(tf.constant(images))
    assert actual.dtype == tf.float32
    tolerance = 2e-5 if precision == "float32" else 5e-2
    assert actual.numpy() == pytest.approx(expected, rel=0, abs=tolerance * float(np.abs(expected).max()))


def outputs_and_gradients(compute, network):
    """Of a loss whose gradient is another one for each output; gradients by the position of the weight."""
    with tf.GradientTape() as tape:
        outputs = compute(tf.constant(IMAGES / 255))
        weights = tf.random.stateless_normal(outputs.shape, (0, 1))
        loss = tf.reduce_sum(weights * tf.cast(outputs, tf.float32) ** 2)
    gradients = tape.gradient(loss, network.trainable_variables)
    return [
        outputs.numpy(),
        *(
            np.zeros(v.shape) if g is None else g.numpy()
            for v, g in zip(network.trainable_variables, gradients, strict=True)
        ),
    ]


@pytest.mark.parametrize(
    ("build", "precision"),
    [*((build, "float32") for build, _ in NETWORKS.values()), (NETWORKS["with a bias"][0], "mixed_float16")],
    ids=[*NETWORKS, "with a bias, mixed_float16"],
)
def test_folding_in_training_gives_the_same_outputs_and_gradients(build, precision):
    keras.config.set_dtype_policy(precision)
    images = keras.Input((16, 16, 3))
    network = with_statistics(keras.Model(images, build(images)))
    compute = trainable_inference_fn(network)
    for seed in (0, 1):  # the weights change and the function stays
        with_statistics(network, seed)
        expected = outputs_and_gradients(lambda images: network(images, training=False), network)
        actual = outputs_and_gradients(compute, network)
        for found, wanted in zip(actual, expected, strict=True):
            tolerance = (1e-4 if precision == "float32" else 2e-2) * max(1.0, float(np.abs(wanted).max()))
            assert found == pytest.approx(wanted, rel=0, abs=tolerance)
