"""A soup: one network whose weights are the mean of those of several (Wortsman et al., 2022, arXiv:2203.05482)."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

# The settings that have to be alike for weights at the same place to mean the same.
ALIKE = ("backbone", "weights", "image_size", "input_size", "resize", "head")


class Step(NamedTuple):
    """What adding one member did."""

    accuracy: float  # of the soup with it, on the validation images
    is_taken: bool


def mean_weights(members: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The mean of all weights, summed in float64 and returned in the dtypes of the first member.

    The moving statistics of BatchNorm are averaged like all others, as published. Where the backbone was pretrained they
    are alike in all members, and stay what they are.

    Raises:
        ValueError: no members, or shapes that differ.
    """
    total, dtypes, count = None, [], 0
    for weights in members:
        if total is None:
            total, dtypes = [np.array(value, np.float64) for value in weights], [value.dtype for value in weights]
        else:
            if [value.shape for value in weights] != [value.shape for value in total]:
                raise ValueError("The members' weights differ in number or shape.")
            for value, added in zip(total, weights, strict=True):
                value += added
        count += 1
    if total is None:
        raise ValueError("There are no weights to average.")
    return [(value / count).astype(dtype) for value, dtype in zip(total, dtypes, strict=True)]


def greedy_soup(
    members: Iterable[list[np.ndarray]], accuracy_of: Callable[[list[np.ndarray]], float]
) -> tuple[list[np.ndarray], list[Step]]:
    """The greedy soup: each member is stirred in unless the soup gets worse by it.

    Args:
        members: weights, the best network first; each is asked for once, and only when its turn comes.
        accuracy_of: of a network with such weights, on images that none was trained on and none is judged by.

    Returns:
        The weights of the soup, and a step for each member.
    """
    taken: list[list[np.ndarray]] = []
    soup: list[np.ndarray] = []
    best, steps = -np.inf, []
    for weights in members:
        tried = mean_weights([*taken, weights])
        accuracy = accuracy_of(tried)
        is_taken = accuracy >= best
        if is_taken:
            best, soup = accuracy, tried
            taken.append(weights)
        steps.append(Step(accuracy, is_taken))
    return soup, steps
