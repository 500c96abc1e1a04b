"""Mixing each image of a batch with the next one, in pixels and in labels.

* mixup averages two images (Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2017, arXiv:1710.09412).
* cutmix replaces a rectangle (Yun et al., "CutMix", 2019, arXiv:1905.04899).

The order of a batch is random, so the next image is a random one. The parameters are drawn per image, so a resumed epoch
mixes the same images.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

MIXUP_ALPHA = 0.2  # of the Beta distribution of the share, as for ImageNet in the paper; CutMix draws it uniformly


def draw_mixup(numbers: np.ndarray, size: int) -> np.ndarray:
    """The share of each image in its mixture, float64 (n, 1), at least a half, from numbers (1, n), uniform in 0..1."""
    from scipy.special import betaincinv  # here: reading a config imports this file, and predict needs no SciPy

    share = betaincinv(MIXUP_ALPHA, MIXUP_ALPHA, numbers[0])
    return np.maximum(share, 1 - share)[:, None]


def draw_cutmix(numbers: np.ndarray, size: int) -> np.ndarray:
    """Left, top, right and bottom of the part that is replaced, and the share of what is left, float64 (n, 5).

    Args:
        numbers: (3, n), uniform in 0..1: share and center.
        size: side of the images in pixels.
    """
    share, x, y = numbers
    half = size * np.sqrt(1 - share) / 2
    edges = [np.round(np.clip(size * center + side, 0, size)) for side in (-half, half) for center in (x, y)]
    left, top, right, bottom = edges
    return np.stack([left, top, right, bottom, 1 - (right - left) * (bottom - top) / size**2], axis=1)


def mixup(images: "tf.Tensor", parameters: "tf.Tensor") -> "tf.Tensor":
    """Returns the mixtures, float32 (n, size, size, 3), of images of this shape, with what `draw_mixup` returned."""
    import tensorflow as tf

    share = parameters[:, 0, None, None, None]
    return share * images + (1 - share) * tf.roll(images, -1, axis=0)


def cutmix(images: "tf.Tensor", parameters: "tf.Tensor") -> "tf.Tensor":
    """Returns the mixtures, float32 (n, size, size, 3), of images of this shape, with what `draw_cutmix` returned."""
    import tensorflow as tf

    return tf.where(inside(parameters, images), tf.roll(images, -1, axis=0), images)


def mixed_labels(labels: "tf.Tensor", share: "tf.Tensor") -> "tf.Tensor":
    """float32 (n, 3): the label of each image, that of the next one, and the share of the first; labels are int32 (n,)."""
    import tensorflow as tf

    both = tf.cast(tf.stack([labels, tf.roll(labels, -1, axis=0)], axis=1), tf.float32)
    return tf.concat([both, share[:, None]], axis=1)


def inside(box: "tf.Tensor", images: "tf.Tensor") -> "tf.Tensor":
    """bool (n, size, size, 1): the pixels of each image from left, top to right, bottom: `box`, float32 (n, 4 or more)."""
    import tensorflow as tf

    left, top, right, bottom = (box[:, i, None] for i in range(4))
    place = tf.cast(tf.range(tf.shape(images)[1]), tf.float32)[None]
    columns, rows = (place >= left) & (place < right), (place >= top) & (place < bottom)
    return (rows[:, :, None] & columns[:, None, :])[..., None]
