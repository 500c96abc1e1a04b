"""Decodes image files and arrays to square uint8 pixels, for training, `predict` and exports alike."""

import hashlib
import io
import logging
import math
import re
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from transfer_learning.cli import formatting
from transfer_learning.datasets.dataset import (
    EMPTY_FILE,
    MISSING_EXTRA,
    NOT_AN_IMAGE,
    TOO_MANY_PIXELS,
    TRUNCATED_FILE,
    UNREADABLE_FILE,
    FilePart,
    Source,
)
from transfer_learning.datasets.decoding import deep, metadata, value_range
from transfer_learning.datasets.decoding.formats import NUM_BYTES, SUFFIXES, format_of
from transfer_learning.errors import MissingExtra, needs_extra

FORMATS = tuple(name for name in SUFFIXES if name != "HEIF")  # that Pillow decodes without another package
NO_IMAGE = f"it is none of {', '.join(FORMATS)}, HEIC"
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that leaves at least this many times the requested pixels per side
# for the antialiased resize. On photos, 1.5 differs from a full decode by 0.2 grey levels more than 2 does, and saves
# 24 % of the time of 12 megapixels.
ROOM_TO_RESIZE = 1.5
JPEG_QUALITY = 95  # of images that are cached as JPEGs
MAX_BYTES = 10**9  # per file
# What the pixels of one image may take while they are decoded, in bytes, and what a pixel takes, by format or mode: 4
# bytes else, and 24 for colours of 16 bits. A process of `workers` may have 4 GB.
MAX_DECODED_BYTES = 1_100_000_000
BYTES_PER_PIXEL = {"WEBP": 12, "AVIF": 12, "HEIF": 12, "RGBA": 8, "I": 12, "I;16": 8, "I;16B": 8, "F": 12}
ALWAYS_DECODED = 89_478_485  # pixels: Pillow's own limit
MAX_PIXELS = 10**9  # of the whole image: a JPEG decoded at 1/8 takes 5 s
# Decoded in about 0.1 s at most: a PNG or WebP of so many pixels, a JPEG at reduced scale of 10 times as many, a
# progressive one of 3 times as many.
CHEAP_PIXELS = 1_500_000
EXPENSIVE = "expensive"  # the kind of problem where only cheap images are decoded
JPEG_FORMATS = ("JPEG", "MPO")  # MPO: the JPEGs of stereo and many telephone cameras
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow has no exception of its own for a truncated file: these are the words of its messages.
TRUNCATED = re.compile("truncated|cut off|too early|broken data stream|unexpected end|premature", re.IGNORECASE)

# Pillow's warnings do not name the file; the manifest names every file that cannot be decoded.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


_max_pixels, _cheap_only = MAX_PIXELS, False
_opening = threading.Lock()  # while Pillow's limit of pixels is lifted


class TooManyPixels(Exception):
    """An image would take too much memory or time: the kind of problem, and how many pixels."""


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
    """Returns the SHA-256 of the file's bytes, or of the array's shape and bytes, in hexadecimal; "" if unreadable. A
    part of a shard has it recorded.
    """
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, np.ndarray):
        return hashlib.sha256(repr(source.shape).encode() + np.ascontiguousarray(source).tobytes()).hexdigest()
    if isinstance(source, FilePart) and source.sha256:
        return source.sha256
    try:
        with open_file(source) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (OSError, ValueError):
        return ""


def decode(source: Source | bytes, size: int, resize: str, ranges: value_range.Ranges | None = None) -> Decoded:
    """Decodes to RGB, applies the EXIF rotation, makes square by `resize` and scales with antialiasing.

    Args:
        source: an image file, a part of a file, the bytes of either, or uint8 pixels (height, width[, 3]).
        size: side of the result in pixels.
        resize: "squash" changes the aspect ratio, "crop" takes the center, "pad" adds black bars.
        ranges: of values with more than 8 bits; a type of number without a range is converted by `_by_type`.

    Returns:
        The pixels, uint8 (size, size, 3); or a problem, for an image that cannot be decoded: nothing is raised.
    """
    try:
        if isinstance(source, np.ndarray):
            pixels = np.asarray(_square(_to_rgb(Image.fromarray(source)), size, resize))
            return Decoded(pixels, source.shape[1], source.shape[0], "")
        content = source if isinstance(source, bytes) else read_file(source)
        if not content:
            return failed(EMPTY_FILE, "the file is empty")
        return _decode_or_repair(content, size, resize, ranges)
    except FileNotFoundError:
        return failed(UNREADABLE_FILE, "there is no such file")
    except MissingExtra as error:
        return failed(MISSING_EXTRA, f"a HEIC image: {str(error).rstrip('.')}")
    except TooManyPixels as error:
        kind, reason = error.args
        return failed(kind, f"too many pixels ({reason})")
    except UnidentifiedImageError:
        kind = format_of(content[:NUM_BYTES])
        reason = f"a {kind.replace('HEIF', 'HEIC')} that is damaged, or of a kind that is not supported"
        return failed(NOT_AN_IMAGE, f"cannot be decoded ({reason if kind else NO_IMAGE})")
    except MemoryError:
        return failed(UNREADABLE_FILE, "decoding it takes too much memory")
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more
        reason = str(error) or type(error).__name__
        kind = TRUNCATED_FILE if TRUNCATED.search(reason) else UNREADABLE_FILE
        return failed(kind, f"cannot be decoded ({reason})"[:200])


def limit_pixels(number: int, cheap_only: bool) -> None:
    """From now on, this process decodes no image of more pixels, whatever memory it takes; `cheap_only`: none that takes
    longer than CHEAP_PIXELS, a problem of the kind EXPENSIVE."""
    global _max_pixels, _cheap_only
    _max_pixels, _cheap_only = number, cheap_only


def full_size(content: bytes) -> tuple[int, int]:
    """Width and height after the EXIF rotation, from the header; raises whatever the decoder does."""
    try:
        file = _opened(io.BytesIO(content), content[:NUM_BYTES])
    except Exception:  # as in `_decode_or_repair`
        file = _opened(io.BytesIO(metadata.without_metadata(content) or content), content[:NUM_BYTES])
    with file:
        is_turned = _orientation(file) >= 5 and file.format != "TIFF"  # whose size is that after the rotation
        return file.size[::-1] if is_turned else file.size


def short_side(source: Path | FilePart) -> int:
    """The shorter side in pixels, from the header; raises whatever the decoder does."""
    with open_file(source) as file:
        beginning = file.read(NUM_BYTES)
        file.seek(0)
        with _opened(file, beginning) as image:
            return min(image.size)


def upright(content: bytes) -> Image.Image:
    """The image in RGB at its full size, after the EXIF rotation; raises whatever the decoder does."""
    return Image.fromarray(_decode_or_repair(content, size=0).pixels)


def to_jpeg(pixels: np.ndarray) -> bytes:
    """Encodes uint8 (height, width, 3) as JPEG without chroma subsampling."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def from_jpeg(content: bytes) -> np.ndarray:
    """Decodes a JPEG of `to_jpeg` to uint8 (height, width, 3); other versions of Pillow may give other pixels."""
    return np.asarray(Image.open(io.BytesIO(content), formats=("JPEG",)))


def _decode_or_repair(content: bytes, size: int, resize: str = "", ranges: value_range.Ranges | None = None) -> Decoded:
    """Decodes a file; if that fails, without its metadata, which no pixel needs, or with the end mark of a JPEG.

    `size`: of the square, 0 for an image as it is.
    """

    def decode_file(content: bytes) -> Decoded:
        image, (width, height), remarks = _open(content, size, ranges)
        return Decoded(np.asarray(_square(image, size, resize) if size else image), width, height, "", remarks)

    try:
        return decode_file(content)
    except (MissingExtra, TooManyPixels):
        raise
    except Exception as first:
        error = first
        if bare := metadata.without_metadata(content):
            try:
                return decode_file(bare)
            except Exception as second:
                error, content = second, bare
        if content.startswith(b"\xff\xd8") and TRUNCATED.search(str(error)) and metadata.jpeg_has_all_scans(content):
            # libjpeg fills missing pixels and does not say so: they differ if something else is where they were.
            with suppress(Exception):
                begun = content.rstrip(b"\xff")
                ended, filled = (decode_file(begun + filling + b"\xff\xd9") for filling in (b"", FILLING))
                if np.array_equal(ended.pixels, filled.pixels):
                    return ended
        raise error from None


FILLING = bytes((37 * number + 11) % 251 for number in range(512))  # no 0xFF, which would begin a marker


def _opened(file: BinaryIO, beginning: bytes) -> ImageFile.ImageFile:
    """Opens an image file by its header, whatever its number of pixels."""
    formats = FORMATS
    if format_of(beginning) == "HEIF":
        with needs_extra("heic"):
            import pillow_heif
        pillow_heif.register_heif_opener()
        formats = ("HEIF",)
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    assert isinstance(image, ImageFile.ImageFile)
    return image


def _open(content: bytes, size: int, ranges: value_range.Ranges | None) -> tuple[Image.Image, tuple[int, int], str]:
    """Opens an image and applies the EXIF rotation; at a reduced scale if that leaves enough pixels for `size` > 0.

    Returns:
        The image in RGB, its full width and height after the rotation, and the remarks.
    """
    file = _opened(io.BytesIO(content), content[:NUM_BYTES])
    stored_mode, (width, height) = deep.raw_mode(file), file.size
    if size and file.format in JPEG_FORMATS:
        file.draft("RGB", (math.ceil(ROOM_TO_RESIZE * size),) * 2)
        file.decodermaxblock = len(content)  # all at once: Pillow's usual 64 KB cost libjpeg 4 % of its time
    _check_memory(file, width * height, stored_mode)
    orientation = _orientation(file)
    deep.keep_from_exif(file)
    image: Image.Image = file
    seen = ""
    values = deep.pnm_values(content) if file.format == "PPM" else None
    is_pnm = values is not None
    if values is None:
        file.load()
        values = deep.deep_values(file, stored_mode, content)
    if values:
        if not values.limits:
            seen = f" {value_range.extremes(values.kind, values.array, values.bits, values.no_data)}"
        limits = values.limits or (ranges or {}).get(values.kind, value_range.PLAIN if is_pnm else None)
        if limits and (is_pnm or not value_range.is_plain(values.kind, limits)):
            image = Image.fromarray(value_range.scaled(values.array, limits))
            if values.alpha is not None:
                image.putalpha(Image.fromarray(value_range.scaled(values.alpha, limits)))
        del values
    if file.format == "PNG":  # which may have it behind the pixels
        orientation = _orientation(file)
    if image.mode.startswith("I") or image.mode == "F":
        image = _by_type(image)
    if image.mode == "P" and not image.palette:
        image = image.copy()  # which has one, of greys
    is_transparent = image.has_transparency_data
    image = _to_rgb(_smaller(image, size))
    if file.format == "TIFF":  # which Pillow has turned
        seen_size = file.size
    else:
        image = image.transpose(TRANSPOSES[orientation]) if orientation != 1 else image
        seen_size = (height, width) if orientation >= 5 else (width, height)
    return image, seen_size, _remarks(file, stored_mode, orientation, is_transparent) + seen


def _orientation(file: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 1 to 8."""
    tag = getattr(file, "tag_v2", {}).get(metadata.ORIENTATION)
    return tag if isinstance(tag, int) and tag in metadata.ORIENTATIONS else metadata.orientation_of(file.info)


def _check_memory(file: ImageFile.ImageFile, num_pixels: int, stored_mode: str) -> None:
    """Raises TooManyPixels for an opened image that would take too much memory, whatever its number of pixels.

    Args:
        num_pixels: of the whole image; `file` may be about to be decoded at a reduced scale.
    """
    decoded_pixels = file.width * file.height
    by_mode = 24 if deep.COLOUR.fullmatch(stored_mode) else BYTES_PER_PIXEL.get(file.mode, 4)
    num_bytes = decoded_pixels * BYTES_PER_PIXEL.get(str(file.format), by_mode)
    is_progressive = file.format in JPEG_FORMATS and bool(file.info.get("progressive"))
    if is_progressive:
        num_bytes += 2 * len(file.getbands()) * num_pixels  # all coefficients, at any scale
    if num_pixels > _max_pixels:
        raise TooManyPixels(TOO_MANY_PIXELS, f"{num_pixels:,}, which exceeds the limit of {_max_pixels:,}")
    if num_bytes > MAX_DECODED_BYTES and max(decoded_pixels, num_pixels // 3) > ALWAYS_DECODED:
        raise TooManyPixels(
            TOO_MANY_PIXELS,
            f"{num_pixels / 1e6:,.0f} million, which take {formatting.size(num_bytes)} of memory; the limit is "
            f"{formatting.size(MAX_DECODED_BYTES)}",
        )
    if _cheap_only and max(decoded_pixels, num_pixels // (3 if is_progressive else 10)) > CHEAP_PIXELS:
        raise TooManyPixels(EXPENSIVE, f"{num_pixels:,}")


def _smaller(image: Image.Image, size: int) -> Image.Image:
    """An image of very many pixels, averaged over squares of them, so that its copies take less memory."""
    factor = int(min(image.size) / (2 * ROOM_TO_RESIZE * size)) if size else 1
    if image.width * image.height <= ALWAYS_DECODED or factor < 2:
        return image
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.reduce(factor)


def _remarks(file: ImageFile.ImageFile, stored_mode: str, orientation: int, is_transparent: bool) -> str:
    """``JPEG RGB``, ``JPEG CMYK turned-6``, ``PNG RGBA 16-bit transparent``, ``GIF P animated``."""
    words = [str(file.format), file.mode]
    if "16" in stored_mode or file.mode.startswith("I"):
        words.append("16-bit")
    if is_transparent:
        words.append("transparent")
    if orientation != 1:
        words.append(f"turned-{orientation}")
    with suppress(Exception):  # frames after the first one may be damaged
        if getattr(file, "is_animated", False):
            words.append("animated")
    return " ".join(words)


def _by_type(image: Image.Image) -> Image.Image:
    """8 bits of an image whose type of number has no value range, as the type says."""
    values = np.asarray(image)
    if image.mode == "F":
        return Image.fromarray(np.nan_to_num(values).clip(0, 255).astype(np.uint8))
    values = values.clip(0, 65535).astype(np.uint16)
    in_16_bits = image.mode != "I" or values.max() > 255  # mode I may hold 8 or 16 bits
    return Image.fromarray((values >> 8 if in_16_bits else values).astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: transparency is put over white, palettes and CMYK are converted."""
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
