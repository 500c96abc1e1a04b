"""Bad and odd image files, one maker a kind, with what has to become of each; `lay` writes all of them.

A fate is "used", "skipped: WORDS" or "ignored: WORDS", where the words are in the reason that is reported.
"""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import ImageFileDirectory_v2

FORMATS = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "GIF": ".gif", "WEBP": ".webp", "TIFF": ".tif"}
UNKNOWN = "skipped: it is none of JPEG, PNG"
FAILS, TOO_LARGE = "skipped: cannot be decoded", "skipped: too many pixels"
OTHER_FORMATS = {"ICO": ".jpg", "TGA": ".jpg", "JPEG2000": ".jpg", "EPS": ".png", "DDS": ".bmp", "PCX": ".gif"}


class Kind(NamedTuple):
    """A kind of file."""

    name: str  # of the file
    make: bytes | Callable[[Path], None]  # its content, or what puts something there
    fate: str


def picture(seed: int = 0, width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    """Noise on a slope: no two seeds give the same, and no compression makes it vanish."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    noise = rng.integers(0, 55, (height, width, 3))
    return Image.fromarray((np.stack([x, y, 200 - x], axis=2) + noise).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, image_format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Writing what Pillow does not write


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


PNG_START = b"\x89PNG\r\n\x1a\n"


def png(
    width: int, height: int, bits: int, colour: int, rows: bytes, before: bytes = b"", interlaced: bool = False
) -> bytes:
    """A PNG of filtered `rows`; `before` are chunks ahead of the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    return PNG_START + header + before + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def interlaced_png(seed: int) -> bytes:
    """Adam7: seven pictures, each of every so-manieth pixel."""
    pixels = np.asarray(picture(seed, 16, 16))
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b"".join(
        b"\0" + row.tobytes() for top, left, down, right in passes for row in pixels[top::down, left::right]
    )
    return png(16, 16, 8, 2, rows, interlaced=True)


def png_with_texts(kind: bytes, content: bytes, number: int, seed: int) -> bytes:
    """A good PNG with text chunks ahead of its pixels."""
    body = encoded(picture(seed), "PNG")
    return body[:33] + png_chunk(kind, content) * number + body[33:]


def without_chunk(content: bytes, kind: bytes) -> bytes:
    """A PNG without its chunks of one kind."""
    kept, place = content[:8], 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        if content[place + 4 : place + 8] != kind:
            kept += content[place : place + length + 12]
        place += length + 12
    return kept


def bmp(width: int, height: int, bits: int, compression: int, pixels: bytes, palette: bytes = b"") -> bytes:
    start = 54 + len(palette)
    header = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start)
    return (
        header
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, len(palette) // 4, 0)
        + palette
        + pixels
    )


def tiff(tags: dict[int, tuple[str, tuple]], after: bytes = b"", next_place: int = 0) -> bytes:
    """A little-endian TIFF with one directory at 8; `after` begins at `TIFF_DATA`, and tags may point into it."""
    kinds = {"H": 3, "I": 4}
    directory = struct.pack("<H", len(tags))
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}{kind}", *values)
        assert len(packed) <= 4
        directory += struct.pack("<HHI", tag, kinds[kind], len(values)) + packed.ljust(4, b"\0")
    content = struct.pack("<2sHI", b"II", 42, 8) + directory + struct.pack("<I", next_place)
    return content.ljust(TIFF_DATA, b"\0") + after


TIFF_DATA = 256


def grey_tiff(width: int, height: int, next_place: int = 0, **changes: tuple[str, tuple]) -> bytes:
    tags = {
        256: ("I", (width,)),
        257: ("I", (height,)),
        258: ("H", (8,)),
        259: ("H", (1,)),
        262: ("H", (1,)),
        273: ("I", (TIFF_DATA,)),
        277: ("H", (1,)),
        278: ("I", (height,)),
        279: ("I", (width * height % 2**32,)),
    }
    pixels = np.asarray(picture(900 + len(changes), 16, 16, "L")).tobytes()
    return tiff(tags | {int(name[4:]): value for name, value in changes.items()}, pixels, next_place)


def tiled_tiff(side: int) -> bytes:
    """One tile of `side` pixels, of which the picture takes 16 x 16."""
    tags = {
        256: ("I", (16,)),
        257: ("I", (16,)),
        258: ("H", (8,)),
        259: ("H", (1,)),
        262: ("H", (1,)),
        277: ("H", (1,)),
        322: ("I", (side,)),
        323: ("I", (side,)),
        324: ("I", (TIFF_DATA,)),
        325: ("I", (min(side * side, 2**32 - 1),)),
    }
    return tiff(tags, np.asarray(picture(950, 16, 16, "L")).tobytes())


def frame_header(content: bytes) -> int:
    """Where the frame header of a JPEG begins: precision, height, width follow its length."""
    return min(place for marker in (b"\xff\xc0", b"\xff\xc2") if (place := content.find(marker)) > 0)


def jpeg_with(
    content: bytes, marker: int | None = None, precision: int = 8, size: tuple[int, int] | None = None
) -> bytes:
    """A JPEG with another kind of frame, precision or size (width, height) in its frame header."""
    place = frame_header(content)
    old_marker, height, width = content[place + 1], *struct.unpack_from(">HH", content, place + 5)
    new = struct.pack(
        ">BBHBHH",
        255,
        marker or old_marker,
        *struct.unpack_from(">H", content, place + 2),
        precision,
        *((size or (width, height))[::-1]),
    )
    return content[:place] + new + content[place + len(new) :]


def jpeg_of_many_scans(seed: int, number: int, size: tuple[int, int]) -> bytes:
    """A progressive JPEG that sends its last refinement again and again: each costs a walk over all coefficients."""
    content = jpeg_with(encoded(picture(seed, mode="L"), "JPEG", progressive=True), size=size)
    last = content.rfind(b"\xff\xda")
    return content[:last] + content[last:-2] * number + b"\xff\xd9"


def exif_of(orientation: int, extra: bytes = b"") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if extra:
        exif[0x010E] = extra.decode("latin-1")
    return exif.tobytes()


def webp_canvas(content: bytes, width: int, height: int) -> bytes:
    """An extended WEBP with another canvas in its header."""
    assert content[12:16] == b"VP8X"
    return content[:24] + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3] + content[30:]


# ---------------------------------------------------------------------------------------------------------------------
# What is no file


def folder_with_an_image(path: Path) -> None:
    path.mkdir()
    picture(1001).save(path / "inside.png")


def link_to(target: str | Path) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def link_outside(path: Path) -> None:
    outside = path.parents[2] / "outside.png"
    picture(1002).save(outside)
    path.symlink_to(outside)


def unix_socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(before)


def sparse(num_bytes: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with open(path, "wb") as file:
            file.write(encoded(picture(1003), "PNG"))
            file.truncate(num_bytes)

    return make


def unreadable(path: Path) -> None:
    path.write_bytes(encoded(picture(1004), "PNG"))
    path.chmod(0)


# ---------------------------------------------------------------------------------------------------------------------
# The table


def kinds() -> dict[str, Kind]:
    """Every kind by its name; the same bytes in every process."""
    table: dict[str, Kind] = {}

    def add(name: str, suffix: str, make: bytes | Callable[[Path], None], fate: str = "used") -> None:
        assert name not in table
        table[name] = Kind(f"{len(table):03d} {name}{suffix}", make, fate)

    seeds = iter(range(10**6))

    def good(image_format: str, mode: str = "RGB", **options) -> bytes:
        return encoded(picture(next(seeds), mode=mode), image_format, **options)

    # Every format: whole, and damaged in the same ways.
    cut_at_the_end = dict.fromkeys(FORMATS, FAILS)
    for image_format, suffix in FORMATS.items():
        content = good(image_format)
        add(f"{image_format} good", suffix, content)
        add(f"{image_format} empty", suffix, b"", "skipped: the file is empty")
        add(f"{image_format} of one byte", suffix, content[:1], UNKNOWN)
        add(f"{image_format} cut in its header", suffix, good(image_format)[:20], FAILS)
        add(f"{image_format} cut in the middle", suffix, content[: len(content) // 2], FAILS)
        add(f"{image_format} cut near its end", suffix, content[: len(content) * 9 // 10], cut_at_the_end[image_format])
        add(f"{image_format} with garbage behind", suffix, good(image_format) + bytes(range(256)) * 20)
        add(f"{image_format} under a wrong name", ".png" if image_format == "JPEG" else ".jpg", good(image_format))
        add(
            f"{image_format} under no name of images",
            ".dat",
            good(image_format),
            "ignored: not named like an image (.dat)",
        )

    # JPEG
    for mode in ("L", "CMYK"):
        add(f"JPEG {mode}", ".jpg", good("JPEG", mode))
    add("JPEG YCCK", ".jpg", good("JPEG", "CMYK").replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"))
    add("JPEG progressive", ".jpg", good("JPEG", progressive=True))
    add("JPEG RGB without a change of colours", ".jpg", good("JPEG", keep_rgb=True))
    for orientation in (2, 3, 6, 8):
        add(f"JPEG turned {orientation}", ".jpg", good("JPEG", exif=exif_of(orientation)))
    add("JPEG turned by 99", ".jpg", good("JPEG", exif=exif_of(99)))
    add("JPEG with EXIF of 60 KB", ".jpg", good("JPEG", exif=exif_of(6, b"x" * 60_000)))
    add("JPEG with EXIF that is none", ".jpg", good("JPEG", exif=b"Exif\0\0no exif at all"))
    add("JPEG with EXIF cut off", ".jpg", good("JPEG", exif=exif_of(6, b"x" * 100)[:20]))
    add("JPEG with EXIF that points nowhere", ".jpg", good("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"))
    add(
        "JPEG with EXIF in a circle",
        ".jpg",
        good("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0"),
    )
    add("JPEG with a broken ICC profile", ".jpg", good("JPEG", icc_profile=b"no profile" * 10))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    add(
        "JPEG with an ICC profile", ".jpg", good("JPEG", icc_profile=profile[:24] + bytes(12) + profile[36:])
    )  # without date
    add("JPEG with a comment of 60 KB", ".jpg", good("JPEG", comment=b"x" * 60_000))
    add("JPEG of several pictures (MPO)", ".jpg", good("MPO", save_all=True, append_images=[picture(next(seeds))]))
    add("JPEG twice", ".jpg", good("JPEG") + good("JPEG"))
    add("JPEG with a zip behind", ".jpg", good("JPEG") + b"PK\5\6" + bytes(18))
    add("JPEG without its end mark", ".jpg", good("JPEG")[:-2])
    add("JPEG without its last 20 bytes", ".jpg", good("JPEG")[:-20], "skipped: image file is truncated")
    add("JPEG of 12 bits", ".jpg", jpeg_with(good("JPEG"), precision=12), FAILS)
    add("JPEG lossless", ".jpg", jpeg_with(good("JPEG"), marker=0xC3), FAILS)
    # Huffman codes read as arithmetic ones, and pixels that are missing ahead of an end mark: libjpeg decodes such files to
    # something, as every program that uses it does, without an error.
    add("JPEG that says it is arithmetic", ".jpg", jpeg_with(good("JPEG"), marker=0xC9))
    add("JPEG of no height", ".jpg", jpeg_with(good("JPEG"), size=(40, 0)), FAILS)
    add("JPEG of no width", ".jpg", jpeg_with(good("JPEG"), size=(0, 30)), FAILS)
    add("JPEG that promises 65,500 x 65,500", ".jpg", jpeg_with(good("JPEG"), size=(65500, 65500)), TOO_LARGE)
    add("JPEG that promises 9,400 x 9,400", ".jpg", jpeg_with(good("JPEG"), size=(9400, 9400)))
    add("JPEG without tables", ".jpg", replaced(good("JPEG"), b"\xff\xdb", b"\xff\xee"), FAILS)
    add("JPEG of 300 scans", ".jpg", jpeg_of_many_scans(next(seeds), 300, (40, 30)))

    # PNG
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        image = picture(next(seeds), mode="L" if mode == "I;16" else "RGB")
        add(f"PNG {mode.replace(';', ' ')}", ".png", encoded(image.convert(mode), "PNG"))
    add(
        "PNG of 16 bits in colour",
        ".png",
        png(8, 8, 16, 2, b"".join(b"\0" + bytes(range(row, row + 48)) for row in range(8))),
    )
    add("PNG interlaced", ".png", interlaced_png(next(seeds)))
    add("PNG transparent by its palette", ".png", good("PNG", "P", transparency=3))
    add("PNG transparent by one colour", ".png", good("PNG", transparency=(1, 2, 3)))
    add("PNG with a broken ICC profile", ".png", good("PNG", icc_profile=b"no profile" * 10))
    add("PNG turned", ".png", good("PNG", exif=exif_of(6)))
    add("PNG animated", ".png", good("PNG", save_all=True, append_images=[picture(next(seeds))]))
    add("PNG with many texts", ".png", png_with_texts(b"tEXt", b"key\0" + b"x" * 100, 200, next(seeds)))
    add("PNG with an unknown chunk", ".png", png_with_texts(b"abCd", b"x", 1, next(seeds)))
    add("PNG without its end", ".png", good("PNG")[:-12])
    add("PNG of a colour type that is none", ".png", png(8, 8, 8, 5, bytes(200)), FAILS)
    add("PNG of a depth that is none", ".png", png(8, 8, 7, 2, bytes(200)), FAILS)
    add("PNG with a filter that is none", ".png", png(8, 8, 8, 0, b"\x09" + bytes(80)), FAILS)
    add(
        "PNG with pixels that are no zlib",
        ".png",
        replaced(png(8, 8, 8, 0, bytes(72)), b"IDATx\x9c", b"IDAT\0\0"),
        FAILS,
    )
    add("PNG with too few pixels", ".png", png(8, 8, 8, 2, bytes(30)), FAILS)
    add("PNG with too many pixels", ".png", png(8, 8, 8, 2, bytes(10**6)))
    add(
        "PNG with a bad checksum of its header",
        ".png",
        (lambda content: content[:30] + b"\0\0\0" + content[33:])(good("PNG")),
        FAILS,
    )
    add("PNG without a header", ".png", without_chunk(good("PNG"), b"IHDR"), FAILS)
    add("PNG without pixels", ".png", without_chunk(good("PNG"), b"IDAT"), FAILS)
    add("PNG without its palette", ".png", without_chunk(good("PNG", "P"), b"PLTE"))
    add("PNG of no width", ".png", png(0, 8, 8, 2, b""), FAILS)
    add("PNG that promises 60,000 x 60,000", ".png", png(60_000, 60_000, 8, 2, b""), TOO_LARGE)
    add("PNG that promises 2^31 x 2^31", ".png", png(2**31 - 1, 2**31 - 1, 8, 2, b""), TOO_LARGE)
    add("PNG that promises 12,000 x 9,000", ".png", png(12_000, 9_000, 8, 2, b""), "skipped: truncated")
    add("PNG that promises 20,000 x 15,000", ".png", png(20_000, 15_000, 8, 2, b""), TOO_LARGE)
    bomb = zlib.compress(bytes(50_000_000), 9)
    add("PNG with a profile that unpacks to 50 MB", ".png", png_with_texts(b"iCCP", b"x\0\0" + bomb, 1, next(seeds)))
    add("PNG with a text that unpacks to 50 MB", ".png", png_with_texts(b"zTXt", b"x\0\0" + bomb, 1, next(seeds)))
    add(
        "PNG with a text of the world that unpacks to 50 MB",
        ".png",
        png_with_texts(b"iTXt", b"x\0\1\0\0\0" + bomb, 1, next(seeds)),
    )
    add(
        "PNG with 80 texts that unpack to 1 MB",
        ".png",
        png_with_texts(b"zTXt", b"x\0\0" + zlib.compress(bytes(1_000_000), 9), 80, next(seeds)),
    )

    # BMP
    for mode in ("1", "L", "P", "RGBA"):
        add(f"BMP {mode}", ".bmp", good("BMP", mode))
    grey = b"".join(bytes((value, value, value, 0)) for value in range(256))
    runs = b"".join(bytes((8, 9 * row, 0, 0)) for row in range(8)) + b"\0\1"
    add("BMP packed by runs", ".bmp", bmp(8, 8, 8, 1, runs, grey))
    add("BMP packed by runs that never end", ".bmp", bmp(8, 8, 8, 1, b"\xff\1" * 4, grey), FAILS)
    add("BMP top down", ".bmp", bmp(8, -8, 24, 0, bytes(range(192))))
    add("BMP of 16 bits", ".bmp", bmp(8, 8, 16, 0, bytes(range(128))))
    add("BMP of 5 bits", ".bmp", bmp(8, 8, 5, 0, bytes(128)), FAILS)
    add("BMP of no width", ".bmp", bmp(0, 8, 24, 0, b""), FAILS)
    add("BMP that promises 30,000 x 30,000", ".bmp", bmp(30_000, 30_000, 24, 0, b""), TOO_LARGE)
    add("BMP packed, that promises 9,000 x 9,000", ".bmp", bmp(9_000, 9_000, 8, 1, b"\xff\1\0\1", grey), FAILS)

    # GIF
    add("GIF animated", ".gif", good("GIF", save_all=True, append_images=[picture(next(seeds)), picture(next(seeds))]))
    add("GIF transparent", ".gif", encoded(picture(next(seeds), mode="P"), "GIF", transparency=5))
    add("GIF interlaced", ".gif", good("GIF", interlace=True))
    add("GIF without a picture", ".gif", b"GIF89a\x08\0\x08\0\x80\0\0" + bytes(6) + b";", FAILS)
    add("GIF without an end", ".gif", good("GIF")[:-1])
    add(
        "GIF that promises 65,535 x 65,535",
        ".gif",
        (lambda content: content[:6] + b"\xff" * 4 + content[10:])(good("GIF")),
        TOO_LARGE,
    )
    add(
        "GIF whose picture is larger than its screen",
        ".gif",
        (lambda content: content[:6] + b"\4\0\4\0" + content[10:])(good("GIF")),
    )
    add(
        "GIF with a code size that is none",
        ".gif",
        b"GIF89a\x08\0\x08\0\x80\0\0" + bytes(6) + b",\0\0\0\0\x08\0\x08\0\0\x0f\2\x44\1\0;",
        FAILS,
    )

    # WEBP
    add("WEBP lossless", ".webp", good("WEBP", lossless=True))
    add("WEBP transparent", ".webp", good("WEBP", "RGBA"))
    add("WEBP grey", ".webp", good("WEBP", "L"))
    add("WEBP turned", ".webp", good("WEBP", exif=exif_of(8)))
    animated = good("WEBP", save_all=True, append_images=[picture(next(seeds))])
    add("WEBP animated", ".webp", animated)
    add("WEBP with a canvas of 16,383 x 16,383", ".webp", webp_canvas(animated, 16383, 16383), TOO_LARGE)
    add("WEBP with a canvas of 2,000 x 2,000", ".webp", webp_canvas(animated, 2_000, 2_000))
    add("WEBP with a canvas of 2^24 x 2^24", ".webp", webp_canvas(animated, 2**24, 2**24), "skipped: decoder")
    add(
        "WEBP whose length is wrong",
        ".webp",
        (lambda content: content[:4] + b"\xff\xff\xff\x7f" + content[8:])(good("WEBP")),
        FAILS,
    )

    # TIFF
    for mode in ("1", "L", "P", "RGBA", "CMYK", "YCbCr"):
        add(f"TIFF {mode}", ".tif", good("TIFF", mode))
    add("TIFF LAB", ".tif", encoded(Image.merge("LAB", picture(next(seeds)).split()), "TIFF"))
    for dtype in ("uint16", "int32", "float32"):
        values = np.asarray(picture(next(seeds), mode="L")).astype(dtype)
        add(f"TIFF {dtype}", ".tif", encoded(Image.fromarray(values), "TIFF"))
    add("TIFF float32 of no numbers", ".tif", encoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        add(f"TIFF {compression}", ".tif", good("TIFF", compression=compression))
    add("TIFF as a fax", ".tif", good("TIFF", "1", compression="group4"))
    add("TIFF of several pages", ".tif", good("TIFF", save_all=True, append_images=[picture(next(seeds))]))
    add("TIFF large", ".tif", good("TIFF", big_tiff=True))
    add("TIFF turned", ".tif", good("TIFF", tiffinfo=_turned_tiff(6)))
    add("TIFF tiled", ".tif", tiled_tiff(16))
    add("TIFF grey by hand", ".tif", grey_tiff(16, 16))
    add("TIFF of big-endian numbers", ".tif", b"MM\0*\0\0\0\x08\0\x00" + bytes(4), FAILS)
    add("TIFF whose directories go in a circle", ".tif", grey_tiff(16, 16, next_place=8, tag_305=("H", (1,))))
    add("TIFF whose pixels lie outside", ".tif", grey_tiff(16, 16, tag_273=("I", (10**6,)), tag_305=("H", (1,))), FAILS)
    add("TIFF of no height", ".tif", grey_tiff(16, 0), FAILS)
    add("TIFF that promises 60,000 x 60,000", ".tif", grey_tiff(60_000, 60_000), TOO_LARGE)
    add("TIFF that promises 9,000 x 9,000", ".tif", grey_tiff(9_000, 9_000), FAILS)
    add("TIFF with a tile of 2^30 x 2^30", ".tif", tiled_tiff(2**30), FAILS)
    add("TIFF with a tile of 30,000 x 30,000", ".tif", tiled_tiff(30_000), FAILS)
    add("TIFF with a compression that is none", ".tif", grey_tiff(16, 16, tag_259=("H", (9999,))), FAILS)
    add("TIFF with 60,000 samples a pixel", ".tif", grey_tiff(16, 16, tag_277=("H", (60_000,))), FAILS)

    # Other things under a name of images
    for image_format, suffix in OTHER_FORMATS.items():
        add(f"{image_format} under a name of ours", suffix, encoded(picture(next(seeds)), image_format), UNKNOWN)
    add("PDF under a name of ours", ".jpg", b"%PDF-1.4\n1 0 obj <</Type /Catalog>> endobj\n", UNKNOWN)
    add("ICNS under a name of ours", ".jpg", b"icns\0\0\0\x10ic07\0\0\0\x08", UNKNOWN)
    add("PSD under a name of ours", ".jpg", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3), UNKNOWN)
    add("SVG under a name of ours", ".png", b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>', UNKNOWN)
    add("web page", ".jpg", b"<!DOCTYPE html><html><body>404</body></html>", UNKNOWN)
    add("text", ".jpg", b"../images/000.jpg\n", UNKNOWN)
    add("pointer of Git LFS", ".jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", UNKNOWN)
    add("zip", ".jpg", b"PK\5\6" + bytes(18), UNKNOWN)
    add("program", ".jpg", b"\x7fELF\2\1\1" + bytes(57), UNKNOWN)
    add("zeros", ".jpg", bytes(5000), UNKNOWN)
    heic = b"\0\0\0\x18ftypheic" + bytes(12)
    add("HEIC that is none", ".heic", heic, "skipped: a HEIC that is damaged")
    add("PPM under a wrong name", ".png", good("PPM"))
    add("AVIF under a wrong name", ".jpg", good("AVIF"))
    add("no suffix", "", good("PNG"))
    add("text without suffix", "", b"PNG and others\n", "ignored: no suffix, and no image inside")
    add("JPEG 2000 under its own name", ".jp2", good("JPEG2000"), "ignored: unsupported image format (.jp2)")

    # What is no file, or not one of usual size
    add("folder with an image", ".jpg", folder_with_an_image)  # its file is the one that counts
    add("broken link", ".jpg", link_to("nowhere.jpg"), "skipped: there is no such file")
    add("link to itself", ".jpg", lambda path: path.symlink_to(path.name), FAILS)
    add("link to an image outside", ".png", link_outside)
    add("link to endless zeros", ".jpg", link_to("/dev/zero"), "ignored: neither a file nor a folder")
    add("link to the terminal", ".jpg", link_to("/dev/tty"), "ignored: neither a file nor a folder")
    add("pipe", ".jpg", os.mkfifo, "ignored: neither a file nor a folder")
    add("socket", ".jpg", unix_socket, "ignored: neither a file nor a folder")
    add("PNG in a file of 1 TB", ".png", sparse(10**12), "skipped: more than the limit of 1.0 GB per image")
    add("PNG in a file of 50 MB", ".png", sparse(5 * 10**7))
    if os.geteuid():  # nothing is forbidden to root
        add("forbidden", ".png", unreadable, "skipped: Permission denied")

    # Odd names; the number ahead is left away where the name is the point
    for name, fate in (
        ("._x.jpg", "ignored: hidden"),
        (".DS_Store", "ignored: hidden"),
        ("Thumbs.db", "ignored: hidden"),
        ("desktop.ini", "ignored: hidden"),
        ("-rf.png", "used"),
        ("--help.png", "used"),
        ("a\nb.png", "used"),
        ("x" * 251 + ".png", "used"),
        ("\N{CAT FACE} \u0645\u0631\u062d\u0628\u0627.png", "used"),
        (" .png", "used"),
        ("\x1b[31mred.png", "used"),
        ('"quotes", commas, 100 % and $(touch x); .png', "used"),
        ("{0}.png", "used"),
        ("CON.png", "used"),
        ("x.png.png", "used"),
        ("PHOTO.PNG", "used"),
        ("nan.png", "used"),
        ("*?[a].png", "used"),
    ):
        kind = "name " + ascii(name)[:40]
        assert kind not in table
        table[kind] = Kind(name, good("PNG"), fate)
    return table


def _turned_tiff(orientation: int) -> ImageFileDirectory_v2:
    tags = ImageFileDirectory_v2()
    tags[274] = orientation
    return tags


def lay(root: Path) -> dict[str, str]:
    """Writes every kind below `root`, in turn into one of three class folders beside good images.

    Returns:
        The fate of each file, by its path below `root`.
    """
    fates = {}
    for number, label in enumerate(("a", "b", "c")):
        (root / label).mkdir(parents=True)
        for index in range(12):
            name = f"{label}/good {index}.png"
            picture(2000 + 100 * number + index).save(root / name)
            fates[name] = "used"
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._x.jpg").write_bytes(b"x")
    fates["__MACOSX/._x.jpg"] = "ignored: left behind"
    for number, kind in enumerate(kinds().values()):
        path = root / "abc"[number % 3] / kind.name
        if isinstance(kind.make, bytes):
            path.write_bytes(kind.make)
        else:
            kind.make(path)
        name = path.relative_to(root).as_posix()
        fates[f"{name}/inside.png" if path.is_dir() else name] = kind.fate
    return fates
