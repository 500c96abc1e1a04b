"""Images of more than 8 bits, and odd metadata: what Pillow does not write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.support.bad_images import PNG_START, png_chunk


def encoded(array: np.ndarray, image_format: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, image_format, **options)
    return stream.getvalue()


def png16(array: np.ndarray, before: bytes = b"") -> bytes:
    """A PNG of 16 bits with 1 to 4 channels, (height, width[, channels]); `before` are chunks ahead of the pixels."""
    array = array if array.ndim == 3 else array[..., None]
    height, width, channels = array.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    data = array.astype(">u2").tobytes()
    step = 2 * channels * width
    rows = b""
    for start in range(0, len(data), step):  # each row as differences of neighbouring pixels, the filter Sub
        row = np.frombuffer(data, np.uint8, step, start)
        rows += b"\1" + (row - np.concatenate([np.zeros(2 * channels, np.uint8), row[: -2 * channels]])).tobytes()
    body = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return PNG_START + png_chunk(b"IHDR", header) + before + body


def tiff(array: np.ndarray, big_endian: bool = False, tags: dict[int, int] | None = None, bits: int = 0) -> bytes:
    """An uncompressed TIFF of any numbers; `array` (height, width[, 3]); `bits` of packed ones, else those of dtype."""
    order = ">" if big_endian else "<"
    height, width = array.shape[:2]
    channels = array.shape[2] if array.ndim == 3 else 1
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    sample_format = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    entries = {256: width, 257: height, 259: 1, 262: 2 if channels == 3 else 1, 273: 1000, 277: channels, 278: height}
    entries |= {279: len(data), 258: bits or 8 * array.itemsize, 339: sample_format} | (tags or {})
    places = {258: 800, 339: 820} if channels == 3 else {}
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in sorted(entries.items()):
        if tag in places:
            directory += struct.pack(f"{order}HHII", tag, 3, channels, places[tag])
        elif tag in (256, 257, 273, 278, 279):
            directory += struct.pack(f"{order}HHII", tag, 4, 1, value)
        else:
            directory += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    content = (b"MM\0*" if big_endian else b"II*\0") + struct.pack(f"{order}I", 8) + directory + bytes(4)
    for tag, place in places.items():
        content = content.ljust(place, b"\0") + struct.pack(f"{order}3H", *[entries[tag]] * 3)
    return content.ljust(1000, b"\0") + data


def pnm(array: np.ndarray, largest: int) -> bytes:
    """A binary PGM or PPM, with a comment."""
    kind = b"P6" if array.ndim == 3 else b"P5"
    header = kind + f"\n# drawn\n{array.shape[1]} {array.shape[0]}\n{largest}\n".encode()
    return header + array.astype(np.uint8 if largest < 256 else ">u2").tobytes()
