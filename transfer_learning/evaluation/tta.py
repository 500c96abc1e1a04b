"""Fixed views of an image, whose probabilities are averaged when a model is evaluated; the plain image is always one.

Each is a pure function. A mirrored view moves pixels and changes none; a crop is resampled once.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from transfer_learning.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import tensorflow as tf

CROP_SHARE = 0.875  # of the side, as 224 of 256 pixels in the ten views of Krizhevsky et al. (2012)


class View(NamedTuple):
    """One way to look at an image."""

    name: str
    corner: tuple[float, float] | None = None  # of the crop: down and right, 0..1 of the room there is; None: the whole
    mirrored: bool = False  # left to right

    def __call__(self, images: "tf.Tensor") -> "tf.Tensor":
        """Returns the view of each image, float32 (n, size, size, 3) in 0..255, of such images."""
        import tensorflow as tf  # here, so that a misspelt view is answered at once

        if self.mirrored:
            images = tf.reverse(images, axis=[2])
        if self.corner is None:
            return images
        size = images.shape[1]
        # Pixels are squares: the centre of the first one lies half a pixel from the edge, in the crop as in the image.
        down, right = (place * (1 - CROP_SHARE) * size + 0.5 * CROP_SHARE - 0.5 for place in self.corner)
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=tf.constant([[CROP_SHARE, 0, right, 0, CROP_SHARE, down, 0, 0]], tf.float32),
            output_shape=(size, size),
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="NEAREST",
        )


PLAIN = View("plain")
CROPS = (
    View("centre", (0.5, 0.5)),
    View("top_left", (0.0, 0.0)),
    View("top_right", (0.0, 1.0)),
    View("bottom_left", (1.0, 0.0)),
    View("bottom_right", (1.0, 1.0)),
)
KINDS = ("flip", "crops")


def views_of(kinds: Sequence[str]) -> tuple[View, ...]:
    """The plain view; with "crops" those of the centre and the corners too; with "flip" each of these mirrored as well.

    Raises:
        UserError: a kind is unknown.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--tta {','.join(kinds)}: {kind or 'nothing'} is no view.{did_you_mean(kind, KINDS)}")
    views = (PLAIN, *CROPS) if "crops" in kinds else (PLAIN,)
    if "flip" in kinds:
        views += tuple(View(f"{view.name}_mirrored", view.corner, True) for view in views)
    return views
