"""Random changes of training images: the numbers are drawn from (seed, epoch, image), the pixels are resampled once.

`draw` is a pure function in NumPy; `apply` is TensorFlow and has no randomness. Flip, rotation, zoom and shift are
composed into one matrix for each image, so that its pixels are interpolated once.
"""

import numpy as np
import tensorflow as tf

VERSION = 1  # a part of the names of kept views: raise it when they come out otherwise
# half ranges: rotation in degrees; zoom, shift (of the side), brightness (of 255) and contrast as fractions
STRENGTHS = {
    "light": {"rotation": 10.0, "zoom": 0.10, "shift": 0.05, "brightness": 0.08, "contrast": 0.10},
    "strong": {"rotation": 25.0, "zoom": 0.25, "shift": 0.10, "brightness": 0.15, "contrast": 0.30},
}


def draw(
    strength: str, flip: bool, seed: int, epoch: int | np.ndarray, keys: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the changes of a batch.

    Args:
        strength: "light" or "strong".
        flip: whether to mirror every second image on average, left to right.
        epoch: 0 or more, one for all or one for each; counted over the phases, so that no two of a run are alike.
        keys: uint64 (n,), what identifies each image.
        size: side of the images in pixels.

    Returns:
        float32 (n, 8), the projective transforms from result to source that `apply` takes, and float32 (n, 2), the
        brightness to add (0..255) and the contrast to multiply by.
    """
    spread = STRENGTHS[strength]
    uniform = _uniform(np.asarray(keys, np.uint64), np.uint64(seed << 32) + np.asarray(epoch, np.uint64), 7)
    turn, zoom, shift_x, shift_y, mirror, brightness, contrast = uniform.T
    angle = np.deg2rad(spread["rotation"] * turn)
    scale = 1 / (1 + spread["zoom"] * zoom)
    sign = np.where(flip & (mirror < 0), -1.0, 1.0)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    middle = (size - 1) / 2
    x = middle + size * spread["shift"] * shift_x
    y = middle + size * spread["shift"] * shift_y
    zero = np.zeros_like(angle)
    transforms = np.stack([
        sign * cosine, -sine, x - sign * cosine * middle + sine * middle,
        sign * sine, cosine, y - sign * sine * middle - cosine * middle,
        zero, zero,
    ], axis=1)  # fmt: skip
    colours = np.stack([255 * spread["brightness"] * brightness, 1 + spread["contrast"] * contrast], axis=1)
    return transforms.astype(np.float32), colours.astype(np.float32)


def apply(images: tf.Tensor, transforms: tf.Tensor, colours: tf.Tensor) -> tf.Tensor:
    """Returns the changed images, float32 (n, size, size, 3) in 0..255, of uint8 images of that shape.

    Pixels from beyond the edge are mirrored in; contrast is taken about the mean of each image.
    """
    images = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    brightness, contrast = (colours[:, i, None, None, None] for i in (0, 1))
    return tf.clip_by_value(images * contrast + (mean * (1.0 - contrast) + brightness), 0.0, 255.0)


def _uniform(keys: np.ndarray, salts: np.ndarray, count: int) -> np.ndarray:
    """float64 (n, count) in -1..1, a pure function of each image's key and salt: neither its batch nor an order matters.

    SplitMix64 (Steele, Lea and Flood, 2014), counted from the mixed key and salt, for all images in a few operations.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    start = _mixed(_mixed(keys) ^ salts)
    drawn = _mixed(start[:, None] + golden * np.arange(1, count + 1, dtype=np.uint64))
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def _mixed(bits: np.ndarray) -> np.ndarray:
    """uint64 to uint64, one to one, every bit of the result depending on every bit; overflow is meant."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
