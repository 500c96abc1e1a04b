"""Initial weights of a linear head in closed form, and the leave-one-out loss that chooses between heads.

"ridge": the regression of the one-hot labels on the features is solved exactly. The penalty, and the factor between
scores and logits, minimize the leave-one-out cross-entropy, which needs no second fit (leverages, see Hastie,
Tibshirani and Friedman, The Elements of Statistical Learning, 2009, eq. 7.64). Examples of one group are left out
together.

"lda": linear discriminant analysis with a shrunken covariance. A matrix of (classes, classes) turns the scores of the
same regression into its logits (Hastie, Buja and Tibshirani, "Penalized Discriminant Analysis", 1995), so penalty and
factor are chosen in the same way, up to the small influence of one example on that matrix.
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


class LinearHead(NamedTuple):
    """A linear head: ``logits = (features - mean) * scale @ kernel + bias``."""

    kernel: np.ndarray  # float32 (width, classes)
    bias: np.ndarray  # float32 (classes,)
    loss: float  # mean leave-one-out cross-entropy
    mean: np.ndarray | float = 0.0  # float32 (width,), or 0 where features are not standardized
    scale: np.ndarray | float = 1.0  # float32 (width,), or 1
    left_out: tuple[np.ndarray, np.ndarray] | None = (
        None  # positions (k,) and log-probabilities (k, classes) without them
    )


class _Regression(NamedTuple):
    """The ridge regression of the labels on the features in the eigenbasis of the covariance, for any penalty."""

    mean: np.ndarray  # (width,), weighted
    mean_scores: np.ndarray  # (classes,), weighted frequencies
    total: float  # sum of the weights
    variances: np.ndarray  # (rank,), summed over the examples
    directions: np.ndarray  # (width, rank)
    rotated: np.ndarray  # (rank, classes), correlation of features and labels


def closed_form_head(
    examples: Examples,
    num_classes: int,
    class_weights: list[float],
    kind: str = "ridge",
    blocks: tuple[int, ...] = (),
    groups: np.ndarray | None = None,
) -> LinearHead:
    """Returns the head for `examples`, whose inputs are features float32 (n, width), with one weight per class.

    Computes in double precision; CHUNK examples and two matrices of (width, width) are in memory, or all examples if
    they are fewer than features.

    Args:
        kind: "ridge" or "lda".
        blocks: widths of the parts of the features that are standardized, see `standardization`; (): none is.
        groups: (n,), examples with the same value are left out together; None: each alone.
    """
    weights = np.asarray(class_weights)[examples.labels]
    center, scale = standardization(examples, blocks) if blocks else (np.zeros(1), np.ones(1))

    def features(chunk: slice | np.ndarray) -> np.ndarray:
        found = examples.inputs[examples.rows[chunk]].astype(np.float64)
        return (found - center) * scale if blocks else found

    fit = _regression(features, examples.labels, weights, num_classes, is_wide_solved_by_examples=bool(blocks))
    chosen = _left_out(len(examples), groups)
    labels, projected = examples.labels[chosen], (features(chosen) - fit.mean) @ fit.directions
    target = np.eye(num_classes)[labels] - fit.mean_scores
    parts = _parts(groups[chosen]) if groups is not None else []
    best = None
    width = len(fit.mean)
    for penalty in PENALTIES * max(fit.variances.sum() / width, 1e-12):  # features may all be constant
        inverse = 1 / (np.maximum(fit.variances, 0) + penalty)
        residual = target - projected @ (inverse[:, None] * fit.rotated)
        leverage = weights[chosen] * (projected**2 @ inverse + 1 / fit.total)
        without = residual / np.maximum(1 - leverage, 1e-6)[:, None]
        for part in parts:
            hat = (projected[part] * inverse) @ projected[part].T + 1 / fit.total
            rest = np.eye(len(part)) * (1 + 1e-6) - hat * weights[chosen][part]
            without[part] = np.linalg.solve(rest, residual[part])
        scores = target - without  # centered
        to_logits, offset, prior = _to_logits(kind, fit, inverse, scores)
        raw = scores @ to_logits + offset
        for factor in FACTORS:
            log_probabilities = scipy.special.log_softmax(factor * raw + prior, axis=1)
            losses = -log_probabilities[np.arange(len(labels)), labels]
            loss = float(np.average(losses, weights=weights[chosen]))
            if best is None or loss < best[0]:
                best = loss, factor, inverse, to_logits, offset, prior, log_probabilities
    assert best is not None  # there are factors
    loss, factor, inverse, to_logits, offset, prior, log_probabilities = best
    kernel = factor * fit.directions @ (inverse[:, None] * fit.rotated)
    if kind == "lda":
        kernel = kernel @ to_logits
    bias = factor * offset + prior - fit.mean @ kernel
    head = kernel.astype(np.float32), bias.astype(np.float32), loss
    left_out = chosen, log_probabilities
    if not blocks:
        return LinearHead(*head, left_out=left_out)
    return LinearHead(*head, center.astype(np.float32), scale.astype(np.float32), left_out)


def standardization(examples: Examples, blocks: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the scale, float64 (width,), that give all features comparable variances.

    A variance has the mean variance of its block (the mean or maximum of one feature map) added: a channel that is
    silent on nearly all examples would otherwise explode on the next one that wakes it.
    """
    total = squares = np.zeros(examples.inputs.shape[1])
    for start in range(0, len(examples), CHUNK):
        features = examples.inputs[examples.rows[start : start + CHUNK]].astype(np.float64)
        total, squares = total + features.sum(axis=0), squares + (features**2).sum(axis=0)
    mean = total / len(examples)
    variances = np.maximum(squares / len(examples) - mean**2, 0.0)
    of_blocks = [part.mean() for part in np.split(variances, np.cumsum(blocks)[:-1])]
    shared = np.repeat(of_blocks, blocks)
    return mean, 1 / np.sqrt(variances + np.maximum(shared, 1e-12))


def _regression(features, labels, weights, num_classes, is_wide_solved_by_examples: bool) -> _Regression:
    chunks = [slice(start, start + CHUNK) for start in range(0, len(labels), CHUNK)]
    total = weights.sum()
    mean = sum(weights[chunk] @ features(chunk) for chunk in chunks) / total
    mean_scores = np.bincount(labels, weights, num_classes) / total

    def targets(chunk: slice) -> np.ndarray:
        return np.eye(num_classes)[labels[chunk]] - mean_scores

    if is_wide_solved_by_examples and len(labels) < len(mean):
        everything = slice(0, len(labels))
        weighted = np.sqrt(weights)[:, None] * (features(everything) - mean)
        variances, vectors = scipy.linalg.eigh(weighted @ weighted.T, driver="evd")
        real = variances > 1e-10 * max(variances[-1], 1e-300)
        variances, directions = variances[real], weighted.T @ vectors[:, real] / np.sqrt(variances[real])
        correlation = weighted.T @ (np.sqrt(weights)[:, None] * targets(everything))
        return _Regression(mean, mean_scores, total, variances, directions, directions.T @ correlation)
    covariance = correlation = np.float64(0.0)  # sums over the examples
    for chunk in chunks:
        centred = features(chunk) - mean
        weighted = centred * weights[chunk, None]
        covariance = covariance + weighted.T @ centred
        correlation = correlation + weighted.T @ targets(chunk)
    variances, directions = scipy.linalg.eigh(covariance, driver="evd")
    return _Regression(mean, mean_scores, total, variances, directions, directions.T @ correlation)


def _to_logits(
    kind: str, fit: _Regression, inverse: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a matrix (classes, classes), an offset and a prior (classes,): logits are
    ``factor * (scores @ matrix + offset) + prior``, for centered scores.
    """
    num_classes = len(fit.mean_scores)
    if kind == "ridge":
        return np.eye(num_classes), fit.mean_scores, np.zeros(num_classes)
    counts = np.maximum(fit.total * fit.mean_scores, 1e-6)
    between = fit.rotated.T @ (inverse[:, None] * fit.rotated)
    # Class means through the inverse of the covariance within classes, by Woodbury's identity.
    matrix = np.linalg.inv(np.diag(counts) - between)
    offset = -0.5 * np.diag(between @ matrix) / counts
    matrix = matrix - matrix.mean(axis=1, keepdims=True)  # the same for all classes: no probability changes
    unit = max(float((scores @ matrix).std()), 1e-12)
    return matrix / unit, (offset - offset.mean()) / unit, np.log(counts / counts.sum())


def _left_out(num_examples: int, groups: np.ndarray | None) -> np.ndarray:
    """Positions, int64 (k,), of the examples that choose: all, or whole groups spread evenly over all of them."""
    if groups is None:
        return np.linspace(0, num_examples - 1, min(num_examples, MAX_LEFT_OUT)).round().astype(int)
    names, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    step = max(1, round(num_examples / MAX_LEFT_OUT))
    return np.flatnonzero(np.isin(groups, names[np.argsort(first)][::step]))


def _parts(groups: np.ndarray) -> list[np.ndarray]:
    """The positions of each group with several examples."""
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(groups[order][1:] != groups[order][:-1]) + 1)
    return [part for part in parts if len(part) > 1]
