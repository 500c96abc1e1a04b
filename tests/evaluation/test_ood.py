"""Images of no class are what their names say, and the same each time."""

import numpy as np

from transfer_learning.evaluation.ood import scrambled, uniform_noise


def test_uniform_noise_takes_every_value_about_as_often():
    images = uniform_noise(20, 32)
    assert images.shape == (20, 32, 32, 3) and images.dtype == np.uint8
    counts = np.bincount(images.ravel(), minlength=256)
    assert counts.min() > 0.6 * counts.mean() and counts.max() < 1.4 * counts.mean()
    assert np.array_equal(images, uniform_noise(20, 32))


def test_a_scrambled_image_has_the_same_pixels_in_another_order():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    images[1] = images[0]
    result = scrambled(images)
    assert result.shape == images.shape and result.dtype == np.uint8
    for before, after in zip(images, result, strict=True):
        assert sorted(map(tuple, before.reshape(-1, 3))) == sorted(map(tuple, after.reshape(-1, 3)))
        assert not np.array_equal(before, after)
    assert not np.array_equal(result[0], result[1])
    assert np.array_equal(result, scrambled(images))
