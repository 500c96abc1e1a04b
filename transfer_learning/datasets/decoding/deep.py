"""Reads the values of images with more than 8 bits per number, which Pillow cuts off or leaves in their own type."""

import io
import math
import re
import sys
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from transfer_learning.datasets.decoding.metadata import ORIENTATION, significant_bits

BITS_PER_SAMPLE, PLANES, SAMPLE_FORMAT, GDAL_NO_DATA = 258, 284, 339, 42113  # tags of TIFF
SEPARATE = 2  # PLANES
SIGNED = 2  # a SampleFormat
COLOUR = re.compile(r"(RGBA|RGBX|RGB|LA);16([BLN])")  # Pillow's raw modes of 16 bits in several channels
SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
PNM_HEADER = re.compile(rb"P([56])" + rb"(?:\s|#[^\n\r]*[\n\r])+(\d{1,9})" * 3 + rb"\s", re.DOTALL)


class DeepValues(NamedTuple):
    """The values of an image as the file has them."""

    kind: str  # type of number, see `value_range.Ranges`
    array: np.ndarray  # (height, width) or (height, width, 3)
    alpha: np.ndarray | None = None  # (height, width), in the same units
    bits: int = 0  # significant bits, as the file says; 0: it does not
    no_data: float | None = None  # a value that marks missing pixels
    limits: tuple[float, float] | None = None  # the value range, where the file itself says it


def raw_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's raw mode of the file; "" if unknown, or once the image is loaded."""
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def deep_values(image: ImageFile.ImageFile, stored_mode: str, content: bytes) -> DeepValues | None:
    """The values of a loaded image; None if they have 8 bits.

    Args:
        stored_mode: its `raw_mode` before it was loaded.
        content: the file.
    """
    tags = getattr(image, "tag_v2", {})
    if tags.get(PLANES) == SEPARATE and _first(tags.get(BITS_PER_SAMPLE)) == 16 and len(image.getbands()) > 1:
        raise ValueError("separate planes of 16 bits are not supported; save it with interleaved channels")
    if found := COLOUR.fullmatch(stored_mode):
        return _colour(image, content, *found.groups())
    if image.mode == "L" and _first(tags.get(SAMPLE_FORMAT)) == SIGNED:
        return DeepValues("int8", np.asarray(image).view(np.int8))
    if not (image.mode.startswith("I") or image.mode == "F"):
        return None
    array, kind = np.asarray(image), "float"
    if image.mode.startswith("I;16"):
        kind = "uint12" if stored_mode == "I;12" else "uint16"
    elif image.mode == "I":
        is_signed = _first(tags.get(SAMPLE_FORMAT)) == SIGNED
        kind = f"{'' if is_signed else 'u'}int{_first(tags.get(BITS_PER_SAMPLE)) or 16}"
        array = array if is_signed else array.view(np.uint32)  # Pillow takes all of them for signed ones
    return DeepValues(kind, array, bits=significant_bits(content), no_data=_no_data(tags))


def _first(tag: int | tuple[int, ...] | None) -> int | None:
    return tag[0] if isinstance(tag, tuple) and tag else tag if isinstance(tag, int) else None


def _no_data(tags) -> float | None:
    try:
        return float(tags[GDAL_NO_DATA])
    except (KeyError, ValueError, TypeError):
        return None


def _colour(image: Image.Image, content: bytes, channels: str, order: str) -> DeepValues:
    """Pillow reads the upper 8 bits; read in the other order of bytes, the same file gives the lower ones."""
    bits = significant_bits(content)
    if channels == "LA":  # a pixel of 4 bytes, read as one number
        both = np.asarray(_read_as(content, "I", "I;32B", image.size)).view(np.uint32)
        return DeepValues("uint16", (both >> 16).astype(np.uint16), (both & 0xFFFF).astype(np.uint16), bits)
    lower = np.asarray(_read_as(content, image.mode, f"{channels};16{SWAPPED[order]}", image.size))
    array = np.asarray(image).astype(np.uint16) << 8
    array |= lower
    return DeepValues("uint16", array[..., :3], array[..., 3] if image.mode == "RGBA" else None, bits)


def _read_as(content: bytes, mode: str, stored_mode: str, size: tuple[int, int]) -> Image.Image:
    """Reads a file again, with another raw mode of the same width."""
    image = Image.open(io.BytesIO(content), formats=("PNG", "TIFF"))
    assert isinstance(image, ImageFile.ImageFile)
    image._mode = mode
    image.tile = [
        tile._replace(args=(stored_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else stored_mode)
        for tile in image.tile
    ]
    keep_from_exif(image)
    image.load()
    if image.size != size:
        raise ValueError("it has another size when it is read again")
    return image


def keep_from_exif(image: ImageFile.ImageFile) -> None:
    """Keeps Pillow from reading all EXIF of a TIFF while it loads the pixels, which it turns by the orientation."""
    if image.format == "TIFF":
        with suppress(Exception):
            image.getexif()  # which is read once, also if that fails
        exif = image.getexif()
        for tag in set(exif) - {ORIENTATION}:
            del exif[tag]


def pnm_values(content: bytes) -> DeepValues | None:
    """The values of a binary PGM or PPM whose largest value is not 255; None for other files.

    Pillow reads each number of such a file in Python, and leaves 8 bits of a PPM.

    Raises:
        ValueError: the file ends too early.
    """
    header = PNM_HEADER.match(content)
    if not header or header[4] == b"255":
        return None
    width, height, largest = map(int, header.groups()[1:])
    if not 0 < largest < 65536 or not width or not height:
        return None
    shape = (height, width, 3) if header[1] == b"6" else (height, width)
    dtype = np.dtype(np.uint8 if largest < 256 else ">u2")
    if len(content) - header.end() < math.prod(shape) * dtype.itemsize:
        raise ValueError("image file is truncated")
    array = np.frombuffer(content, dtype, math.prod(shape), header.end()).reshape(shape)
    return DeepValues("uint16", array, limits=None if largest == 65535 else (0, largest))
