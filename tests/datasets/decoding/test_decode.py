"""The one decoder: every usual kind of file becomes upright RGB, every other becomes a sentence."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from transfer_learning.datasets.dataset import (
    EMPTY_FILE,
    NOT_AN_IMAGE,
    TOO_MANY_PIXELS,
    TRUNCATED_FILE,
    UNREADABLE_FILE,
)
from transfer_learning.datasets.decoding.decode import content_hash, decode, from_jpeg, to_jpeg

SIZE = 16


def picture(width=48, height=32):
    """A smooth picture whose corners differ: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


def decoded(path, size=SIZE, resize="squash"):
    result = decode(path, size, resize)
    assert result.problem == ""
    assert result.pixels.shape == (size, size, 3) and result.pixels.dtype == np.uint8
    return result


def difference(one, other):
    return np.abs(one.astype(int) - other.astype(int)).max()


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        (".png", {}, 0),
        (".bmp", {}, 0),
        (".tiff", {}, 0),
        (".tif", {"compression": "tiff_lzw"}, 0),
        (".webp", {"lossless": True}, 0),
        (".webp", {"quality": 95}, 12),
        (".gif", {}, 40),
        (".jpg", {"quality": 95}, 12),
        (".jpg", {"quality": 95, "progressive": True}, 12),
    ],
)
def test_every_format_gives_the_same_picture(suffix, options, tolerance, tmp_path):
    picture().save(tmp_path / f"x{suffix}", **options)
    result = decoded(tmp_path / f"x{suffix}")
    expected = np.asarray(picture().resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    assert difference(result.pixels, expected) <= tolerance
    assert (result.width, result.height) == (48, 32)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("1", ".png"),
        ("L", ".png"),
        ("L", ".jpg"),
        ("LA", ".png"),
        ("P", ".png"),
        ("P", ".gif"),
        ("RGBA", ".png"),
        ("RGBA", ".webp"),
        ("CMYK", ".jpg"),
        ("CMYK", ".tiff"),
        ("I;16", ".png"),
        ("I;16", ".tiff"),
        ("F", ".tiff"),
        ("YCbCr", ".jpg"),
    ],
)
def test_every_mode_becomes_rgb_of_about_the_same_brightness(mode, suffix, tmp_path):
    grey = picture().convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = (grey if mode in ("F", "1") else picture()).convert(mode)
    image.save(tmp_path / f"x{suffix}")
    result = decoded(tmp_path / f"x{suffix}")
    expected = np.asarray(grey).mean()
    assert abs(np.asarray(Image.fromarray(result.pixels).convert("L")).mean() - expected) < 6


@pytest.mark.parametrize("value", [0, 255 * 257, 100 * 257])
def test_sixteen_bits_are_scaled_not_cut_off(value, tmp_path):
    Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / "x.png")
    assert (decoded(tmp_path / "x.png", 8).pixels == value // 257).all()


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparency_is_laid_over_white(mode, tmp_path):
    if mode == "P":
        image = Image.new("P", (8, 8), 3)
        image.putpalette(bytes(3 * 256))  # all black
        image.save(tmp_path / "x.png", transparency=3)
    else:
        Image.new(mode, (8, 8), 0).save(tmp_path / "x.png")  # black, and wholly transparent
    assert (decoded(tmp_path / "x.png", 8).pixels == 255).all()


TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # from upright to how the camera stored it


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_turned_upright_by_its_exif(orientation, suffix, tmp_path):
    upright = picture(96, 64)
    stored = upright if TURNS[orientation] is None else upright.transpose(TURNS[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"x{suffix}", exif=exif)
    result = decoded(tmp_path / f"x{suffix}")
    assert difference(result.pixels, np.asarray(upright.resize((SIZE, SIZE), Image.Resampling.BICUBIC))) < 12
    assert (result.width, result.height) == (96, 64)


def test_damaged_exif_does_not_make_a_jpeg_unreadable(tmp_path):
    picture().save(tmp_path / "x.jpg", exif=b"Exif\0\0no exif at all")
    decoded(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    ("resize", "centre_only", "bars"), [("squash", False, False), ("crop", True, False), ("pad", False, True)]
)
def test_three_ways_to_a_square(resize, centre_only, bars, tmp_path):
    wide = Image.new("RGB", (60, 20), "blue")
    wide.paste("red", (20, 0, 40, 20))
    wide.save(tmp_path / "x.png")
    pixels = decoded(tmp_path / "x.png", 20, resize).pixels
    assert (pixels[10, 10] == (255, 0, 0)).all()
    assert (pixels[10, 1, 2] < 100) == centre_only, "the blue sides are cropped away"
    assert (pixels[1] == 0).all() == bars, "bars above and below are black"


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (16, 16)])
def test_extreme_shapes(size, resize, tmp_path):
    Image.new("RGB", size, "red").save(tmp_path / "x.png")
    if resize == "pad" and max(size) == 3000:
        assert "too thin" in decode(tmp_path / "x.png", SIZE, resize).problem, "better none than one of bars alone"
        return
    result = decoded(tmp_path / "x.png", SIZE, resize)
    assert (result.width, result.height) == size
    assert (result.pixels[SIZE // 2 - 1 : SIZE // 2 + 1, SIZE // 2, 0] > 0).any()


@pytest.mark.parametrize(("size", "tolerance"), [(240, 1.0), (160, 1.5)])  # decoded at 1/4, and at 1/8
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_photo_decoded_at_reduced_scale_equals_the_full_decode_closely(
    orientation, resize, size, tolerance, tmp_path
):
    x, y = np.meshgrid(np.arange(3000), np.arange(2000))
    waves = np.stack([np.sin(x / 12), np.sin(y / 9), np.sin((x + y) / 15)], axis=2) * 100 + 128
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(waves.astype(np.uint8)).save(tmp_path / "x.jpg", quality=92, exif=exif)
    with Image.open(tmp_path / "x.jpg") as image:
        image.load()  # without `draft`: every pixel
        image.convert("RGB").save(tmp_path / "x.bmp")
    whole = Image.open(tmp_path / "x.bmp")
    if orientation == 6:
        whole = whole.transpose(Image.Transpose.ROTATE_270)
    whole.save(tmp_path / "x.png", compress_level=0)
    result, full = decoded(tmp_path / "x.jpg", size, resize), decoded(tmp_path / "x.png", size, resize)
    assert (result.width, result.height) == (full.width, full.height) == whole.size
    gap = np.abs(result.pixels.astype(int) - full.pixels.astype(int))
    assert gap.mean() < tolerance and np.quantile(gap, 0.99) < 8
    whole.close()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_detail_too_fine_for_the_result_becomes_grey_and_no_pattern(width, suffix, tmp_path):
    stripes = np.where(np.arange(1600) // width % 2, 192, 64).astype(np.uint8)
    Image.fromarray(np.tile(stripes, (1200, 1))).convert("RGB").save(tmp_path / f"x{suffix}")
    pixels = decoded(tmp_path / f"x{suffix}", 100).pixels
    assert abs(pixels.mean() - 128) < 2 and pixels.std() < 8  # 64 in the photo


def test_only_the_first_of_several_pictures_is_taken(tmp_path):
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for suffix in (".gif", ".webp", ".tiff"):
        red.save(tmp_path / f"x{suffix}", save_all=True, append_images=[blue])
        pixels = decoded(tmp_path / f"x{suffix}", 8).pixels
        assert pixels[4, 4, 0] > 200 and pixels[4, 4, 2] < 60


def bytes_of(image_format, **options):
    stream = io.BytesIO()
    picture(64, 64).save(stream, image_format, **options)
    return stream.getvalue()


def png_that_promises(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


UNREADABLE = {
    "empty": (b"", EMPTY_FILE, "the file is empty"),
    "text named like a photo": (b"not an image\n", NOT_AN_IMAGE, "cannot be decoded"),
    "web page": (b"<html><body>404</body></html>", NOT_AN_IMAGE, "cannot be decoded"),
    "cut jpeg": (bytes_of("JPEG")[:400], TRUNCATED_FILE, "cannot be decoded"),
    "cut png": (bytes_of("PNG")[:100], TRUNCATED_FILE, "cannot be decoded"),
    "cut webp": (bytes_of("WEBP")[:40], UNREADABLE_FILE, "cannot be decoded"),
    "damaged png": (bytes_of("PNG").replace(b"IDAT", b"IDAT\0\0\0\0", 1), TRUNCATED_FILE, "cannot be decoded"),
    "a format outside the list": (bytes_of("TGA"), NOT_AN_IMAGE, "cannot be decoded"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", NOT_AN_IMAGE, "cannot be decoded"),
    "huge": (png_that_promises(60_000, 60_000), TOO_MANY_PIXELS, "too many pixels"),
    "large": (png_that_promises(20_000, 15_000), TOO_MANY_PIXELS, "too many pixels"),
}


@pytest.mark.parametrize(("content", "kind", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_decoded_has_a_kind_and_a_problem_and_raises_nothing(content, kind, words, tmp_path):
    (tmp_path / "x.jpg").write_bytes(content)
    result = decode(tmp_path / "x.jpg", SIZE, "squash")
    assert words in result.problem and "\n" not in result.problem and result.kind == kind
    assert (result.pixels, result.width, result.height) == (None, 0, 0)


@pytest.mark.parametrize("name", ["missing.jpg", "folder.jpg"])
def test_no_file_has_a_reason_too(name, tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    result = decode(tmp_path / name, SIZE, "squash")
    assert result.pixels is None and result.problem and result.kind == UNREADABLE_FILE
    assert content_hash(tmp_path / name) == ""


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (5, 9), (28, 28)])
def test_arrays_are_decoded_like_files(shape, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    from_array, from_file = decoded(pixels), decoded(tmp_path / "x.png")
    np.testing.assert_array_equal(from_array.pixels, from_file.pixels)
    assert (from_array.width, from_array.height) == (shape[1], shape[0])


def test_bytes_are_decoded_and_hashed_like_the_file_that_holds_them(tmp_path):
    for name, content in (("a.png", bytes_of("PNG")), ("b.png", b"no image"), ("c.png", b"")):
        (tmp_path / name).write_bytes(content)
        from_bytes, from_file = decode(content, SIZE, "squash"), decode(tmp_path / name, SIZE, "squash")
        assert from_bytes[1:] == from_file[1:] and np.array_equal(from_bytes.pixels, from_file.pixels)
        assert content_hash(content) == content_hash(tmp_path / name) != ""


def test_a_pipe_has_no_hash_and_nobody_waits_for_one(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    assert content_hash(tmp_path / "x.png") == ""


def test_a_cached_jpeg_is_close_to_its_pixels_also_where_colours_meet():
    pixels = np.asarray(picture(32, 32)).copy()
    pixels[10:20, 10:20] = (255, 0, 0)  # an edge of colour, which usual JPEGs blur over two pixels
    kept = from_jpeg(to_jpeg(pixels))
    assert kept.shape == pixels.shape and kept.dtype == np.uint8
    assert difference(kept, pixels) <= 40 and np.abs(kept.astype(int) - pixels).mean() < 4


def test_an_image_of_the_wanted_size_keeps_its_bits(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decoded(pixels).pixels, pixels)


def test_a_hash_belongs_to_content_and_shape(tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for path in (first, second):
        path.write_bytes(b"same")
    assert content_hash(first) == content_hash(second)
    second.write_bytes(b"other")
    array = np.arange(12, dtype=np.uint8)
    hashes = [content_hash(first), content_hash(second), *(content_hash(array.reshape(s)) for s in ((3, 4), (4, 3)))]
    assert len(set(hashes)) == 4 and all(len(digest) == 64 for digest in hashes)
    grid = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert content_hash(grid.T) == content_hash(np.ascontiguousarray(grid.T))


def sixteen_bits(width=20, height=10):
    return Image.fromarray(np.full((height, width), 40_000, np.uint16))


def sixteen_bits_in_colour():
    """A PNG of three channels of 16 bits, which Pillow reads but does not write."""
    rows = b"".join(b"\0" + b"\x80\0" * 3 * 4 for _ in range(4))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    ("make", "name", "options", "remarks"),
    [
        (picture, "a.jpg", {}, "JPEG RGB"),
        (picture, "a.png", {"format": "JPEG"}, "JPEG RGB"),
        (lambda: picture().convert("CMYK"), "a.jpg", {"exif": turned(6)}, "JPEG CMYK turned-6"),
        (lambda: picture().convert("L"), "a.jpg", {"exif": turned(1)}, "JPEG L"),
        (lambda: picture().convert("P"), "a.png", {}, "PNG P"),
        (lambda: picture().convert("P"), "a.png", {"transparency": 0}, "PNG P transparent"),
        (lambda: Image.new("RGBA", (9, 9), (1, 2, 3, 99)), "a.webp", {}, "WEBP RGBA transparent"),
        (lambda: picture().convert("1"), "a.tif", {"compression": "group4"}, "TIFF 1"),
        (picture, "a.tif", {"exif": turned(3), "compression": "tiff_lzw"}, "TIFF RGB turned-3"),
        (sixteen_bits, "a.png", {}, "PNG I;16 16-bit values=uint16,40000.0,40000.0,0"),
        (sixteen_bits, "a.tif", {}, "TIFF I;16 16-bit values=uint16,40000.0,40000.0,0"),
        (
            lambda: picture().convert("P"),
            "a.gif",
            {"save_all": True, "append_images": [Image.new("P", (48, 32))]},
            "GIF P animated",
        ),
        (picture, "a.tif", {"save_all": True, "append_images": [picture(20, 20)]}, "TIFF RGB animated"),
        (picture, "a.png", {"save_all": True, "append_images": [picture(40, 30)]}, "PNG RGB animated"),
        (picture, "a.webp", {"save_all": True, "append_images": [Image.new("RGB", (48, 32))]}, "WEBP RGB animated"),
    ],
)
def test_it_remarks_what_the_file_was(make, name, options, remarks, tmp_path):
    make().save(tmp_path / name, **options)
    assert decoded(tmp_path / name).remarks == remarks


def test_sixteen_bits_in_colour_are_remarked_although_pillow_reads_eight():
    expected = "PNG RGB 16-bit values=uint16,32768.0,32768.0,0"
    assert decode(sixteen_bits_in_colour(), SIZE, "squash").remarks == expected


def test_a_damaged_second_picture_costs_a_remark_alone(tmp_path):
    picture().convert("P").save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("P", (48, 32), 3)])
    content = (tmp_path / "a.gif").read_bytes()
    whole = decode(content, SIZE, "squash")
    for length in range(len(content) - 60, len(content)):
        cut = decode(content[:length], SIZE, "squash")
        if not cut.problem:
            np.testing.assert_array_equal(cut.pixels, whole.pixels)
            assert cut.remarks in ("GIF P", "GIF P animated", "GIF RGB", "GIF RGB animated")


def test_arrays_are_no_files_and_get_no_remark():
    assert decode(np.zeros((4, 4, 3), np.uint8), SIZE, "squash").remarks == ""
