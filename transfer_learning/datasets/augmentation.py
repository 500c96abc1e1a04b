"""Random augmentation: parameters are drawn from (seed, epoch, image), pixels are resampled once.

`draw` is a pure function in NumPy; `apply` is TensorFlow without randomness. A new augmentation is one `Augmentation`
in the table `AUGMENTATIONS`. Flip, rotation, zoom, shift and crop are composed into one matrix per image, so that its
pixels are interpolated once.

* "light" and "strong" rotate, zoom, shift, flip and change brightness and contrast, within `STRENGTHS`.
* "rotation" flips and rotates by up to 5 degrees, as CV Studio's own transform does.
* "padded_crop" flips and shifts by whole pixels, up to an eighth of the side (4 of CIFAR's 32), in black (He, Zhang,
  Ren and Sun, "Deep Residual Learning", 2016, section 4.2).
* "resized_crop" flips and enlarges a random part (Szegedy et al., "Going Deeper with Convolutions", 2015), drawn as by
  torchvision's RandomResizedCrop.
* "trivial" flips and makes one random change of a random strength (Mueller and Hutter, "TrivialAugment", 2021,
  arXiv:2103.10158), without its equalization and sharpness.
* "erasing" is "light", and every second image loses a rectangle (Zhong et al., "Random Erasing", 2017, arXiv:1708.04896).
* "mixup" and "cutmix" are "light", and mix each image with the next one of its batch, see mixing.py.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from transfer_learning.datasets import mixing

if TYPE_CHECKING:  # the table is read where TensorFlow is not wanted, as by `--help`
    import tensorflow as tf

VERSION = 1  # part of the cache keys of augmented copies: raise it when an augmentation changes
# half ranges: rotation in degrees; zoom, shift (of the side), brightness (of 255) and contrast as fractions
STRENGTHS = {
    "light": {"rotation": 10.0, "zoom": 0.10, "shift": 0.05, "brightness": 0.08, "contrast": 0.10},
    "strong": {"rotation": 25.0, "zoom": 0.25, "shift": 0.10, "brightness": 0.15, "contrast": 0.30},
    "rotation": {"rotation": 5.0, "zoom": 0.0, "shift": 0.0, "brightness": 0.0, "contrast": 0.0},
}
PADDING = 4 / 32  # of the side: the largest shift of "padded_crop"
CROP_AREA = (0.08, 1.0)  # of the image: the part that "resized_crop" takes
CROP_ASPECT = (3 / 4, 4 / 3)  # width by height of that part
CROP_TRIES = 10  # to draw a part inside the image; the whole image is taken after that
ERASED_AREA, ERASED_ASPECT = (0.02, 0.33), (0.3, 3.3)  # of the rectangle that "erasing" takes away
# Largest strength of the changes of "trivial", the wide ones of the paper: degrees, shear, shift of the side, factors.
TRIVIAL = {
    "rotation": 135.0,
    "shear": 0.99,
    "shift": 32 / 224,
    "brightness": 0.99,
    "contrast": 0.99,
    "saturation": 0.99,
}
TRIVIAL_KINDS = (
    *("none", "rotation", "shear_x", "shear_y", "shift_x", "shift_y"),
    *("brightness", "contrast", "saturation", "posterize", "solarize", "autocontrast"),
)

Uniform = Callable[[int], np.ndarray]  # count -> float64 (n, count), uniform in -1..1


class Augmentation(NamedTuple):
    """One kind of change.

    Attributes:
        draw: (uniform, flip, size) -> float (n, k) parameters, which only `apply` has to understand. `uniform(count)`
            gives numbers float64 (n, count) in -1..1; `flip` allows mirroring; `size` is the side in pixels.
        apply: (images float32 (n, size, size, 3) in 0..255, parameters float32 (n, k)) -> images of the same shape.
        share: of the label of each image itself, by the parameters, float32 (n,); the rest is that of the next image of
            the batch. None: images are not mixed.
    """

    draw: Callable[[Uniform, bool, int], np.ndarray]
    apply: "Callable[[tf.Tensor, tf.Tensor], tf.Tensor]"
    share: "Callable[[tf.Tensor], tf.Tensor] | None" = None


def draw(kind: str, flip: bool, seed: int, epoch: int | np.ndarray, keys: np.ndarray, size: int) -> np.ndarray:
    """Draws the parameters of a batch, float32 (n, k), for `apply`.

    Args:
        kind: a name in `AUGMENTATIONS`.
        flip: whether to mirror every second image on average, left to right.
        epoch: 0 or more, one for all or one for each; counted over the phases, so that no two of a run are alike.
        keys: uint64 (n,), what identifies each image.
        size: side of the images in pixels.
    """
    keys, salts = np.asarray(keys, np.uint64), np.uint64(seed << 32) + np.asarray(epoch, np.uint64)
    return AUGMENTATIONS[kind].draw(partial(_uniform, keys, salts), flip, size).astype(np.float32)


def apply(kind: str, images: "tf.Tensor", parameters: "tf.Tensor") -> "tf.Tensor":
    """Returns the changed images, float32 (n, size, size, 3) in 0..255, of uint8 images of that shape."""
    import tensorflow as tf

    return AUGMENTATIONS[kind].apply(tf.cast(images, tf.float32), parameters)


def _transform(images: "tf.Tensor", parameters: "tf.Tensor", fill_mode: str = "REFLECT") -> "tf.Tensor":
    """Resamples the images and changes their colours.

    Args:
        parameters: float32 (n, 10): 8 numbers of the projective transform from result to source, the brightness to add
            (of 255), and the contrast to multiply by, about the mean of each image.
        fill_mode: of pixels beyond the edge: "REFLECT", or "CONSTANT" for black.
    """
    import tensorflow as tf

    images = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=parameters[:, :8],
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode=fill_mode,
    )
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    brightness, contrast = (parameters[:, i, None, None, None] for i in (8, 9))
    return tf.clip_by_value(images * contrast + (mean * (1.0 - contrast) + brightness), 0.0, 255.0)


def _draw_turn(spread: dict[str, float], uniform: Uniform, flip: bool, size: int) -> np.ndarray:
    """Parameters (n, 10) for rotation and zoom about the center, flip, shift, brightness and contrast."""
    turn, zoom, shift_x, shift_y, mirror, brightness, contrast = uniform(7).T
    angle = np.deg2rad(spread["rotation"] * turn)
    scale = 1 / (1 + spread["zoom"] * zoom)
    sign = np.where(flip & (mirror < 0), -1.0, 1.0)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    middle = (size - 1) / 2
    x = middle + size * spread["shift"] * shift_x
    y = middle + size * spread["shift"] * shift_y
    zero = np.zeros_like(angle)
    to_x = sign * cosine, -sine, x - sign * cosine * middle + sine * middle
    to_y = sign * sine, cosine, y - sign * sine * middle - cosine * middle
    colours = 255 * spread["brightness"] * brightness, 1 + spread["contrast"] * contrast
    return np.stack([*to_x, *to_y, zero, zero, *colours], axis=1)


def _draw_padded_crop(uniform: Uniform, flip: bool, size: int) -> np.ndarray:
    mirror, right, down = uniform(3).T
    padding = round(PADDING * size)
    left, top = (_whole(number, 2 * padding) - padding for number in (right, down))
    return _of_part(left, top, np.full_like(left, size), np.full_like(top, size), flip & (mirror < 0), size)


def _draw_resized_crop(uniform: Uniform, flip: bool, size: int) -> np.ndarray:
    """Parameters (n, 10) for the first try inside the image; area and log aspect are uniform, sides whole pixels."""
    mirror, right, down, *tries = uniform(3 + 2 * CROP_TRIES).T
    area = _between(np.array(tries[::2]), *CROP_AREA) * size**2  # (tries, n)
    aspect = np.exp(_between(np.array(tries[1::2]), *np.log(CROP_ASPECT)))
    widths, heights = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (1 <= widths) & (widths <= size) & (1 <= heights) & (heights <= size)
    first, images = fits.argmax(axis=0), np.arange(len(mirror))
    width, height = (np.where(fits.any(axis=0), sides[first, images], size) for sides in (widths, heights))
    return _of_part(_whole(right, size - width), _whole(down, size - height), width, height, flip & (mirror < 0), size)


def _draw_trivial(uniform: Uniform, flip: bool, size: int) -> np.ndarray:
    """Parameters (n, 15): the 10 of `_transform`, then factors of brightness and saturation, the number of levels, the
    threshold of solarization, and whether the contrast is stretched.
    """
    kind, strength, mirror = uniform(3).T
    names = np.array(TRIVIAL_KINDS)[_whole(kind, len(TRIVIAL_KINDS) - 1).astype(int)]

    def of(name: str, most: float) -> np.ndarray:
        return np.where(names == name, most * strength, 0.0)

    angle = np.deg2rad(of("rotation", TRIVIAL["rotation"]))
    sign = np.where(flip & (mirror < 0), -1.0, 1.0)
    shear_x, shear_y = of("shear_x", TRIVIAL["shear"]), of("shear_y", TRIVIAL["shear"])
    x_by_x, x_by_y = sign * np.cos(angle), shear_x - np.sin(angle)
    y_by_x, y_by_y = sign * (np.sin(angle) + shear_y), np.cos(angle)
    middle = (size - 1) / 2
    to_x = x_by_x, x_by_y, middle * (1 - x_by_x - x_by_y) + size * of("shift_x", TRIVIAL["shift"])
    to_y = y_by_x, y_by_y, middle * (1 - y_by_x - y_by_y) + size * of("shift_y", TRIVIAL["shift"])
    zero = np.zeros_like(angle)
    colours = [1 + of(name, TRIVIAL[name]) for name in ("contrast", "brightness", "saturation")]
    amount = np.abs(strength)
    levels = np.where(names == "posterize", 2.0 ** (8 - np.round(6 * amount)), 256.0)
    threshold = np.where(names == "solarize", 255 * (1 - amount), 256.0)
    stretch = (names == "autocontrast").astype(float)
    return np.stack([*to_x, *to_y, zero, zero, zero, *colours, levels, threshold, stretch], axis=1)


def _change_trivially(images: "tf.Tensor", parameters: "tf.Tensor") -> "tf.Tensor":
    import tensorflow as tf

    images = _transform(images, parameters, fill_mode="CONSTANT")
    factor, saturation, levels, threshold, stretch = (parameters[:, i, None, None, None] for i in range(10, 15))
    images = tf.clip_by_value(factor * images, 0.0, 255.0)
    grey = tf.image.rgb_to_grayscale(images)
    images = tf.clip_by_value(grey + saturation * (images - grey), 0.0, 255.0)
    images = tf.where(levels < 256, tf.floor(images / (256 / levels)) * (256 / levels), images)
    images = tf.where(images >= threshold, 255.0 - images, images)
    low, high = (reduce(images, axis=(1, 2), keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
    return tf.where(stretch > 0, (images - low) * (255.0 / tf.maximum(high - low, 1.0)), images)


def _draw_erasing(uniform: Uniform, flip: bool, size: int) -> np.ndarray:
    """Parameters (n, 14): the 10 of "light", then left, top, right and bottom of the rectangle; 0 to 0: none."""
    light, (erased, area, aspect, right, down) = _with_light(uniform, flip, size, 5)
    area, aspect = _between(area, *ERASED_AREA) * size**2, np.exp(_between(aspect, *np.log(ERASED_ASPECT)))
    width, height = (np.clip(np.round(np.sqrt(pixels)), 1, size) for pixels in (area * aspect, area / aspect))
    left, top = _whole(right, size - width), _whole(down, size - height)
    box = np.stack([left, top, left + width, top + height], axis=1)
    return np.concatenate([light, np.where(erased[:, None] < 0, box, 0.0)], axis=1)


def _erase(images: "tf.Tensor", parameters: "tf.Tensor") -> "tf.Tensor":
    import tensorflow as tf

    images = _transform(images, parameters)
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    return tf.where(mixing.inside(parameters[:, 10:], images), mean, images)


def _draw_mixed(drawn: Callable[[np.ndarray, int], np.ndarray], count: int) -> Callable:
    """Parameters of "light", and after them those of a function of mixing.py, which takes `count` numbers in 0..1."""

    def draw_both(uniform: Uniform, flip: bool, size: int) -> np.ndarray:
        light, numbers = _with_light(uniform, flip, size, count)
        return np.concatenate([light, drawn((numbers + 1) / 2, size)], axis=1)

    return draw_both


def _with_light(uniform: Uniform, flip: bool, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The parameters (n, 10) of "light", and `count` further numbers for each image, (count, n) in -1..1."""
    numbers = uniform(7 + count)
    return _draw_turn(STRENGTHS["light"], lambda first: numbers[:, :first], flip, size), numbers[:, 7:].T


def _mix(mixed: "Callable[[tf.Tensor, tf.Tensor], tf.Tensor]", images: "tf.Tensor", parameters: "tf.Tensor"):
    return mixed(_transform(images, parameters), parameters[:, 10:])


def _of_part(
    left: np.ndarray, top: np.ndarray, width: np.ndarray, height: np.ndarray, is_mirrored: np.ndarray, size: int
) -> np.ndarray:
    """Parameters (n, 10) that scale a part of each image, in pixels, to the whole result, without change of colours."""
    x, y = np.where(is_mirrored, -width, width) / size, height / size  # source pixels in one of the result
    start = np.where(is_mirrored, left + width, left)
    zero = np.zeros_like(x)
    # The center of a pixel is half a pixel from its edge.
    return np.stack([x, zero, start + x / 2 - 0.5, zero, y, top + y / 2 - 0.5, zero, zero, zero, zero + 1], axis=1)


def _between(numbers: np.ndarray, low: float, high: float | np.ndarray) -> np.ndarray:
    """Uniform in -1..1 to uniform in low..high."""
    return low + (numbers + 1) / 2 * (high - low)


def _whole(numbers: np.ndarray, most: int | np.ndarray) -> np.ndarray:
    """Uniform in -1..1 to uniform integers 0..most."""
    return np.minimum(np.floor(_between(numbers, 0, most + 1)), most)


def _uniform(keys: np.ndarray, salts: np.ndarray, count: int) -> np.ndarray:
    """float64 (n, count) in -1..1, a pure function of each image's key and salt, independent of the batch.

    SplitMix64 (Steele, Lea and Flood, 2014), counted from the mixed key and salt.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    start = _mixed(_mixed(keys) ^ salts)
    drawn = _mixed(start[:, None] + golden * np.arange(1, count + 1, dtype=np.uint64))
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def _mixed(bits: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every input bit changes every output bit; overflow is intended."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


AUGMENTATIONS = {
    "light": Augmentation(partial(_draw_turn, STRENGTHS["light"]), _transform),
    "strong": Augmentation(partial(_draw_turn, STRENGTHS["strong"]), _transform),
    "rotation": Augmentation(partial(_draw_turn, STRENGTHS["rotation"]), _transform),
    "padded_crop": Augmentation(_draw_padded_crop, partial(_transform, fill_mode="CONSTANT")),
    "resized_crop": Augmentation(_draw_resized_crop, _transform),
    "trivial": Augmentation(_draw_trivial, _change_trivially),
    "erasing": Augmentation(_draw_erasing, _erase),
    "mixup": Augmentation(
        _draw_mixed(mixing.draw_mixup, 1), partial(_mix, mixing.mixup), lambda parameters: parameters[:, 10]
    ),
    "cutmix": Augmentation(
        _draw_mixed(mixing.draw_cutmix, 3), partial(_mix, mixing.cutmix), lambda parameters: parameters[:, 14]
    ),
}
