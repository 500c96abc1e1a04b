"""Initial weights of a linear head in closed form: ridge regression on the features, scaled to logits.

The regression of the one-hot labels on the features is solved exactly. The penalty, and the factor between scores and
logits, minimize the leave-one-out cross-entropy, which needs no second fit (leverages, see Hastie, Tibshirani and
Friedman, The Elements of Statistical Learning, 2009, eq. 7.64).
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.special

from transfer_learning.datasets.pipeline import Examples

CHUNK = 512  # examples in memory at a time
MAX_LEFT_OUT = 1024  # examples that choose penalty and factor
PENALTIES = np.logspace(-4, 2, 19)  # in units of the features' mean variance, summed over the examples
FACTORS = np.logspace(-0.5, 2.5, 31)


class RidgeHead(NamedTuple):
    """A linear head."""

    kernel: np.ndarray  # float32 (width, classes)
    bias: np.ndarray  # float32 (classes,)
    loss: float  # mean leave-one-out cross-entropy


def ridge_head(examples: Examples, num_classes: int, class_weights: list[float]) -> RidgeHead:
    """Returns the head for `examples`, whose inputs are features float32 (n, width), with one weight per class.

    Computes in double precision; CHUNK examples and two matrices of (width, width) are in memory.
    """
    weights = np.asarray(class_weights)[examples.labels]
    chunks = [slice(start, start + CHUNK) for start in range(0, len(examples), CHUNK)]

    def scores(labels: np.ndarray) -> np.ndarray:
        return np.eye(num_classes)[labels]

    def features(chunk: slice | np.ndarray) -> np.ndarray:
        return examples.inputs[examples.rows[chunk]].astype(np.float64)

    total = weights.sum()
    mean = sum(weights[chunk] @ features(chunk) for chunk in chunks) / total
    mean_scores = np.bincount(examples.labels, weights, num_classes) / total
    covariance = correlation = np.float64(0.0)  # sums over the examples
    for chunk in chunks:
        centred = features(chunk) - mean
        weighted = centred * weights[chunk, None]
        covariance = covariance + weighted.T @ centred
        correlation = correlation + weighted.T @ (scores(examples.labels[chunk]) - mean_scores)
    variances, directions = scipy.linalg.eigh(covariance, driver="evd")
    rotated = directions.T @ correlation

    num_left_out = min(len(examples), MAX_LEFT_OUT)
    left_out = np.linspace(0, len(examples) - 1, num_left_out).round().astype(int)  # spread over all of them
    labels, projected = examples.labels[left_out], (features(left_out) - mean) @ directions
    target = scores(labels) - mean_scores
    best = None
    for penalty in PENALTIES * max(variances.sum() / len(variances), 1e-12):  # features may all be constant
        inverse = 1 / (np.maximum(variances, 0) + penalty)
        leverage = weights[left_out] * (projected**2 @ inverse + 1 / total)
        residual = target - projected @ (inverse[:, None] * rotated)
        predicted = mean_scores + target - residual / np.maximum(1 - leverage, 1e-6)[:, None]
        for factor in FACTORS:
            log_probabilities = scipy.special.log_softmax(factor * predicted, axis=1)
            losses = -log_probabilities[np.arange(len(labels)), labels]
            loss = float(np.average(losses, weights=weights[left_out]))
            if best is None or loss < best[0]:
                best = loss, factor, inverse
    assert best is not None  # there are factors
    loss, factor, inverse = best
    kernel = factor * directions @ (inverse[:, None] * rotated)
    bias = factor * mean_scores - mean @ kernel
    return RidgeHead(kernel.astype(np.float32), bias.astype(np.float32), loss)
