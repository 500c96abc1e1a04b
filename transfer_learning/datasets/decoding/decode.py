"""Decodes image files and arrays to square uint8 pixels, for training, `predict` and exports alike."""

import hashlib
import io
import logging
import math
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from transfer_learning.cli import formatting
from transfer_learning.datasets.dataset import (
    EMPTY_FILE,
    NOT_AN_IMAGE,
    TOO_MANY_PIXELS,
    TRUNCATED_FILE,
    UNREADABLE_FILE,
    FilePart,
    Source,
)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")  # an allow-list: Pillow knows 40 more, some of them old
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that leaves at least this many times the requested pixels per side
# for the antialiased resize. On photos, 1.5 differs from a full decode by 0.2 grey levels more than 2 does, and saves
# 24 % of the time of 12 megapixels.
ROOM_TO_RESIZE = 1.5
JPEG_QUALITY = 95  # of images that are cached as JPEGs
MAX_BYTES = 10**9  # per file: Pillow's limit of 89 million pixels takes 0.7 GB at 4 x 16 bits, uncompressed
# Pillow has no exception of its own for a truncated file: these are the words of its messages.
TRUNCATED = re.compile("truncated|cut off|too early|broken data stream|unexpected end|premature", re.IGNORECASE)

# Pillow raises above twice its pixel limit and only warns above the limit itself; raise for both.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# Pillow's warnings do not name the file; the manifest names every file that cannot be decoded.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class Decoded(NamedTuple):
    """The pixels of one image, or the problem and its kind."""

    pixels: Any  # uint8 (size, size, 3), RGB; JPEG bytes if workers were asked for them; None for a problem
    width: int  # in pixels, after the EXIF rotation; 0 if unknown
    height: int
    problem: str  # "" if decoded
    remarks: str = ""  # of a file: format, Pillow's mode and unusual properties; see `_remarks`
    kind: str = ""  # of the problem, one of those in `dataset`


def failed(kind: str, problem: str) -> Decoded:
    """The result for an image that cannot be decoded."""
    return Decoded(None, 0, 0, problem, kind=kind)


def open_file(source: Path | FilePart) -> BinaryIO:
    """Opens an image file, or the part of a file that is one.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file (a pipe would block, a device may be endless), or larger than MAX_BYTES.
    """
    num_bytes = source.length if isinstance(source, FilePart) else source.stat().st_size
    if num_bytes > MAX_BYTES:
        raise ValueError(
            f"it has {formatting.size(num_bytes)}, more than the limit of {formatting.size(MAX_BYTES)} per image"
        )
    if isinstance(source, FilePart):
        return io.BytesIO(source.read_bytes())
    if not source.is_file():
        raise ValueError("it is a folder, a pipe or a device")
    return open(source, "rb")


def read_file(source: Path | FilePart) -> bytes:
    """Reads an image file; raises what `open_file` does."""
    with open_file(source) as file:
        return file.read()


def content_hash(source: Source | bytes) -> str:
    """Returns the SHA-256 of the file's bytes, or of the array's shape and bytes, in hexadecimal; "" if unreadable."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, np.ndarray):
        return hashlib.sha256(repr(source.shape).encode() + np.ascontiguousarray(source).tobytes()).hexdigest()
    try:
        with open_file(source) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (OSError, ValueError):
        return ""


def decode(source: Source | bytes, size: int, resize: str) -> Decoded:
    """Decodes to RGB, applies the EXIF rotation, makes square by `resize` and scales with antialiasing.

    Args:
        source: an image file, a part of a file, the bytes of either, or uint8 pixels (height, width) or (height, width,
        3). size: side of the result in pixels. resize: "squash" changes the aspect ratio, "crop" takes the center,
        "pad" adds black bars.

    Returns:
        The pixels, uint8 (size, size, 3); or a problem, for an image that cannot be decoded: nothing is raised.
    """
    try:
        if isinstance(source, np.ndarray):
            image, remarks = Image.fromarray(source), ""
            width, height = image.size
        else:
            content = source if isinstance(source, bytes) else read_file(source)
            if not content:
                return failed(EMPTY_FILE, "the file is empty")
            image, (width, height), remarks = _open(content, size)
        return Decoded(np.asarray(_square(_to_rgb(image), size, resize)), width, height, "", remarks)
    except FileNotFoundError:
        return failed(UNREADABLE_FILE, "there is no such file")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return failed(TOO_MANY_PIXELS, f"too many pixels ({error})")
    except UnidentifiedImageError:
        return failed(NOT_AN_IMAGE, f"cannot be decoded (it is none of {', '.join(FORMATS)})")
    except MemoryError:
        return failed(UNREADABLE_FILE, "decoding it takes too much memory")
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more
        reason = str(error) or type(error).__name__
        kind = TRUNCATED_FILE if TRUNCATED.search(reason) else UNREADABLE_FILE
        return failed(kind, f"cannot be decoded ({reason})"[:200])


def seen_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the EXIF rotation; reads no pixel."""
    return image.size[::-1] if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else image.size


def upright(content: bytes) -> Image.Image:
    """The image in RGB at its full size, after the EXIF rotation; raises whatever the decoder does."""
    return _to_rgb(_open(content)[0])


def to_jpeg(pixels: np.ndarray) -> bytes:
    """Encodes uint8 (height, width, 3) as JPEG without chroma subsampling."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def from_jpeg(content: bytes) -> np.ndarray:
    """Decodes a JPEG of `to_jpeg` to uint8 (height, width, 3); other versions of Pillow may give other pixels."""
    return np.asarray(Image.open(io.BytesIO(content), formats=("JPEG",)))


def _open(content: bytes, size: int = 0) -> tuple[Image.Image, tuple[int, int], str]:
    """Opens an image and applies the EXIF rotation; at a reduced scale if that leaves enough pixels for `size` > 0.

    Returns:
        The image, its full width and height after the rotation, and the remarks.
    """
    file = Image.open(io.BytesIO(content), formats=FORMATS)
    stored_mode = _stored_mode(file)  # before EXIF is read, which loads a PNG
    full_size, orientation = seen_size(file), file.getexif().get(0x0112, 1)
    if size and file.format in ("JPEG", "MPO"):  # MPO: the JPEGs of stereo and many telephone cameras
        file.draft("RGB", (math.ceil(ROOM_TO_RESIZE * size),) * 2)
        file.decodermaxblock = len(content)  # all at once: Pillow's usual 64 KB cost libjpeg 4 % of its time
    image = ImageOps.exif_transpose(file)
    return image, full_size, _remarks(file, stored_mode, orientation, image.has_transparency_data)


def _stored_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's raw mode of the file; "" if unknown, or once the image is loaded."""
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _remarks(file: Image.Image, stored_mode: str, orientation: int, is_transparent: bool) -> str:
    """``JPEG RGB``, ``JPEG CMYK turned-6``, ``PNG RGBA 16-bit transparent``, ``GIF P animated``."""
    words = [str(file.format), file.mode]
    if "16" in stored_mode or file.mode.startswith("I"):
        words.append("16-bit")
    if is_transparent:
        words.append("transparent")
    if orientation in (2, 3, 4, 5, 6, 7, 8):
        words.append(f"turned-{orientation}")
    with suppress(Exception):  # frames after the first one may be damaged
        if getattr(file, "is_animated", False):
            words.append("animated")
    return " ".join(words)


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: 16 and 32 bits are scaled down, transparency is put over white, palettes and CMYK are converted."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).clip(0, 65535).astype(np.uint16)
        in_16_bits = image.mode != "I" or values.max() > 255  # mode I may hold 8 or 16 bits
        image = Image.fromarray((values >> 8 if in_16_bits else values).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")


def _square(image: Image.Image, size: int, resize: str) -> Image.Image:
    bicubic = Image.Resampling.BICUBIC
    if image.size == (size, size):
        return image
    if resize == "crop":
        return ImageOps.fit(image, (size, size), bicubic)
    if resize == "pad":
        if round(size * min(image.size) / max(image.size)) == 0:
            raise ValueError("too thin to pad")  # Pillow would return black bars alone
        return ImageOps.pad(image, (size, size), bicubic)
    return image.resize((size, size), bicubic)
