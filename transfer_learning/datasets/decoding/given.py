"""What a Python program passes as images: paths, encoded images, images of Pillow, and arrays of pixels."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from transfer_learning.errors import UserError

GivenImage = str | os.PathLike | bytes | np.ndarray  # a place, an encoded image, or pixels, as `decode` takes them
EXPECTED = "paths, bytes or open files of images, Pillow images, and uint8 pixels (height, width, 3) were expected"


def each_image(images: Any) -> Iterator[GivenImage]:
    """Yields one or several images, of any iterable, in their order.

    Args:
        images: paths; bytes of an encoded image, or an open file of them; images of Pillow; pixels, uint8 (height, width)
            or (height, width, channels), several of one size as (n, height, width, channels); or an iterable of these.

    Raises:
        UserError: something else, or an empty path.
    """
    if isinstance(images, str | os.PathLike):
        if not os.fspath(images):
            raise UserError("The path of an image is empty; give images, or folders, archives or tables of images.")
        yield images
    elif isinstance(images, bytes | bytearray | memoryview):
        yield bytes(images)
    elif isinstance(images, Image.Image):
        yield _pixels_of(images)
    elif hasattr(images, "read"):
        content = images.read()
        if not isinstance(content, bytes):
            raise UserError(f"The file {getattr(images, 'name', images)} is open as text; open it with 'rb'.")
        yield content
    elif hasattr(images, "__array__"):
        yield from _in_array(images)
    elif isinstance(images, Iterable) and not isinstance(images, Mapping):
        for image in images:
            yield from each_image(image)
    else:
        raise UserError(f"{type(images).__name__} is not an image; {EXPECTED}.")


def _in_array(images: Any) -> Iterator[GivenImage]:
    """The images in an array, also one of another library: paths, one image, or several of one size."""
    array = np.asarray(images)
    channels = array.shape[2:] if array.ndim == 3 else (3,)
    if array.ndim == 1 and array.dtype.kind in "OUT":
        yield from each_image(array.tolist())
    elif array.ndim == 4:
        for image in array:
            yield from each_image(image)
    elif array.dtype in (np.uint8, np.bool_) and array.ndim in (2, 3) and channels[0] in (1, 3, 4) and array.size:
        array = array if array.dtype == np.uint8 else array.astype(np.uint8) * np.uint8(255)
        yield array[:, :, 0] if channels == (1,) else array
    else:
        advice = "; scale them to 0..255 and convert them with .astype('uint8')" if array.dtype.kind in "fiu" else ""
        what = f"{type(images).__name__} of {array.dtype}, shape {array.shape},"
        raise UserError(f"The {what} is no image; {EXPECTED}{advice if array.dtype != np.uint8 else ''}.")


def _pixels_of(image: Image.Image) -> np.ndarray:
    """The pixels of an image of Pillow, after the EXIF rotation."""
    if image.mode.startswith("I") or image.mode == "F":
        raise UserError(
            f"The image of Pillow has the mode {image.mode}, whose values need the range of a file; give the path or the "
            "bytes of its file."
        )
    image = ImageOps.exif_transpose(image)
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
