"""What a Python program may pass as images, and the sentence for what is none."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from transfer_learning.datasets.decoding.given import each_image
from transfer_learning.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def encoded(image, **options):
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


PNG = encoded(Image.fromarray(PIXELS))
EXIF = Image.Exif()
EXIF[274] = 6  # a quarter to the right
TURNED = encoded(Image.fromarray(PIXELS), exif=EXIF)


@pytest.mark.parametrize(
    "given",
    [bytearray(PNG), memoryview(PNG), io.BytesIO(PNG), (one for one in [PNG]), [[PNG]], pd.Series([PNG])],
    ids=lambda given: type(given).__name__,
)
def test_encoded_images_come_as_bytes(given):
    assert list(each_image(given)) == [PNG]


@pytest.mark.parametrize("given", [["a.jpg", "b"], np.array(["a.jpg", "b"]), pd.Series(["a.jpg", "b"])], ids=type)
def test_paths_come_in_their_order(given):
    assert list(each_image(given)) == ["a.jpg", "b"] and list(each_image([])) == []


class OfAnotherLibrary:
    """A tensor, as NumPy sees it."""

    def __array__(self, dtype=None, copy=None):
        return PIXELS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (PIXELS, [PIXELS]),
        (OfAnotherLibrary(), [PIXELS]),
        (np.stack([PIXELS, 255 - PIXELS]), [PIXELS, 255 - PIXELS]),
        (PIXELS[..., :1], [PIXELS[..., 0]]),
        (PIXELS[..., 0] > 99, [np.where(PIXELS[..., 0] > 99, 255, 0)]),
        (Image.fromarray(PIXELS), [PIXELS]),
        ([Image.fromarray(PIXELS[..., 0])], [np.stack([PIXELS[..., 0]] * 3, 2)]),
        (Image.open(io.BytesIO(TURNED)), [np.rot90(PIXELS, -1)]),
    ],
    ids="pixels tensor several one-channel bool pillow grey-pillow turned-pillow".split(),
)
def test_pixels_come_as_one_array_per_image(given, expected):
    found = list(each_image(given))
    assert len(found) == len(expected) and all(map(np.array_equal, found, expected))
    assert {image.dtype for image in found} == {np.dtype(np.uint8)}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "NoneType is not an image; paths, bytes or open files"),
        ([3], "int is not an image"),
        ({"a": "b.jpg"}, "dict is not an image"),
        (pd.DataFrame({"file": ["a.jpg"]}), "DataFrame of object, shape"),
        ("", "path of an image is empty"),
        (PIXELS / 255, r"float64, shape \(6, 5, 3\).*scale them to 0..255"),
        (PIXELS[:0], r"uint8, shape \(0, 5, 3\), is no image.*were expected.$"),
        (PIXELS.transpose(2, 0, 1), r"uint8, shape \(3, 6, 5\)"),
        (io.StringIO("text"), "is open as text; open it with 'rb'"),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), "has the mode I;16"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_anything_else_is_one_sentence(given, words):
    with pytest.raises(UserError, match=words):
        list(each_image(given))
