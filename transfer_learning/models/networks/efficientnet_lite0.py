"""EfficientNet-Lite0, and the names of its layers in PyTorch."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

# One row per stage: kernel, stride, expansion, filters, repeats. Table 1 of the paper, without squeeze-and-excitation.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def efficientnet_lite0(input_tensor: "keras.KerasTensor") -> "keras.Model":
    """Returns the network up to its last feature map as a `keras.Model`.

    Tan and Le, 2019, arXiv:1905.11946, in the Lite variant of the same authors (no squeeze-and-excitation, ReLU6 for
    swish, stem and head not scaled). 3.4 million parameters.

    input_tensor: Keras tensor (n, height, width, 3), scaled by (x - 127) / 128.
    The output has shape (n, ceil(height / 32), ceil(width / 32), 1280) and the dtype of the policy in force.
    """
    from keras import Model, initializers, layers
    from keras.utils import get_source_inputs

    def kernel_initializer():
        # fan_out, as in the authors' code: with fan_in, Keras counts all channels of a depthwise kernel for each of
        # them, and the output of a new network fades to 1e-12 through its sixteen depthwise layers.
        return initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")

    plain = dict(padding="same", use_bias=False)

    def normalize(x, name, activate=True):
        x = layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)
        return layers.ReLU(6.0, name=f"{name}_relu6")(x) if activate else x

    def convolve(x, filters, kernel, stride, name, activate=True):
        # At stride 2, "same" pads one pixel more at the bottom and on the right, as the PyTorch network did that the
        # weights come from.
        x = layers.Conv2D(
            filters, kernel, stride, kernel_initializer=kernel_initializer(), name=f"{name}_conv", **plain
        )(x)
        return normalize(x, name, activate)

    x = convolve(input_tensor, 32, 3, 2, "stem")
    for stage, (kernel, stride, expansion, filters, repeats) in enumerate(STAGES, start=1):
        for block in range(1, repeats + 1):
            name, shortcut = f"stage{stage}_block{block}", x
            block_stride = stride if block == 1 else 1
            if expansion != 1:
                x = convolve(x, expansion * x.shape[-1], 1, 1, f"{name}_expand")
            options = dict(depthwise_initializer=kernel_initializer(), name=f"{name}_depthwise_conv")
            x = layers.DepthwiseConv2D(kernel, block_stride, **plain, **options)(x)
            x = normalize(x, f"{name}_depthwise")
            x = convolve(x, filters, 1, 1, f"{name}_project", activate=False)
            if block > 1:  # the first block of each stage changes the shape
                x = layers.Add(name=f"{name}_add")([x, shortcut])
    x = convolve(x, 1280, 1, 1, "head")
    return Model(get_source_inputs(input_tensor), x, name="efficientnet_lite0")


def pytorch_module(layer_name: str) -> str:
    """Returns the PyTorch name of a layer with weights: "stage2_block1_expand_bn" is "_blocks.1._bn0"."""
    outside = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "head_conv": "_conv_head", "head_bn": "_bn1"}
    if layer_name in outside:
        return outside[layer_name]
    match = re.fullmatch(r"stage(\d)_block(\d)_([a-z]+)_(conv|bn)", layer_name)
    assert match, layer_name
    stage, block, part, kind = match.groups()
    number = sum(repeats for *_, repeats in STAGES[: int(stage) - 1]) + int(block) - 1  # counted through all stages
    name = f"_{part}_conv" if kind == "conv" else f"_bn{('expand', 'depthwise', 'project').index(part)}"
    return f"_blocks.{number}.{name}"
