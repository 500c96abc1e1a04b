"""Transforms of test-time augmentation: pure, of the same shape, each what its name says."""

import numpy as np
import pytest
import tensorflow as tf

from transfer_learning.errors import UserError
from transfer_learning.evaluation.tta import CROPS, PLAIN, Transform, transforms_of

RANDOM = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.float32)


def seen(transform, images):
    return transform(tf.constant(images)).numpy()


@pytest.mark.parametrize(
    ("kinds", "num_transforms"),
    [([], 1), (["flip"], 2), (["crops"], 6), (["flip", "crops"], 12), (["crops", "flip"], 12)],
)
def test_the_plain_image_is_the_first_and_all_names_differ(kinds, num_transforms):
    transforms = transforms_of(kinds)
    assert len(transforms) == len({transform.name for transform in transforms}) == num_transforms
    assert transforms[0] == PLAIN and np.array_equal(seen(PLAIN, RANDOM), RANDOM)


@pytest.mark.parametrize(("kinds", "words"), [(["flop"], "Did you mean flip"), ([""], "unknown kind ''")])
def test_an_unknown_kind_is_named(kinds, words):
    with pytest.raises(UserError, match=words):
        transforms_of(kinds)


def test_every_transform_keeps_shape_and_range_and_differs_from_the_others():
    results = [seen(transform, RANDOM) for transform in transforms_of(["flip", "crops"])]
    assert all(result.shape == RANDOM.shape and result.dtype == np.float32 for result in results)
    assert all(result.min() >= 0 and result.max() <= 255 for result in results)
    assert len({result.tobytes() for result in results}) == 12


def test_the_mirrored_symmetric_image_is_the_image():
    symmetric = np.concatenate([RANDOM[:, :, :8], RANDOM[:, :, 7::-1]], axis=2)
    mirrored = Transform("mirrored", mirrored=True)
    assert np.array_equal(seen(mirrored, symmetric), symmetric)
    assert np.array_equal(seen(mirrored, RANDOM), RANDOM[:, :, ::-1])


@pytest.mark.parametrize("transform", CROPS, ids=lambda transform: transform.name)
def test_a_crop_of_an_even_image_is_that_image(transform):
    assert np.array_equal(seen(transform, np.full((2, 24, 24, 3), 77.0, np.float32)), np.full((2, 24, 24, 3), 77.0))


@pytest.mark.parametrize(
    ("name", "left", "top"),
    [
        ("centre", 2.0, 2.0),
        ("top_left", 0.0, 0.0),
        ("top_right", 4.0, 0.0),
        ("bottom_left", 0.0, 4.0),
        ("bottom_right", 4.0, 4.0),
    ],
)
def test_a_crop_shows_seven_eighths_of_the_side_at_its_place(name, left, top):
    """A ramp says of each pixel where it came from: pixel k of 32 lies at (k + 0.5) * 7 / 8 of the source's plane."""
    ramp = np.arange(32, dtype=np.float32)
    image = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], np.float32(0)), axis=2)[None]
    result = seen(next(transform for transform in CROPS if transform.name == name), image)[0]
    inner = slice(1, 31)  # a pixel at the very edge would lie half outside, and is that of the edge
    expected = (np.arange(32) + 0.5) * 0.875 - 0.5
    assert result[16, inner, 0] == pytest.approx((expected + left)[inner], abs=1e-4)
    assert result[inner, 16, 1] == pytest.approx((expected + top)[inner], abs=1e-4)


def test_crops_of_the_mirrored_image_are_the_mirrored_crops_of_the_other_side():
    left, right = seen(Transform("left", (0.0, 0.0), True), RANDOM), seen(Transform("right", (0.0, 1.0)), RANDOM)
    assert left == pytest.approx(right[:, :, ::-1], abs=1e-3)
