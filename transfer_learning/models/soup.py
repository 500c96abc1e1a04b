"""Model soups: the mean of the weights of several networks (Wortsman et al., 2022, arXiv:2203.05482)."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

# The fields of a config that must be equal for weights to be averaged.
ALIKE = ("backbone", "weights", "image_size", "input_size", "resize", "head", "head_features")


class Step(NamedTuple):
    """The result of adding one network."""

    accuracy: float  # of the soup with it, on the validation images, 0..1
    is_taken: bool


def mean_weights(candidates: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Averages the weights of one or more networks of the same architecture in float64, in the dtypes of the first.
    The moving statistics of BatchNorm are averaged too, as published; with a pretrained backbone they are all equal.
    """
    means = []
    for first, *others in zip(*candidates, strict=True):
        total = np.array(first, np.float64)
        for value in others:
            total += value
        means.append((total / len(candidates)).astype(first.dtype))
    return means


def greedy_soup(
    candidates: Iterable[list[np.ndarray]], accuracy_of: Callable[[list[np.ndarray]], float]
) -> tuple[list[np.ndarray], list[Step]]:
    """Makes a greedy soup: each network is added unless that lowers the accuracy.

    Args:
        candidates: weights, the best network first; iterated once, lazily.
        accuracy_of: returns the accuracy of given weights on images that are used neither for training nor testing.

    Returns:
        The weights of the soup, and one step per network.
    """
    taken: list[list[np.ndarray]] = []
    soup: list[np.ndarray] = []
    best, steps = -np.inf, []
    for weights in candidates:
        tried = mean_weights([*taken, weights])
        accuracy = accuracy_of(tried)
        is_taken = accuracy >= best
        if is_taken:
            best, soup = accuracy, tried
            taken.append(weights)
        steps.append(Step(accuracy, is_taken))
    return soup, steps
