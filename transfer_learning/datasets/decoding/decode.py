"""From an image file, or an array, to square uint8 pixels: the one decoder of training, `predict` and every export check."""

import hashlib
import io
import logging
import math
import warnings
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from transfer_learning.cli import formatting
from transfer_learning.datasets.dataset import FilePart, Source

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")  # an allow-list: Pillow knows 40 more, some of them old
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that leaves so many times the wanted pixels a side for the
# antialiased resize. On photos, 1.5 differs from a full decode by 0.2 grey levels more than 2 does, and takes 24 % off
# the time of 12 megapixels.
ROOM_TO_RESIZE = 1.5
JPEG_QUALITY = 95  # of images that are kept as JPEGs
MOST_BYTES = (
    10**9
)  # of a file: Pillow's 89 million pixels with 16 bits in each of four channels take 0.7 GB uncompressed

# A header may promise more pixels than memory holds. Pillow refuses above twice its limit and warns below; both refuse.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# Pillow remarks on damage without naming the file. What cannot be decoded is named by the manifest.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class Decoded(NamedTuple):
    """Pixels of one image, or the reason why there are none."""

    pixels: np.ndarray | None  # uint8 (size, size, 3), RGB
    width: int  # of the picture as it is meant to be seen, in pixels; 0 where unknown
    height: int
    problem: str  # "" where it could be decoded
    remarks: str = (
        ""  # of a file: its format and Pillow's mode, and words for what is not so in most photos; see `_remarks`
    )


def open_file(source: Path | FilePart) -> BinaryIO:
    """Opens an image file, or the part of a file that is one, if it has a size that an image can have.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is a folder, a pipe, where one would wait for ever, or a device, which may have no end; or it is
            too large.
    """
    num_bytes = source.length if isinstance(source, FilePart) else source.stat().st_size
    if num_bytes > MOST_BYTES:
        raise ValueError(
            f"it has {formatting.size(num_bytes)}, and images of more than {formatting.size(MOST_BYTES)} are not read"
        )
    if isinstance(source, FilePart):
        return io.BytesIO(source.read_bytes())
    if not source.is_file():
        raise ValueError("it is a folder, a pipe or a device")
    return open(source, "rb")


def read_file(source: Path | FilePart) -> bytes:
    """Returns the bytes of an image file; raises what `open_file` does."""
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
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return ""


def decode(source: Source | bytes, size: int, resize: str) -> Decoded:
    """Decodes to RGB, turns upright by EXIF, makes square by `resize` and scales with antialiasing.

    Args:
        source: an image file, a part of a file, the bytes of either, or uint8 pixels (height, width) or (height, width, 3).
        size: side of the result in pixels.
        resize: "squash" changes the aspect ratio, "crop" takes the middle, "pad" adds black bars.

    Returns:
        Decoded; a file that cannot be decoded has a `problem` and raises nothing.
    """
    try:
        if isinstance(source, np.ndarray):
            image = Image.fromarray(source)
        else:
            image = _open(source if isinstance(source, bytes) else read_file(source), size)
        width, height = getattr(image, "seen_size", image.size)
        remarks = getattr(image, "remarks", "")
        return Decoded(np.asarray(_square(_to_rgb(image), size, resize)), width, height, "", remarks)
    except FileNotFoundError:
        return Decoded(None, 0, 0, "there is no such file")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Decoded(None, 0, 0, f"too many pixels ({error})")
    except UnidentifiedImageError:
        return Decoded(None, 0, 0, f"cannot be decoded (it is none of {', '.join(FORMATS)})")
    except MemoryError:
        return Decoded(None, 0, 0, "decoding it takes too much memory")
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more
        return Decoded(None, 0, 0, f"cannot be decoded ({str(error) or type(error).__name__})"[:200])


def seen_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture as it is meant to be seen, turned upright by EXIF; reads no pixel."""
    return image.size[::-1] if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else image.size


def upright(content: bytes) -> Image.Image:
    """The picture in RGB, turned upright by EXIF, at its full size; raises whatever the decoder does."""
    return _to_rgb(_open(content))


def to_jpeg(pixels: np.ndarray) -> bytes:
    """Encodes uint8 (height, width, 3) with the colours at full resolution: where detail matters, it is kept."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def from_jpeg(content: bytes) -> np.ndarray:
    """Decodes what `to_jpeg` returned to uint8 (height, width, 3), with every version of Pillow to pixels of its own."""
    return np.asarray(Image.open(io.BytesIO(content), formats=("JPEG",)))


def _open(content: bytes, size: int = 0) -> Image.Image:
    """Opens and turns; at a reduced scale where that leaves enough for `size`, unless that is 0."""
    if not content:
        raise ValueError("the file is empty")
    image = file = Image.open(io.BytesIO(content), formats=FORMATS)
    stored_mode = _stored_mode(image)  # before EXIF is asked for, which loads a PNG
    size_to_see, orientation = seen_size(image), image.getexif().get(0x0112, 1)
    if size and image.format in ("JPEG", "MPO"):  # MPO: the JPEGs of stereo and many telephone cameras
        image.draft("RGB", (math.ceil(ROOM_TO_RESIZE * size),) * 2)
        image.decodermaxblock = len(content)  # all at once: Pillow's usual 64 KB cost libjpeg 4 % of its time
    image = ImageOps.exif_transpose(image)
    image.seen_size = size_to_see
    image.remarks = _remarks(file, stored_mode, orientation, image.has_transparency_data)
    return image


def _stored_mode(image: Image.Image) -> str:
    """How the colours lie in the file, in Pillow's words; "" where it does not say, and once the image is loaded."""
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
    with suppress(Exception):  # what comes behind a sound first picture may be damaged
        if getattr(file, "is_animated", False):
            words.append("animated")
    return " ".join(words)


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: 16 and 32 bits scaled down, transparency laid over white, palettes and CMYK converted."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).clip(0, 65535).astype(np.uint16)
        in_16_bits = image.mode != "I" or values.max() > 255  # 32 bits may hold either
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
            raise ValueError("too thin to be seen between bars")  # Pillow would return the bars alone
        return ImageOps.pad(image, (size, size), bicubic)
    return image.resize((size, size), bicubic)
