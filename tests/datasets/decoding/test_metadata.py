"""Metadata never decides whether a picture is decoded, and cannot take time or memory; big photos are decoded."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from tests.support import bad_images
from tests.support.bad_images import encoded, picture, png_chunk
from transfer_learning.datasets.dataset import TOO_MANY_PIXELS, TRUNCATED_FILE
from transfer_learning.datasets.decoding import decode as decode_module
from transfer_learning.datasets.decoding.decode import decode, full_size, short_side, upright
from transfer_learning.datasets.decoding.metadata import exif_orientation, orientation_of, without_metadata

PNG, WEBP = encoded(picture(5), "PNG"), encoded(picture(5), "WEBP", lossless=True)
JPEG = encoded(picture(5, 256, 256), "JPEG")


def exif(orientation, kind=3, order="<"):
    value = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I"}[kind], orientation)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)


def in_png(*chunks, behind=False):
    place = len(PNG) - 12 if behind else 33
    return PNG[:place] + b"".join(chunks) + PNG[place:]


def text_of(num_bytes):
    return b"workflow\0\0" + zlib.compress(b"x" * num_bytes)


WRONG_CHECKSUM = png_chunk(b"tEXt", b"k\0v")[:-4] + bytes(4)
ENDLESS = b"II*\0\x08\0\0\0\xff\xff" + b"\x69\x87\4\0\1\0\0\0\x08\0\0\0" * 1000  # each entry leads to the first
OUTSIDE = b"II*\0\xff\xff\xff\x7f"
ODD = {
    "PNG, large compressed text": in_png(png_chunk(b"zTXt", text_of(2_000_000))),
    "PNG, large compressed text behind the pixels": in_png(png_chunk(b"zTXt", text_of(2_000_000)), behind=True),
    "PNG, text of 100 MB": in_png(png_chunk(b"iTXt", b"k\0\0\0\0\0" + b"x" * 100_000_000)),
    "PNG, many large texts": in_png(*[png_chunk(b"zTXt", text_of(1_000_000))] * 80),
    "PNG, EXIF that is none": in_png(png_chunk(b"eXIf", b"garbage")),
    "PNG, endless EXIF": in_png(png_chunk(b"eXIf", ENDLESS)),
    "PNG, EXIF that points outside": in_png(png_chunk(b"eXIf", OUTSIDE)),
    "PNG, orientation 0": in_png(png_chunk(b"eXIf", exif(0))),
    "PNG, orientation 9": in_png(png_chunk(b"eXIf", exif(9))),
    "PNG, wrong checksum of a text": in_png(WRONG_CHECKSUM),
    "PNG, wrong checksum of a text behind the pixels": in_png(WRONG_CHECKSUM, behind=True),
    "PNG, broken profile": in_png(png_chunk(b"iCCP", b"x\0\0garbage")),
    "PNG, profile of 50 MB": in_png(png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50_000_000)))),
    **{
        f"PNG, short {kind}": in_png(png_chunk(kind.encode(), b"\0"))
        for kind in ("pHYs", "gAMA", "cHRM", "acTL", "sBIT", "tRNS")
    },
    "WEBP, large text": encoded(picture(5), "WEBP", lossless=True, xmp=b"x" * 5_000_000),
    "WEBP, EXIF that is none": encoded(picture(5), "WEBP", lossless=True, exif=b"garbage"),
    "WEBP, endless EXIF": encoded(picture(5), "WEBP", lossless=True, exif=ENDLESS),
    "WEBP, broken profile": encoded(picture(5), "WEBP", lossless=True, icc_profile=b"no profile"),
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_odd_metadata_costs_no_picture(content):
    result = decode(content, 30, "squash")
    assert result.problem == "" and "turned" not in result.remarks
    np.testing.assert_array_equal(result.pixels, decode(PNG, 30, "squash").pixels)
    assert full_size(content) == upright(content).size == (40, 30)


def test_odd_exif_of_a_jpeg_or_tiff_costs_no_picture():
    plain = decode(JPEG, 30, "squash").pixels
    for odd in (ENDLESS, OUTSIDE, b"garbage", exif(0), exif(9)):
        result = decode(encoded(picture(5, 256, 256), "JPEG", exif=b"Exif\0\0" + odd), 30, "squash")
        np.testing.assert_array_equal(result.pixels, plain)
    tags = ImageFileDirectory_v2()
    tags[34665] = 2**31 - 1  # the EXIF directory of a TIFF
    result = decode(encoded(picture(5), "TIFF", tiffinfo=tags), 30, "squash")
    np.testing.assert_array_equal(result.pixels, decode(PNG, 30, "squash").pixels)


def test_without_its_metadata_a_picture_is_still_turned():
    turned = png_chunk(b"eXIf", exif(6))
    result = decode(in_png(turned, png_chunk(b"zTXt", text_of(2_000_000))), 30, "squash")
    assert result.remarks == "PNG RGB turned-6" and (result.width, result.height) == (30, 40)
    for image_format, prefix in (("JPEG", b"Exif\0\0"), ("WEBP", b"")):
        content = encoded(picture(5), image_format, exif=prefix + exif(6))
        assert decode(without_metadata(content), 30, "squash").remarks == f"{image_format} RGB turned-6"
        assert decode(without_metadata(content), 30, "squash").pixels.tolist() == (
            decode(content, 30, "squash").pixels.tolist()
        )


@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("order", "<>")
def test_the_orientation_is_found_as_pillow_finds_it(kind, order):
    for orientation in range(1, 9):
        pillow = Image.Exif()
        pillow.load(b"Exif\0\0" + exif(orientation, kind, order))
        assert exif_orientation(exif(orientation, kind, order)) == pillow[0x0112] == orientation
    xmp = b'<x tiff:Orientation="6"/>'
    assert orientation_of({"xmp": xmp}) == orientation_of({"XML:com.adobe.xmp": xmp.decode()}) == 6
    raw = "\nexif\n 26\n" + exif(8).hex()
    assert orientation_of({"Raw profile type exif": raw}) == 8
    assert orientation_of({"Raw profile type exif": "\n\n\nno numbers"}) == orientation_of({"exif": None}) == 1


@pytest.mark.parametrize("size", [(40, 30), (30, 30)])
@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 9])
def test_a_tiff_is_turned_once(orientation, size):
    tags = ImageFileDirectory_v2()
    tags[0x0112] = orientation
    for compression in (None, "tiff_lzw") if orientation in range(1, 9) else (None,):
        content = encoded(picture(5, *size), "TIFF", tiffinfo=tags, compression=compression)
        result = decode(content, 30, "squash")
        upright = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}.get(orientation)
        expected = picture(5, *size).transpose(upright) if upright is not None else picture(5, *size)
        assert (result.width, result.height) == expected.size == full_size(content)
        np.testing.assert_array_equal(result.pixels, np.asarray(expected.resize((30, 30), Image.Resampling.BICUBIC)))


# JPEGs that end too early


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + OUTSIDE}])
@pytest.mark.parametrize(("num_missing", "is_whole"), [(1, True), (2, True), (20, False), (200, False), (2000, False)])
def test_a_jpeg_without_its_last_bytes_is_truncated_only_if_pixels_are_missing(num_missing, is_whole, options):
    content = encoded(picture(5, 256, 256), "JPEG", **options)
    result, whole = (decode(part, 200, "squash") for part in (content[:-num_missing], content))
    assert (result.problem == "") == is_whole and (is_whole or result.kind == TRUNCATED_FILE)
    assert not is_whole or (result.pixels == whole.pixels).all()


def test_a_progressive_jpeg_that_lacks_a_whole_scan_is_truncated():
    content = encoded(picture(5, 64, 64), "JPEG", progressive=True)
    starts = [place for place in range(len(content)) if content[place : place + 2] == b"\xff\xda"]
    assert len(starts) > 3
    for start in starts[1:]:
        tables = content.rfind(b"\xff\xc4", 0, start)
        assert decode(content[:tables], 60, "squash").kind == TRUNCATED_FILE
        assert decode(content[:start], 60, "squash").kind == TRUNCATED_FILE


# Many pixels


def test_a_photo_of_108_megapixels_is_decoded_at_reduced_scale():
    stream = io.BytesIO()
    Image.new("L", (12000, 9000), 200).save(stream, "JPEG", quality=60)
    result = decode(stream.getvalue(), 32, "squash")
    assert (result.problem, result.width, result.height) == ("", 12000, 9000) and abs(result.pixels - 200.0).max() < 3


def header_only(width, height, mode=2):
    return bad_images.png(width, height, 8, mode, b"")


def test_the_limit_of_other_formats_is_their_memory(tmp_path):
    for content, is_allowed in (
        (header_only(16_000, 12_500), True),  # 200 million pixels of 4 bytes
        (header_only(20_000, 15_000), False),
        (header_only(20_000, 15_000, mode=0), False),
        (header_only(16_000, 12_500, mode=6), False),  # of 8 bytes, with transparency
    ):
        result = decode(content, 32, "squash")
        assert (result.kind == TRUNCATED_FILE) == is_allowed and (result.kind == TOO_MANY_PIXELS) != is_allowed
        assert is_allowed or "of memory; the limit is 1.1 GB" in result.problem and "DOS" not in result.problem
    (tmp_path / "large.png").write_bytes(header_only(16_000, 12_500))
    assert short_side(tmp_path / "large.png") == 12_500
    assert Image.MAX_IMAGE_PIXELS, "Pillow's own limit is only lifted while an image is opened"


def test_coefficients_of_a_progressive_jpeg_count():
    photo = bad_images.jpeg_with(encoded(picture(1), "JPEG", progressive=True), size=(24_000, 18_000))
    result = decode(photo, 32, "squash")
    assert result.kind == TOO_MANY_PIXELS and "million" in result.problem


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "RGBA"])
def test_an_image_of_very_many_pixels_is_first_averaged(mode, monkeypatch):
    monkeypatch.setattr(decode_module, "ALWAYS_DECODED", 0)
    content = encoded(picture(5, 400, 300).convert("L").convert(mode), "PNG")
    reduced = decode(content, 20, "squash").pixels
    monkeypatch.undo()
    assert np.abs(reduced.astype(int) - decode(content, 20, "squash").pixels).mean() < 2


def test_hostile_metadata_takes_no_time():
    started = time.process_time()
    many = b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 0x010E, 2, 2**31 - 1, 8) * 65535
    spaces = b"P5" + b" " * 10**6 + b"x"
    for content in (in_png(png_chunk(b"eXIf", many)), spaces, b"\xff\xd8" + b"\xff" * 10**6, b"RIFF" + bytes(10**6)):
        decode(content, 30, "squash")
    assert time.process_time() - started < 20
