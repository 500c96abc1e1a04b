"""What the head sees: the last feature map, the outputs of the stages below it, or both, pooled over the plane.

Features of the lower stages help where images differ from those that the backbone was trained with (Evci et al., 2022,
Head2Toe, arXiv:2201.03529). They cost no forward pass, because the network computes them anyway.
"""

from typing import TYPE_CHECKING

from transfer_learning.errors import UserError
from transfer_learning.models.backbones import Backbone

if TYPE_CHECKING:
    import keras


def with_stage_outputs(backbone: "keras.Model", row: Backbone, kind: str) -> "keras.Model":
    """Returns a network of the same layers that outputs several maps (n, height, width, channels), the highest first.

    Args:
        kind: "stages": the output of each stage below the last feature map; "all": also the last feature map.

    Raises:
        UserError: the backbone is not divided into stages.
    """
    import keras

    by_stage = {}
    for layer in backbone.layers:
        if (stage := row.stage_of(layer.name)) and len(layer.output.shape) == 4:
            by_stage[stage] = layer.output  # the last one of each stage stays
    lower = [tensor for tensor in by_stage.values() if tensor is not backbone.output]
    if len(lower) < 2:
        raise UserError(
            f"--head-features {kind} needs the stages of a backbone, and {row.name} is not divided into any; give "
            "--head-features last."
        )
    highest_first = lower[::-1] if kind == "stages" else [backbone.output, *lower[::-1]]
    return keras.Model(backbone.input, highest_first, name=backbone.name)


def make_pooling(backbone: "keras.Model", kind: str) -> "keras.Layer":
    """Returns the layer from the output of `backbone` to features (n, width).

    These are the means of all maps and, side by side with them, the maxima of those below the last feature map.
    """
    from keras import Input, Model, layers

    if kind == "last":
        return layers.GlobalAveragePooling2D(name="pool")
    maps = [Input(tensor.shape[1:], dtype=tensor.dtype) for tensor in backbone.outputs]
    lower = maps[1:] if kind == "all" else maps
    means = [layers.GlobalAveragePooling2D(name=f"mean_{number}")(tensor) for number, tensor in enumerate(maps)]
    maxima = [layers.GlobalMaxPooling2D(name=f"max_{number}")(tensor) for number, tensor in enumerate(lower)]
    return Model(maps, layers.Concatenate(name="concatenate")([*means, *maxima]), name="pool")


def feature_blocks(backbone: "keras.Model", kind: str) -> tuple[int, ...]:
    """The widths of the parts of the features, each of one map: the means, then the maxima."""
    widths = [tensor.shape[-1] for tensor in backbone.outputs]
    return tuple(widths) if kind == "last" else (*widths, *(widths[1:] if kind == "all" else widths))
