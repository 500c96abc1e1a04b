"""The standard error of a mean, whose images may be alike within a group."""

import numpy as np
import pytest

from transfer_learning.evaluation.intervals import standard_error

VALUES = np.random.default_rng(0).normal(size=12)


@pytest.mark.parametrize(
    ("values", "groups", "expected"),
    [
        (VALUES, None, VALUES.std(ddof=1) / 12**0.5),
        (VALUES, list("abcdefghijkl"), VALUES.std(ddof=1) / 12**0.5),
        (np.repeat(VALUES, 5), np.repeat(np.arange(12), 5), VALUES.std(ddof=1) / 12**0.5),
        (VALUES, np.zeros(12), VALUES.std()),
        (np.ones(4), [0, 0, 1, 1], 0.0),
        (VALUES[:1], None, 0.0),
    ],
    ids=["alone", "a group each", "repeated images are no new ones", "one group", "all equal", "one image"],
)
def test_standard_error_counts_groups(values, groups, expected):
    assert standard_error(values, groups) == pytest.approx(expected)
