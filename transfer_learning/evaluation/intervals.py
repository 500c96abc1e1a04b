"""How far a number of a result could have fallen otherwise: 95 % intervals, by SciPy."""

from collections.abc import Callable

import numpy as np
from scipy.stats import binomtest, bootstrap

NUM_RESAMPLES = 2000
SEED = 0  # the same predictions give the same interval
NUMBERS_AT_ONCE = 2_000_000  # in memory


def wilson_interval(num_right: int, num_images: int) -> list[float]:
    """The 95 % interval ``[low, high]`` of the share of right answers (Wilson, 1927)."""
    interval = binomtest(num_right, num_images).proportion_ci(confidence_level=0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def resampled_interval(
    values: np.ndarray, statistic: Callable[..., np.ndarray], widest: tuple[float, float] = (0.0, 1.0)
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % percentile interval of a statistic (Efron, 1979), the images drawn again with replacement.

    Args:
        values: one number an image, shape (n,).
        statistic: called as ``statistic(values, axis=-1)`` with values (resamples, n) or (n,); returns (..., resamples) or
            (...,).
        widest: the range of the statistic, which is the interval where there is one image: it says nothing of others.

    Returns:
        Lower and upper ends, each of the shape of the statistic.
    """
    if len(values) < 2:
        return tuple(np.full(np.shape(statistic(values, axis=-1)), end) for end in widest)
    result = bootstrap(
        (values,),
        statistic,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, NUMBERS_AT_ONCE // len(values)),
        vectorized=True,
        axis=-1,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def difference_interval(differences: np.ndarray) -> list[float]:
    """The 95 % interval ``[low, high]`` of a mean difference, by drawing the images again.

    Where all images have the same difference, all draws are alike and tell nothing. Then it reaches as far as the images
    that are otherwise may be many, by Wilson's interval of none among so many, and may differ, which is up to -1 or 1.

    Args:
        differences: one number an image, -1 to 1, shape (n,).
    """
    low, high = map(float, resampled_interval(differences, np.mean, widest=(-1.0, 1.0)))
    if low == high:
        share_otherwise = wilson_interval(0, len(differences))[1]
        low, high = low - share_otherwise * (1 + low), high + share_otherwise * (1 - high)
    return [low, high]


def f1_interval(num_right: int, num_wrong: int) -> list[float]:
    """The 95 % interval ``[low, high]`` of an F1, out of that of a share (Lam et al., 2023, arXiv:2309.14621).

    Among the images that are of a class or are taken for it, a share s is both: F1 = 2 s / (1 + s).

    Args:
        num_right: images that are of the class and are taken for it; `num_wrong`: that are one of the two.
    """
    return [2 * share / (1 + share) for share in wilson_interval(num_right, num_right + num_wrong)]
