"""Views: pure, of the same shape, each what its name says."""

import numpy as np
import pytest
import tensorflow as tf

from transfer_learning.errors import UserError
from transfer_learning.evaluation.tta import CROPS, PLAIN, View, views_of

RANDOM = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.float32)


def seen(view, images):
    return view(tf.constant(images)).numpy()


@pytest.mark.parametrize(
    ("kinds", "num_views"), [([], 1), (["flip"], 2), (["crops"], 6), (["flip", "crops"], 12), (["crops", "flip"], 12)]
)
def test_the_plain_view_is_the_first_and_all_names_differ(kinds, num_views):
    views = views_of(kinds)
    assert len(views) == len({view.name for view in views}) == num_views
    assert views[0] == PLAIN and np.array_equal(seen(PLAIN, RANDOM), RANDOM)


@pytest.mark.parametrize(("kinds", "words"), [(["flop"], "Did you mean flip"), ([""], "nothing is no view")])
def test_an_unknown_view_is_named(kinds, words):
    with pytest.raises(UserError, match=words):
        views_of(kinds)


def test_every_view_keeps_shape_and_range_and_differs_from_the_others():
    results = [seen(view, RANDOM) for view in views_of(["flip", "crops"])]
    assert all(result.shape == RANDOM.shape and result.dtype == np.float32 for result in results)
    assert all(result.min() >= 0 and result.max() <= 255 for result in results)
    assert len({result.tobytes() for result in results}) == 12


def test_the_mirrored_view_of_a_symmetric_image_is_the_image():
    symmetric = np.concatenate([RANDOM[:, :, :8], RANDOM[:, :, 7::-1]], axis=2)
    mirrored = View("mirrored", mirrored=True)
    assert np.array_equal(seen(mirrored, symmetric), symmetric)
    assert np.array_equal(seen(mirrored, RANDOM), RANDOM[:, :, ::-1])


@pytest.mark.parametrize("view", CROPS, ids=lambda view: view.name)
def test_a_crop_of_an_even_image_is_that_image(view):
    assert np.array_equal(seen(view, np.full((2, 24, 24, 3), 77.0, np.float32)), np.full((2, 24, 24, 3), 77.0))


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
    result = seen(next(view for view in CROPS if view.name == name), image)[0]
    inner = slice(1, 31)  # a pixel at the very edge would lie half outside, and is that of the edge
    expected = (np.arange(32) + 0.5) * 0.875 - 0.5
    assert result[16, inner, 0] == pytest.approx((expected + left)[inner], abs=1e-4)
    assert result[inner, 16, 1] == pytest.approx((expected + top)[inner], abs=1e-4)


def test_crops_of_the_mirrored_image_are_the_mirrored_crops_of_the_other_side():
    left, right = seen(View("left", (0.0, 0.0), True), RANDOM), seen(View("right", (0.0, 1.0)), RANDOM)
    assert left == pytest.approx(right[:, :, ::-1], abs=1e-3)
