"""95 % confidence intervals, by SciPy."""

from collections.abc import Callable
from typing import Any

import numpy as np

NUM_RESAMPLES = 2000
SEED = 0  # the same predictions give the same interval
MAX_NUMBERS = 2_000_000  # in memory at once


def wilson_interval(num_right: int, num_images: int) -> list[float]:
    """Returns the 95 % interval ``[low, high]`` of a proportion (Wilson, 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(num_right, num_images).proportion_ci(confidence_level=0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def resampled_interval(
    values: np.ndarray, statistic: Callable[..., np.ndarray], widest: tuple[float, float] = (0.0, 1.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 95 % percentile bootstrap interval of a statistic (Efron, 1979).

    Args:
        values: one number per image, shape (n,).
        statistic: called as ``statistic(values, axis=-1)`` with values (resamples, n) or (n,); returns (..., resamples)
            or (...,).
        widest: the range of the statistic, which is the interval for a single image.

    Returns:
        Lower and upper ends, each of the shape of the statistic.
    """
    from scipy.stats import bootstrap

    if len(values) < 2:
        low, high = (np.full(np.shape(statistic(values, axis=-1)), end) for end in widest)
        return low, high
    kind: dict[str, Any] = dict(confidence_level=0.95, method="percentile", vectorized=True, axis=-1)
    amount: dict[str, Any] = dict(n_resamples=NUM_RESAMPLES, batch=max(1, MAX_NUMBERS // len(values)))
    interval = bootstrap((values,), statistic, rng=np.random.default_rng(SEED), **amount, **kind).confidence_interval
    return interval.low, interval.high


def difference_interval(differences: np.ndarray) -> list[float]:
    """The 95 % bootstrap interval ``[low, high]`` of a mean difference, of one number per image, -1 to 1, shape (n,).

    If all images have the same difference, the bootstrap has no spread. Then the upper end of Wilson's interval for 0
    of n bounds the share of images with another difference, which is assumed to be -1 or 1.
    """
    low, high = map(float, resampled_interval(differences, np.mean, widest=(-1.0, 1.0)))
    if low == high:
        share_otherwise = wilson_interval(0, len(differences))[1]
        low, high = low - share_otherwise * (1 + low), high + share_otherwise * (1 - high)
    return [low, high]


def standard_error(values: np.ndarray, groups: np.ndarray | None = None) -> float:
    """The standard error of the mean of `values`, which are alike within a group, as those of crops of one photo are.

    Only groups are independent, so the deviations of a group are added up before they are squared (the cluster-robust
    variance of Liang and Zeger, 1986, Biometrika 73). Images that are each alone have the usual one.

    Args:
        values: one number per image, shape (n,).
        groups: (n,), the same value for images that belong together; None: each is alone.

    Returns:
        The standard error; of a single group the standard deviation of its images, as if it were one image.
    """
    numbers = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(numbers, values - values.mean())
    if len(sums) == 1:
        return float(values.std())
    return float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum())) / len(values)


def f1_interval(num_right: int, num_wrong: int) -> list[float]:
    """Returns the 95 % interval ``[low, high]`` of an F1 (Lam et al., 2023, arXiv:2309.14621).

    F1 = 2 s / (1 + s), where s is the share of true positives (`num_right`) among these, false positives and false
    negatives (`num_wrong`).
    """
    return [2 * share / (1 + share) for share in wilson_interval(num_right, num_right + num_wrong)]
