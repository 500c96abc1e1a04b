"""Test-time augmentation: fixed transforms of an image, whose probabilities are averaged.

Each is a pure function, and the first is the identity. Mirroring only moves pixels; a crop is resampled once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transfer_learning.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import tensorflow as tf

CROP_SHARE = 0.875  # of the side, as 224 of 256 pixels in the ten crops of Krizhevsky et al. (2012)


@dataclass(frozen=True)
class Transform:
    """A crop, a mirroring, both, or the identity."""

    name: str
    corner: tuple[float, float] | None = None  # of the crop, as a share of the margin: down, right; None: no crop
    mirrored: bool = False  # left to right

    def __call__(self, images: "tf.Tensor") -> "tf.Tensor":
        """Transforms images: float32 (n, size, size, 3) in 0..255, as is the result."""
        import tensorflow as tf  # here, so that a misspelt kind is reported without it

        if self.mirrored:
            images = tf.reverse(images, axis=[2])
        if self.corner is None:
            return images
        size = images.shape[1]
        # The centre of the first pixel is half a pixel from the edge, in the crop as in the image.
        down, right = (place * (1 - CROP_SHARE) * size + 0.5 * CROP_SHARE - 0.5 for place in self.corner)
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=tf.constant([[CROP_SHARE, 0, right, 0, CROP_SHARE, down, 0, 0]], tf.float32),
            output_shape=(size, size),
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="NEAREST",
        )


PLAIN = Transform("plain")
CROPS = (
    Transform("centre", (0.5, 0.5)),
    Transform("top_left", (0.0, 0.0)),
    Transform("top_right", (0.0, 1.0)),
    Transform("bottom_left", (1.0, 0.0)),
    Transform("bottom_right", (1.0, 1.0)),
)
KINDS = ("flip", "crops")


def transforms_of(kinds: Sequence[str]) -> tuple[Transform, ...]:
    """Returns the identity; with "crops" also centre and corners; with "flip" each of these mirrored as well. UserError
    for an unknown kind.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--tta {','.join(kinds)}: unknown kind {kind!r}.{did_you_mean(kind, KINDS)}")
    transforms: tuple[Transform, ...] = (PLAIN, *CROPS) if "crops" in kinds else (PLAIN,)
    if "flip" in kinds:
        transforms += tuple(Transform(f"{transform.name}_mirrored", transform.corner, True) for transform in transforms)
    return transforms
