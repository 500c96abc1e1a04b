"""Networks in inference mode as TensorFlow computes them fastest: BatchNorm folded into the convolutions before it.

An inference graph also has the weights as constants; a trainable inference function has gradients for all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from transfer_learning.models.weights import weights_digest


class InferenceFunction:
    """The inference graph of a network whose weights may change: traced again when they have changed."""

    def __init__(self, network: keras.Model, batch_size: int):
        self._network, self._batch_size = network, batch_size
        self._digest = ""
        self._graph: Callable[[tf.Tensor], tf.Tensor] | None = None

    def current(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns the `inference_graph` for the present weights; hashes all of them to know whether they changed."""
        digest = weights_digest(self._network.weights)
        if self._graph is None or digest != self._digest:
            self._graph = inference_graph(self._network, self._batch_size)
            self._digest = digest
        return self._graph


def inference_graph(network: keras.Model, batch_size: int | None) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function that `network` computes with its present weights, from float32 (batch_size, ...) to float32;
    later changes of the weights do not matter. A `batch_size` of None is any, where the last bits may depend on it.

    TensorFlow preprocesses constants once, and fuses bias, activation and shortcut with the convolution before them.
    """
    folded = fold_batch_norm(network)
    values = [(variable, variable.numpy()) for variable in folded.variables]

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((batch_size, *network.input_shape[1:]), tf.float32)])
    def compute(images):
        with keras.StatelessScope([(variable, tf.constant(value)) for variable, value in values]):
            return tf.cast(folded(images, training=False), tf.float32)

    return compute.get_concrete_function()


def trainable_inference_fn(network: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns `network` in inference mode as a function whose gradients reach its weights; their changes matter.

    The kernel and the bias of each folded convolution are computed in each call, in float32. These are small arrays;
    what is saved is a multiplication and an addition of whole activations, and their gradients.
    """
    folds: list[Fold] = []
    with tf.init_scope():  # outside of a step that is being traced
        folded = fold_batch_norm(network, folds)

    def compute(images: tf.Tensor) -> tf.Tensor:
        values = []
        for fold in folds:
            kernel, bias = fold.values()
            values += [(fold.result.kernel, kernel), (fold.result.bias, bias)]
        with keras.StatelessScope(values):
            return folded(images, training=False)

    return compute


@dataclass(frozen=True)
class Fold:
    """A convolution and the BatchNorm after it, and the convolution that stands for both."""

    convolution: layers.Conv2D | layers.DepthwiseConv2D
    norm: layers.BatchNormalization
    result: layers.Conv2D | layers.DepthwiseConv2D

    def values(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns kernel and bias of `result`, float32, from the present weights of the two layers."""
        norm, kernel = self.norm, tf.convert_to_tensor(self.convolution.kernel)
        scale = tf.math.rsqrt(norm.moving_variance + norm.epsilon)
        if norm.scale:
            scale *= norm.gamma
        mean = norm.moving_mean - self.convolution.bias if self.convolution.use_bias else norm.moving_mean
        shift = (norm.beta if norm.center else 0) - mean * scale
        return kernel * tf.reshape(scale, _channels_of(self.convolution)), shift


def fold_batch_norm(network: keras.Model, folds: list["Fold"] | None = None) -> keras.Model:
    """Returns a network with the same outputs, up to rounding, and fewer operations.

    With fixed statistics, batch normalization multiplies and shifts each channel by constants, which can be folded into
    the kernel and the bias of the convolution before it (Jacob et al., 2018, arXiv:1712.05877, section 3.2). TensorFlow
    folds them into ordinary convolutions only, not into depthwise ones.

    A BatchNorm after anything else or over another axis stays, and so does a convolution whose output is also used
    elsewhere. All other layers are shared with `network`.

    Args:
        folds: what was folded is added to it.
    """
    folds = [] if folds is None else folds
    # By the id of an output tensor: the tensor (so that the id stays its own), the convolution and its input.
    convolved: dict[int, tuple[keras.KerasTensor, keras.Layer, keras.KerasTensor]] = {}

    def call(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, keras.Model) and not isinstance(layer, keras.Sequential):
            return fold_batch_norm(layer, folds)(*args, **kwargs)
        if isinstance(layer, layers.BatchNormalization) and id(args[0]) in convolved:
            _, convolution, images = convolved[id(args[0])]
            if layer.axis in (-1, 3):
                folds.append(Fold(convolution, layer, _folded(convolution, layer)))
                return folds[-1].result(images)
        result = layer(*args, **kwargs)
        if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D) and layer.activation is keras.activations.linear:
            convolved[id(result)] = result, layer, args[0]
        return result

    return keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=call)


def _folded(convolution: layers.Conv2D | layers.DepthwiseConv2D, norm: layers.BatchNormalization) -> layers.Layer:
    """Returns one layer for both, computed in float64 and stored in the precision of the convolution's weights."""
    kernel, bias = (convolution.get_weights() + [0])[:2]
    variance = norm.moving_variance.numpy().astype(np.float64)
    scale = (norm.gamma.numpy() if norm.scale else 1) / np.sqrt(variance + norm.epsilon)
    shift = (norm.beta.numpy() if norm.center else 0) - norm.moving_mean.numpy() * scale
    depthwise = isinstance(convolution, layers.DepthwiseConv2D)
    config = {"name": norm.name, "use_bias": True, f"{'depthwise' if depthwise else 'kernel'}_initializer": "zeros"}
    folded = type(convolution).from_config(convolution.get_config() | config)
    folded.build(convolution.input.shape)
    folded.set_weights([kernel * scale.reshape(_channels_of(convolution)), bias * scale + shift])
    return folded


def _channels_of(convolution: layers.Conv2D | layers.DepthwiseConv2D) -> tuple[int, ...]:
    """The last axes of the kernel, which the output channels are: of a depthwise one (channels, multiplier)."""
    return tuple(convolution.kernel.shape[2 if isinstance(convolution, layers.DepthwiseConv2D) else 3 :])
