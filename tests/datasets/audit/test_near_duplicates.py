"""Near-duplicates: what people do to a picture before they save it once more is found, and what merely looks alike is not."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter

from transfer_learning.datasets.audit.findings import MAX_BITS, MIN_CORRELATION
from transfer_learning.datasets.audit.near_duplicates import (
    correlations,
    directions,
    groups_of,
    near_by_features,
    near_by_hash,
    perceptual_hashes,
)


def picture(seed, size=96):
    """A smooth picture of its own for each seed."""
    small = np.random.default_rng(seed).integers(0, 200, (7, 7, 3), np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def pixels_of(images, size=64):
    return np.stack(
        [np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)) for image in images]
    )


def differing_bits(one, other):
    return int(np.bitwise_count(one ^ other))


CHANGES = {
    "jpeg": lambda image: jpeg(image, 40),
    "half the size": lambda image: image.resize((48, 48)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_saved_once_more_is_near(change):
    originals = [picture(seed) for seed in range(20)]
    pixels = pixels_of([*originals, *map(change, originals)])
    rows = np.arange(40)
    hashes, _ = perceptual_hashes(pixels, rows)
    pairs = near_by_hash(hashes, MAX_BITS)
    assert pairs.tolist() == [[number, number + 20] for number in range(20)], "each with its own, and with no other"
    assert (correlations(pixels, rows, pairs) >= MIN_CORRELATION).all()


def test_other_pictures_are_far_and_so_are_mirrored_ones():
    pixels = pixels_of([image for seed in range(30) for image in (picture(seed), picture(seed).transpose(0))])
    hashes, _ = perceptual_hashes(pixels, np.arange(60))
    assert len(near_by_hash(hashes, MAX_BITS)) == 0
    assert differing_bits(hashes[0], hashes[0]) == 0 < differing_bits(hashes[0], hashes[2])


def test_the_hash_does_not_hang_on_the_size_and_a_size_below_32_will_do():
    for seed in range(5):
        hashes = [
            perceptual_hashes(pixels_of([picture(seed)], size), np.arange(1))[0][0] for size in (28, 64, 100, 224)
        ]
        assert max(differing_bits(hashes[0], hashed) for hashed in hashes) <= MAX_BITS
    assert perceptual_hashes(pixels_of([picture(1)], 8), np.arange(1))[0].dtype == np.uint64


def test_the_hash_is_the_published_one():
    """The 8 x 8 lowest frequencies of SciPy's two-dimensional transform, row by row, above their median or not."""
    from scipy.fft import dct

    pixels = pixels_of([picture(3)], 32)
    grey = pixels[0] @ np.array([0.299, 0.587, 0.114])
    lowest = dct(dct(grey, axis=0), axis=1)[:8, :8].ravel()
    bits = "".join("1" if value > np.median(lowest) else "0" for value in lowest)
    assert perceptual_hashes(pixels, np.arange(1))[0][0] == int(bits, 2)


def test_one_colour_has_no_contrast_and_rows_may_be_any():
    pixels = np.concatenate([pixels_of([picture(1), picture(2)]), np.full((1, 64, 64, 3), 77, np.uint8)])
    hashes, contrasts = perceptual_hashes(pixels, np.array([2, 0, 1, 0]))
    assert contrasts[0] < 1e-3 and (contrasts[1:] > 5).all() and hashes[1] == hashes[3] != hashes[2]
    hashes, contrasts = perceptual_hashes(pixels, np.empty(0, np.int64))
    assert len(hashes) == len(contrasts) == len(near_by_hash(hashes, 4)) == 0


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 63), min_size=1, max_size=40), st.integers(0, 9), st.integers(0, 10**6))
def test_bands_find_every_pair_that_a_comparison_of_all_finds(changed_bits, most, seed):
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**63, 4, dtype=np.uint64)
    for bit in changed_bits:  # each differs from an earlier one in a bit
        hashes = np.append(hashes, hashes[rng.integers(len(hashes))] ^ np.uint64(1 << bit))
    found = near_by_hash(hashes, most)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= most
    expected = np.stack(np.nonzero(np.triu(near, k=1)), axis=1)
    assert {tuple(pair) for pair in found.tolist()} <= {tuple(pair) for pair in expected.tolist()}
    # Of equal hashes not every pair is named, so the groups are compared.
    assert groups_of(found, len(hashes)).tolist() == groups_of(expected, len(hashes)).tolist()


def test_a_thousand_equal_hashes_make_a_chain_and_no_square():
    hashes = np.full(1000, 12345, np.uint64)
    assert len(near_by_hash(hashes, 4)) == 999


def test_features_are_compared_by_their_directions_about_the_mean():
    rng = np.random.default_rng(0)
    features = rng.random((1200, 16), dtype=np.float32) + 10  # all point much the same way before the mean is taken off
    features[1100] = features[3] + 0.01
    towards = directions(features)
    np.testing.assert_allclose(np.linalg.norm(towards, axis=1), 1, rtol=1e-5)
    assert near_by_features(towards, 0.999).tolist() == [[3, 1100]]
    cosines = towards @ towards.T
    expected = np.stack(np.nonzero(np.triu(cosines >= 0.9, k=1)), axis=1)
    assert sorted(near_by_features(towards, 0.9).tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize(
    ("pairs", "count", "expected"),
    [
        ([], 3, [-1, -1, -1]),
        ([(1, 2)], 4, [-1, 0, 0, -1]),
        ([(3, 4), (0, 2), (2, 5)], 6, [0, -1, 0, 1, 1, 0]),
        ([(4, 3), (1, 2), (2, 4)], 5, [-1, 0, 0, 0, 0]),
    ],
)
def test_groups_are_what_chains_of_pairs_reach_numbered_by_their_first(pairs, count, expected):
    assert groups_of(np.array(pairs, np.int64).reshape(-1, 2), count).tolist() == expected
