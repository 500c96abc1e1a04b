"""What image files say besides their pixels, read with bounds; and files without it, where it keeps Pillow from them."""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

ORIENTATION = 0x0112
ORIENTATIONS = range(1, 9)
PNG_START = b"\x89PNG\r\n\x1a\n"
TRANSPARENCY_LENGTHS = {0: (2, 2), 2: (6, 6), 3: (1, 256)}  # of a PNG, in bytes by its type of colour
PNG_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# JPEG markers with metadata: APP1 to APP13, APP15 and comments; APP0 and APP14 decide the colours.
JPEG_METADATA = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers without a length
WEBP_METADATA = (b"ICCP", b"EXIF", b"XMP ")
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation_of(info: dict[Any, Any]) -> int:
    """The EXIF orientation, 1 to 8, in Pillow's `info` of an image; 1 if there is none, or none that can be read.

    As `Image.getexif`, it looks at EXIF first and at XMP then, but at no other tag.
    """
    found = None
    if isinstance(exif := info.get("exif"), bytes):
        found = exif_orientation(exif)
    elif isinstance(profile := info.get("Raw profile type exif"), str):  # of ImageMagick
        with suppress(ValueError):
            found = exif_orientation(bytes.fromhex("".join(profile.split("\n")[3:])))
    if found is None:
        xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
        match = XMP_ORIENTATION.search(xmp.encode(errors="replace") if isinstance(xmp, str) else xmp)
        found = int(match[1]) if match else 1
    return found if found in ORIENTATIONS else 1


def exif_orientation(exif: bytes) -> int | None:
    """The orientation in the first directory of EXIF, without a look at any other tag; None if there is none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    with suppress(struct.error):  # it points outside
        if order:
            (start,) = struct.unpack_from(f"{order}I", exif, 4)
            (count,) = struct.unpack_from(f"{order}H", exif, start)
            for place in range(start + 2, start + 2 + 12 * count, 12):
                tag, kind = struct.unpack_from(f"{order}HH", exif, place)
                if tag == ORIENTATION:
                    return struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}.get(kind, "H"), exif, place + 8)[0]
    return None


def significant_bits(content: bytes) -> int:
    """The bits that a PNG says its values have (chunk sBIT); 0 if it says nothing."""
    for kind, place, length in _png_chunks(content):
        if kind == b"IDAT":
            break
        if kind == b"sBIT" and length and _has_right_checksum(content, place, length):
            return max(content[place : place + min(length, 3)])
    return 0


def without_metadata(content: bytes) -> bytes | None:
    """A PNG, JPEG or WEBP file with pixels and EXIF orientation alone; None for others, or without metadata."""
    with suppress(struct.error, IndexError):  # cut off
        if content.startswith(PNG_START):
            return _bare_png(content)
        if content.startswith(b"\xff\xd8"):
            return _bare_jpeg(content)
        if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
            return _bare_webp(content)
    return None


def _exif_with(orientation: int) -> bytes:
    """The shortest EXIF with an orientation."""
    return struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)


def _valid(orientation: int | None) -> int | None:
    return orientation if orientation in ORIENTATIONS else None


# ---------------------------------------------------------------------------------------------------------------------
# PNG


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, place and length of the data of each chunk, up to the end of the file."""
    place = len(PNG_START)
    while content.startswith(PNG_START) and place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        yield kind, place + 8, length
        place += length + 12


def _has_right_checksum(content: bytes, place: int, length: int) -> bool:
    return (
        zlib.crc32(memoryview(content)[place - 4 : place + length]).to_bytes(4, "big")
        == (content[place + length : place + length + 4])
    )


def _bare_png(content: bytes) -> bytes | None:
    parts, has_metadata = [PNG_START], False
    for kind, place, length in _png_chunks(content):
        is_ancillary = bool(kind[0] & 0x20)
        is_right = not is_ancillary or _has_right_checksum(content, place, length)
        if kind == b"tRNS":
            shortest, longest = TRANSPARENCY_LENGTHS.get(content[25], (1, 0))
            is_right = is_right and shortest <= length <= longest
        if kind in PNG_PIXEL_CHUNKS and is_right or not is_ancillary:
            parts.append(content[place - 8 : place + length + 4])
            continue
        has_metadata = True
        if kind == b"eXIf" and is_right and (found := _valid(exif_orientation(content[place : place + length]))):
            chunk = b"eXIf" + _exif_with(found)
            parts += [(len(chunk) - 4).to_bytes(4, "big"), chunk, zlib.crc32(chunk).to_bytes(4, "big")]
    return b"".join(parts) if has_metadata else None


# ---------------------------------------------------------------------------------------------------------------------
# JPEG


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start (at its 0xFF) and end of each segment; a scan's entropy-coded data belongs to its segment."""
    place = 2
    while place + 4 <= len(content):
        if content[place] != 0xFF:
            return
        marker = content[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker in STANDALONE or marker == 0xD9:
            end = place + 2
        else:
            end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == 0xDA:
            found = _MARKER.search(content, end)
            end = found.start() if found else len(content)
        yield marker, place, end
        if marker == 0xD9:
            return
        place = end


_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # neither a byte 0xFF nor a restart


def _bare_jpeg(content: bytes) -> bytes | None:
    parts, has_metadata, place = [content[:2]], False, 2
    for marker, start, end in _jpeg_segments(content):
        if marker == 0xDA:
            break
        if marker in JPEG_METADATA:
            has_metadata = True
            parts.append(content[place:start])
            place = end
            segment = content[start + 4 : end]
            is_exif = marker == 0xE1 and segment.startswith(b"Exif\0\0")
            if is_exif and (found := _valid(exif_orientation(segment))):
                exif = b"Exif\0\0" + _exif_with(found)
                parts.append(b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif)
    return b"".join([*parts, content[place:]]) if has_metadata else None


def jpeg_has_all_scans(content: bytes) -> bool:
    """Whether the scans of a JPEG, as their headers say, bring every bit of every coefficient of every component."""
    left: dict[int, list[int]] = {}  # component: the lowest bit that is still missing of each of 64 coefficients
    try:
        for marker, start, _ in _jpeg_segments(content):
            if marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
                count = content[start + 9]
                left = {content[start + 10 + 3 * index]: [16] * 64 for index in range(count)}
            if marker == 0xDA:
                count = content[start + 4]
                first, last, bits = content[start + 5 + 2 * count : start + 8 + 2 * count]
                for index in range(count):
                    coefficients = left[content[start + 5 + 2 * index]]
                    coefficients[first : min(last, 63) + 1] = [bits & 15] * (min(last, 63) + 1 - first)
    except (IndexError, KeyError, ValueError):
        return False
    return bool(left) and not any(bit for coefficients in left.values() for bit in coefficients)


# ---------------------------------------------------------------------------------------------------------------------
# WEBP


def _bare_webp(content: bytes) -> bytes | None:
    stream, has_metadata = io.BytesIO(), False
    place, end = 12, min(len(content), 8 + int.from_bytes(content[4:8], "little"))
    while place + 8 <= end:
        kind, length = struct.unpack_from("<4sI", content, place)
        chunk = content[place : place + 8 + length + length % 2]
        place += 8 + length + length % 2
        if kind in WEBP_METADATA:
            has_metadata = True
            if kind == b"EXIF" and (found := _valid(exif_orientation(chunk[8:]))):
                exif = _exif_with(found)
                stream.write(b"EXIF" + len(exif).to_bytes(4, "little") + exif)
            continue
        if kind == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~(0x20 | 0x04)]) + chunk[9:]  # no profile, no XMP
        stream.write(chunk)
    body = stream.getvalue()
    return b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"WEBP" + body if has_metadata else None
