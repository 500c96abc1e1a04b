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


def mean_weights(candidates: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Averages weights in float64, in the dtypes of the first network; ValueError if they differ in number or shape.
    The moving statistics of BatchNorm are averaged too, as published; with a pretrained backbone they are all equal.
    """
    total: list[np.ndarray] | None = None
    dtypes, count = [], 0
    for weights in candidates:
        if total is None:
            total, dtypes = [np.array(value, np.float64) for value in weights], [value.dtype for value in weights]
        else:
            if [value.shape for value in weights] != [value.shape for value in total]:
                raise ValueError("The weights differ in number or shape.")
            for value, added in zip(total, weights, strict=True):
                value += added
        count += 1
    if total is None:
        raise ValueError("There are no weights to average.")
    return [(value / count).astype(dtype) for value, dtype in zip(total, dtypes, strict=True)]


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
