"""EfficientNet-Lite0, 1 and 2, and the names of their layers in PyTorch."""

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

# One row per stage of Lite0: kernel, stride, expansion, filters, repeats. Table 1 of the paper, without
# squeeze-and-excitation.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def efficientnet_lite0(input_tensor: "keras.KerasTensor") -> "keras.Model":
    """Returns the network up to its last feature map as a `keras.Model`; 3.4 million parameters.

    Tan and Le, 2019, arXiv:1905.11946, in the Lite variants of the same authors (no squeeze-and-excitation, ReLU6 for
    swish, stem and head not scaled).

    input_tensor: Keras tensor (n, height, width, 3), scaled by (x - 127) / 128.
    The output has shape (n, ceil(height / 32), ceil(width / 32), 1280) and the dtype of the policy in force.
    """
    return _network(input_tensor, "efficientnet_lite0", _scaled(1.0, 1.0))


def efficientnet_lite1(input_tensor: "keras.KerasTensor") -> "keras.Model":
    """Like `efficientnet_lite0`, 1.1 times as deep; 4.2 million parameters."""
    return _network(input_tensor, "efficientnet_lite1", _scaled(1.0, 1.1))


def efficientnet_lite2(input_tensor: "keras.KerasTensor") -> "keras.Model":
    """Like `efficientnet_lite0`, 1.1 times as wide and 1.2 times as deep; 4.9 million parameters."""
    return _network(input_tensor, "efficientnet_lite2", _scaled(1.1, 1.2))


def _scaled(width: float, depth: float) -> list[tuple[int, int, int, int, int]]:
    """The stages with scaled filters, in multiples of 8, and scaled repeats, except for those of the first and last."""
    rows = []
    for row, (kernel, stride, expansion, filters, repeats) in enumerate(_STAGES):
        # The published rule adds 8 where rounding takes more than a tenth away; that never happens here.
        filters = int(filters * width + 4) // 8 * 8
        repeats = repeats if row in (0, len(_STAGES) - 1) else math.ceil(repeats * depth)
        rows.append((kernel, stride, expansion, filters, repeats))
    return rows


def _network(
    input_tensor: "keras.KerasTensor", name: str, stages: list[tuple[int, int, int, int, int]]
) -> "keras.Model":
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
    for stage, (kernel, stride, expansion, filters, repeats) in enumerate(stages, start=1):
        for block in range(1, repeats + 1):
            place, shortcut = f"stage{stage}_block{block}", x
            block_stride = stride if block == 1 else 1
            if expansion != 1:
                x = convolve(x, expansion * x.shape[-1], 1, 1, f"{place}_expand")
            options = dict(depthwise_initializer=kernel_initializer(), name=f"{place}_depthwise_conv")
            x = layers.DepthwiseConv2D(kernel, block_stride, **plain, **options)(x)
            x = normalize(x, f"{place}_depthwise")
            x = convolve(x, filters, 1, 1, f"{place}_project", activate=False)
            if block > 1:  # the first block of each stage changes the shape
                x = layers.Add(name=f"{place}_add")([x, shortcut])
    x = convolve(x, 1280, 1, 1, "head")
    return Model(get_source_inputs(input_tensor), x, name=name)


def pytorch_names(depth: float) -> Callable[[str], str]:
    """Returns the function from a layer with weights to its PyTorch name, for a network `depth` times as deep as Lite0.

    "stage2_block1_expand_bn" is "_blocks.1._bn0" in all of them: blocks are counted through all stages.
    """
    repeats_of = [repeats for *_, repeats in _scaled(1.0, depth)]

    def pytorch_module(layer_name: str) -> str:
        outside = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "head_conv": "_conv_head", "head_bn": "_bn1"}
        if layer_name in outside:
            return outside[layer_name]
        match = re.fullmatch(r"stage(\d)_block(\d)_([a-z]+)_(conv|bn)", layer_name)
        assert match, layer_name
        stage, block, part, kind = match.groups()
        number = sum(repeats_of[: int(stage) - 1]) + int(block) - 1
        name = f"_{part}_conv" if kind == "conv" else f"_bn{('expand', 'depthwise', 'project').index(part)}"
        return f"_blocks.{number}.{name}"

    return pytorch_module
