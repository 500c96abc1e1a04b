"""From an image file, or an array, to square uint8 pixels: the one decoder of training, `predict` and every export check."""

import hashlib
import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")  # an allow-list: Pillow knows 40 more, some of them old

# A header may promise more pixels than memory holds. Pillow refuses above twice its limit and warns below; both refuse.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class Decoded(NamedTuple):
    """Pixels of one image, or the reason why there are none."""

    pixels: np.ndarray | None  # uint8 (size, size, 3), RGB
    width: int  # of the picture as it is meant to be seen, in pixels; 0 where unknown
    height: int
    problem: str  # "" where it could be decoded


def content_hash(content: Path | np.ndarray) -> str:
    """Returns the SHA-256 of the file's bytes, or of the array's shape and bytes, in hexadecimal; "" if unreadable."""
    if isinstance(content, np.ndarray):
        return hashlib.sha256(repr(content.shape).encode() + np.ascontiguousarray(content).tobytes()).hexdigest()
    try:
        return hashlib.sha256(content.read_bytes()).hexdigest()
    except OSError:
        return ""


def decode(content: Path | np.ndarray, size: int, resize: str) -> Decoded:
    """Decodes to RGB, turns upright by EXIF, makes square by `resize` and scales with antialiasing.

    Args:
        content: an image file, or uint8 pixels (height, width) or (height, width, 3).
        size: side of the result in pixels.
        resize: "squash" changes the aspect ratio, "crop" takes the middle, "pad" adds black bars.

    Returns:
        Decoded; a file that cannot be decoded has a `problem` and raises nothing.
    """
    try:
        image = Image.fromarray(content) if isinstance(content, np.ndarray) else _open(content, size)
        width, height = getattr(image, "seen_size", image.size)
        return Decoded(np.asarray(_square(_to_rgb(image), size, resize)), width, height, "")
    except FileNotFoundError:
        return Decoded(None, 0, 0, "there is no such file")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Decoded(None, 0, 0, f"too many pixels ({error})")
    except MemoryError:
        return Decoded(None, 0, 0, "decoding it takes more memory than there is")
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more
        return Decoded(None, 0, 0, f"cannot be decoded ({str(error) or type(error).__name__})"[:200])


def _open(path: Path, size: int) -> Image.Image:
    content = path.read_bytes()
    if not content:
        raise ValueError("the file is empty")
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    full_size = image.size
    if image.format in ("JPEG", "MPO"):  # MPO: the JPEGs of stereo and many telephone cameras
        # Decoding at 1/2, 1/4 or 1/8 scale skips most of the work; twice the wanted size leaves room for antialiasing.
        image.draft("RGB", (2 * size, 2 * size))
    sideways = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    image = ImageOps.exif_transpose(image)
    image.seen_size = full_size[::-1] if sideways else full_size
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: 16 and 32 bits scaled down, transparency laid over white, palettes and CMYK converted."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
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
