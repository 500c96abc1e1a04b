"""Random changes of training images: the numbers are drawn from (seed, epoch, image), the pixels are resampled once.

`draw` is a pure function in NumPy; `apply` is TensorFlow and has no randomness. Flip, rotation, zoom, shift and crop are
composed into one matrix for each image, so that its pixels are interpolated once.

* "light" and "strong" turn, zoom, shift, mirror and change brightness and contrast, by the numbers in `STRENGTHS`.
* "rotation" mirrors and turns by up to 5 degrees, as CV Studio's own transform does, and nothing else.
* "padded_crop" mirrors and shifts by whole pixels, up to an eighth of the side (4 of CIFAR's 32), in black (He, Zhang,
  Ren and Sun, "Deep Residual Learning", 2016, section 4.2).
* "resized_crop" mirrors and enlarges a random part (Szegedy and others, "Going Deeper with Convolutions", 2015), drawn as
  torchvision's RandomResizedCrop draws it.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

VERSION = 1  # a part of the names of kept views: raise it when they come out otherwise
# half ranges: rotation in degrees; zoom, shift (of the side), brightness (of 255) and contrast as fractions
STRENGTHS = {
    "light": {"rotation": 10.0, "zoom": 0.10, "shift": 0.05, "brightness": 0.08, "contrast": 0.10},
    "strong": {"rotation": 25.0, "zoom": 0.25, "shift": 0.10, "brightness": 0.15, "contrast": 0.30},
    "rotation": {"rotation": 5.0, "zoom": 0.0, "shift": 0.0, "brightness": 0.0, "contrast": 0.0},
}
PADDING = 4 / 32  # of the side, by which "padded_crop" shifts at most
CROP_AREA = (0.08, 1.0)  # of the image, that "resized_crop" takes
CROP_ASPECT = (3 / 4, 4 / 3)  # width by height of that part
CROP_TRIES = 10  # to draw a part that lies in the image, which is taken whole otherwise


def draw(
    kind: str, flip: bool, seed: int, epoch: int | np.ndarray, keys: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the changes of a batch.

    Args:
        kind: one of ``config.AUGMENTATIONS``, but not "none".
        flip: whether to mirror every second image on average, left to right.
        epoch: 0 or more, one for all or one for each; counted over the phases, so that no two of a run are alike.
        keys: uint64 (n,), what identifies each image.
        size: side of the images in pixels.

    Returns:
        float32 (n, 8), the projective transforms from result to source that `apply` takes, and float32 (n, 2), the
        brightness to add (0..255) and the contrast to multiply by.
    """
    keys, salts = np.asarray(keys, np.uint64), np.uint64(seed << 32) + np.asarray(epoch, np.uint64)

    def uniform(count: int) -> np.ndarray:
        return _uniform(keys, salts, count)

    crops = {"padded_crop": _padded_crop, "resized_crop": _resized_crop}
    if kind in crops:
        transforms = crops[kind](uniform, flip, size)
        colours = np.tile([0.0, 1.0], (len(keys), 1))
    else:
        transforms, colours = _turned(STRENGTHS[kind], uniform, flip, size)
    return transforms.astype(np.float32), colours.astype(np.float32)


def apply(kind: str, images: tf.Tensor, transforms: tf.Tensor, colours: tf.Tensor) -> tf.Tensor:
    """Returns the changed images, float32 (n, size, size, 3) in 0..255, of uint8 images of that shape.

    Pixels from beyond the edge are mirrored in, or black where `kind` is "padded_crop"; contrast is taken about the mean
    of each image.
    """
    images = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT" if kind == "padded_crop" else "REFLECT",
    )
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    brightness, contrast = (colours[:, i, None, None, None] for i in (0, 1))
    return tf.clip_by_value(images * contrast + (mean * (1.0 - contrast) + brightness), 0.0, 255.0)


def _turned(
    spread: dict[str, float], uniform: Callable[[int], np.ndarray], flip: bool, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Turned and zoomed about the middle, mirrored, shifted; and changed colours."""
    turn, zoom, shift_x, shift_y, mirror, brightness, contrast = uniform(7).T
    angle = np.deg2rad(spread["rotation"] * turn)
    scale = 1 / (1 + spread["zoom"] * zoom)
    sign = np.where(flip & (mirror < 0), -1.0, 1.0)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    middle = (size - 1) / 2
    x = middle + size * spread["shift"] * shift_x
    y = middle + size * spread["shift"] * shift_y
    zero = np.zeros_like(angle)
    transforms = np.stack(
        [
            sign * cosine,
            -sine,
            x - sign * cosine * middle + sine * middle,
            sign * sine,
            cosine,
            y - sign * sine * middle - cosine * middle,
            zero,
            zero,
        ],
        axis=1,
    )
    return transforms, np.stack([255 * spread["brightness"] * brightness, 1 + spread["contrast"] * contrast], axis=1)


def _padded_crop(uniform: Callable[[int], np.ndarray], flip: bool, size: int) -> np.ndarray:
    mirror, right, down = uniform(3).T
    padding = round(PADDING * size)
    left, top = (_whole(number, 2 * padding) - padding for number in (right, down))
    return _of_part(left, top, np.full_like(left, size), np.full_like(top, size), flip & (mirror < 0), size)


def _resized_crop(uniform: Callable[[int], np.ndarray], flip: bool, size: int) -> np.ndarray:
    """The first of the tries that lies in the image; area and logarithm of the aspect are uniform, sides whole pixels."""
    mirror, right, down, *tries = uniform(3 + 2 * CROP_TRIES).T
    area = _between(np.array(tries[::2]), *CROP_AREA) * size**2  # (tries, n)
    aspect = np.exp(_between(np.array(tries[1::2]), *np.log(CROP_ASPECT)))
    widths, heights = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (1 <= widths) & (widths <= size) & (1 <= heights) & (heights <= size)
    first, images = fits.argmax(axis=0), np.arange(len(mirror))
    width, height = (np.where(fits.any(axis=0), sides[first, images], size) for sides in (widths, heights))
    return _of_part(_whole(right, size - width), _whole(down, size - height), width, height, flip & (mirror < 0), size)


def _of_part(
    left: np.ndarray, top: np.ndarray, width: np.ndarray, height: np.ndarray, is_mirrored: np.ndarray, size: int
) -> np.ndarray:
    """The transforms (n, 8) that scale a part of each image, given in pixels, to all of the result."""
    x, y = np.where(is_mirrored, -width, width) / size, height / size  # source pixels in one of the result
    start = np.where(is_mirrored, left + width, left)
    zero = np.zeros_like(x)
    # A pixel's middle lies half a pixel inside of its edge.
    return np.stack([x, zero, start + x / 2 - 0.5, zero, y, top + y / 2 - 0.5, zero, zero], axis=1)


def _between(numbers: np.ndarray, low: float, high: float) -> np.ndarray:
    """Uniform in -1..1 to uniform in low..high."""
    return low + (numbers + 1) / 2 * (high - low)


def _whole(numbers: np.ndarray, most: int | np.ndarray) -> np.ndarray:
    """Uniform in -1..1 to whole numbers 0..most, one as likely as another."""
    return np.minimum(np.floor(_between(numbers, 0, most + 1)), most)


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
