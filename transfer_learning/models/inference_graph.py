"""A network that no longer changes, as one graph of constants: the fastest that TensorFlow computes."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers


def inference_graph(network: keras.Model, batch_size: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns what `network` computes with its present weights, whatever becomes of them later.

    TensorFlow prepares constants once, and computes activation and shortcut in one operation with the convolution before.

    Returns:
        a function of float32 (batch_size, ...) to float32, whatever the precision in between.
    """
    folded = fold_batch_norm(network)
    values = [(variable, variable.numpy()) for variable in folded.variables]

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((batch_size, *network.input_shape[1:]), tf.float32)])
    def compute(images):
        with keras.StatelessScope([(variable, tf.constant(value)) for variable, value in values]):
            return tf.cast(folded(images, training=False), tf.float32)

    return compute.get_concrete_function()


def fold_batch_norm(network: keras.Model) -> keras.Model:
    """Returns a network that makes the same of every image, but for rounding, with fewer operations.

    With fixed statistics, batch normalization multiplies and shifts each channel by constants, so they can be multiplied
    into the kernel and added to the bias of the convolution whose output it normalizes (Jacob et al., 2018,
    arXiv:1712.05877, section 3.2). TensorFlow by itself does so behind ordinary convolutions alone, not behind depthwise
    ones, and then knows no bias that activation and shortcut could be computed with.

    A BatchNorm that stands behind anything else stays, and so does a convolution whose output is needed as it is. All
    other layers are shared with `network`.
    """
    convolved = {}  # by the id of a new tensor: it (which keeps the id its own), the convolution, what that was called on

    def call(layer, *args, **kwargs):
        if isinstance(layer, keras.Model) and not isinstance(layer, keras.Sequential):
            return fold_batch_norm(layer)(*args, **kwargs)
        if isinstance(layer, layers.BatchNormalization) and id(args[0]) in convolved:
            _, convolution, images = convolved[id(args[0])]
            return _folded(convolution, layer)(images)
        result = layer(*args, **kwargs)
        if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D) and layer.activation is keras.activations.linear:
            convolved[id(result)] = result, layer, args[0]
        return result

    return keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=call)


def _folded(convolution: layers.Conv2D | layers.DepthwiseConv2D, norm: layers.BatchNormalization) -> layers.Layer:
    """A layer for both; computed in float64, kept in the precision of the convolution's weights."""
    kernel, bias = (convolution.get_weights() + [0])[:2]
    variance = norm.moving_variance.numpy().astype(np.float64)
    scale = (norm.gamma.numpy() if norm.scale else 1) / np.sqrt(variance + norm.epsilon)
    shift = (norm.beta.numpy() if norm.center else 0) - norm.moving_mean.numpy() * scale
    depthwise = isinstance(convolution, layers.DepthwiseConv2D)  # its kernel ends in (channels, multiplier)
    config = {"name": norm.name, "use_bias": True, f"{'depthwise' if depthwise else 'kernel'}_initializer": "zeros"}
    folded = type(convolution).from_config(convolution.get_config() | config)
    folded.build(convolution.input.shape)
    folded.set_weights([kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale), bias * scale + shift])
    return folded
