"""Initial weights of a linear head in closed form, and the leave-one-out loss that chooses between heads.

"ridge": the regression of the one-hot labels on the features is solved exactly. The penalty, and the factor between
scores and logits, minimize the leave-one-out cross-entropy, which needs no second fit (leverages, see Hastie,
Tibshirani and Friedman, The Elements of Statistical Learning, 2009, eq. 7.64). Examples of one group are left out
together; the only example of a class, or group with examples of it, does not count.

"lda": linear discriminant analysis with a shrunken covariance. A matrix of (classes, classes) turns the scores of the
same regression into its logits (Hastie, Buja and Tibshirani, "Penalized Discriminant Analysis", 1995). Penalty and factor
are chosen in the same way.
"""

from typing import NamedTuple

import numpy as np

from transfer_learning.datasets.pipeline import Examples

CHUNK = 512  # examples in memory at a time
MAX_LEFT_OUT = 1024  # examples that choose penalty and factor
PENALTIES = np.logspace(-4, 2, 19)  # in units of the features' mean variance, summed over the examples
FACTORS = np.logspace(-0.5, 2.5, 31)


class Regression(NamedTuple):
    """The ridge regression of the labels on the features in the eigenbasis of the covariance, for any penalty."""

    mean: np.ndarray  # (width,), weighted
    mean_scores: np.ndarray  # (classes,), weighted frequencies
    total: float  # sum of the weights
    variances: np.ndarray  # (rank,), summed over the examples
    directions: np.ndarray  # (width, rank)
    rotated: np.ndarray  # (rank, classes), correlation of features and labels


class LinearHead(NamedTuple):
    """A linear head: ``logits = (features - mean) * scale @ kernel + bias``."""

    kernel: np.ndarray  # float32 (width, classes)
    bias: np.ndarray  # float32 (classes,)
    loss: float  # mean leave-one-out cross-entropy
    mean: np.ndarray | float = 0.0  # float32 (width,), or 0 where features are not standardized
    scale: np.ndarray | float = 1.0  # float32 (width,), or 1
    left_out: tuple[np.ndarray, np.ndarray] | None = None  # positions (k,), log-probabilities (k, classes) without them
    fit: Regression | None = None  # which heads of all kinds on these examples share


def closed_form_head(
    examples: Examples,
    num_classes: int,
    class_weights: list[float],
    kind: str = "ridge",
    blocks: tuple[int, ...] = (),
    groups: np.ndarray | None = None,
    fit: Regression | None = None,
) -> LinearHead:
    """Returns the head for `examples`, whose inputs are features float32 (n, width), with one weight per class.

    Computes in double precision; CHUNK examples and two matrices of (width, width) are in memory, or all examples if
    they are fewer than features.

    Args:
        kind: "ridge" or "lda".
        blocks: widths of the parts of the features that are standardized, see `standardization`; (): none is.
        groups: (n,), examples with the same value are left out together; None: each alone.
        fit: that of a head of another kind for the same arguments; None: it is solved.
    """
    import scipy.special

    weights = np.asarray(class_weights, np.float64)[examples.labels]
    center, scale = standardization(examples, blocks) if blocks else (np.zeros(1), np.ones(1))

    def features(chunk: slice | np.ndarray) -> np.ndarray:
        found = examples.inputs[examples.rows[chunk]].astype(np.float64)
        return (found - center) * scale if blocks else found

    fit = fit or _regression(features, examples.labels, weights, num_classes, is_wide_solved_by_examples=bool(blocks))
    most = MAX_LEFT_OUT if kind == "ridge" else max(64, min(MAX_LEFT_OUT, 40_000_000 // num_classes**2))
    chosen = _left_out(len(examples), groups, most)
    without = _LeftOut(
        labels := examples.labels[chosen],
        weights[chosen],
        (features(chosen) - fit.mean) @ fit.directions,
        _parts(groups[chosen]) if groups is not None else [],
    )
    prior = np.zeros(num_classes) if kind == "ridge" else np.log(_counts(fit) / _counts(fit).sum())
    counted = has_others(examples.labels, groups)[chosen]
    penalties, factors = PENALTIES, FACTORS
    if not counted.any():  # one example of each class cannot choose
        counted[:], penalties, factors = True, PENALTIES[:1], FACTORS[len(FACTORS) // 2 :][:1]
    best = None
    for penalty in penalties * max(fit.variances.sum() / len(fit.mean), 1e-12):  # features may all be constant
        inverse = 1 / (np.maximum(fit.variances, 0) + penalty)
        raw = (_scores_without if kind == "ridge" else _discriminants_without)(without, fit, inverse)
        unit = 1.0 if kind == "ridge" else max(float(raw.std()), 1e-12)
        for factor in factors / unit:
            log_probabilities = scipy.special.log_softmax(factor * raw + prior, axis=1)
            losses = -log_probabilities[np.arange(len(labels)), labels]
            loss = float(np.average(losses[counted], weights=weights[chosen][counted]))
            if best is None or loss < best[0]:
                best = loss, factor, inverse, log_probabilities
    assert best is not None  # there are factors
    loss, factor, inverse, log_probabilities = best
    kernel = factor * fit.directions @ (inverse[:, None] * fit.rotated)
    offset = fit.mean_scores
    if kind == "lda":
        between = fit.rotated.T @ (inverse[:, None] * fit.rotated)
        matrix, offset = _discriminants(_counts(fit), between)
        kernel = kernel @ matrix
    bias = factor * offset + prior - fit.mean @ kernel
    head = kernel.astype(np.float32), bias.astype(np.float32), loss
    left_out = chosen[counted], log_probabilities[counted]
    if not blocks:
        return LinearHead(*head, left_out=left_out, fit=fit)
    return LinearHead(*head, center.astype(np.float32), scale.astype(np.float32), left_out, fit)


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


def _regression(features, labels, weights, num_classes, is_wide_solved_by_examples: bool) -> Regression:
    import scipy.linalg

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
        return Regression(mean, mean_scores, total, variances, directions, directions.T @ correlation)
    covariance = correlation = np.float64(0.0)  # sums over the examples
    for chunk in chunks:
        centred = features(chunk) - mean
        weighted = centred * weights[chunk, None]
        covariance = covariance + weighted.T @ centred
        correlation = correlation + weighted.T @ targets(chunk)
    variances, directions = scipy.linalg.eigh(covariance, driver="evd")
    return Regression(mean, mean_scores, total, variances, directions, directions.T @ correlation)


class _LeftOut(NamedTuple):
    """Examples that are left out, each with its group."""

    labels: np.ndarray  # (k,)
    weights: np.ndarray  # (k,)
    projected: np.ndarray  # (k, rank), on the directions
    parts: list[np.ndarray]  # positions of each group with several examples


def _scores_without(examples: _LeftOut, fit: Regression, inverse: np.ndarray) -> np.ndarray:
    """Scores (k, classes) that the regression without the group of each example gives it."""
    projected, weights = examples.projected, examples.weights
    target = np.eye(len(fit.mean_scores))[examples.labels] - fit.mean_scores
    residual = target - projected @ (inverse[:, None] * fit.rotated)
    leverage = weights * (projected**2 @ inverse + 1 / fit.total)
    error = residual / np.maximum(1 - leverage, 1e-12)[:, None]
    for part in examples.parts:
        hat = (projected[part] * inverse) @ projected[part].T + 1 / fit.total
        error[part] = np.linalg.solve(np.eye(len(part)) * (1 + 1e-12) - hat * weights[part], residual[part])
    return fit.mean_scores + target - error


def _counts(fit: Regression) -> np.ndarray:
    """Weighted examples of each class, float64 (classes,), above 0."""
    return np.maximum(fit.total * fit.mean_scores, 1e-6)


def _discriminants(counts: np.ndarray, between: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the matrix (classes, classes) and the offset (classes,) from class sums to linear discriminants.

    Class means pass through the inverse of the covariance within classes, by Woodbury's identity from that of all.

    Args:
        counts: (..., classes), examples of each class.
        between: (..., classes, classes), products of the class sums through the inverse of the whole covariance.
    """
    matrix = np.linalg.inv(np.eye(counts.shape[-1]) * counts[..., None, :] - between)
    offset = -0.5 * np.einsum("...kj,...jk->...k", between, matrix) / counts
    # What is the same for all classes changes no probability.
    return matrix - matrix.mean(axis=-1, keepdims=True), offset - offset.mean(axis=-1, keepdims=True)


def _discriminants_without(examples: _LeftOut, fit: Regression, inverse: np.ndarray) -> np.ndarray:
    """Discriminants (k, classes) of each example by an analysis of all others but its group; exact."""
    counts, between = _counts(fit), fit.rotated.T @ (inverse[:, None] * fit.rotated)
    one_hot = np.eye(len(counts))[examples.labels]
    scaled = examples.projected * np.sqrt(inverse)
    sums = scaled @ (np.sqrt(inverse)[:, None] * fit.rotated)  # products of examples and class sums
    results = np.empty_like(one_hot)
    alone = np.setdiff1d(np.arange(len(one_hot)), np.concatenate([np.zeros(0, int), *examples.parts]))
    chunk = max(1, 4_000_000 // len(counts) ** 2)
    singles = [alone[start : start + chunk, None] for start in range(0, len(alone), chunk)]
    for part in [*singles, *(group[None] for group in examples.parts)]:  # (groups, members) of examples
        own, product, of_class = scaled[part], sums[part], one_hot[part] * examples.weights[part][..., None]
        gram = own @ own.swapaxes(1, 2)
        rest = np.eye(part.shape[1]) * (1 / examples.weights[part])[:, None] - gram
        downdate = np.linalg.inv(rest + np.eye(part.shape[1]) * 1e-12)
        # Products through the inverse of the covariance without these examples, then without them in the class sums.
        between_all = between + product.swapaxes(1, 2) @ downdate @ product
        with_sums = product + gram @ downdate @ product
        gram = gram + gram @ downdate @ gram
        crossed = of_class.swapaxes(1, 2) @ with_sums
        between_rest = between_all - crossed - crossed.swapaxes(1, 2) + of_class.swapaxes(1, 2) @ gram @ of_class
        matrix, offset = _discriminants(np.maximum(counts - of_class.sum(axis=1), 1e-6), between_rest)
        results[part] = (with_sums - gram @ of_class) @ matrix + offset[:, None]
    return results


def _left_out(num_examples: int, groups: np.ndarray | None, most: int) -> np.ndarray:
    """Positions, int64 (k,), of the examples that choose: some `most`, or whole groups, spread evenly over all."""
    if groups is None:
        return np.linspace(0, num_examples - 1, min(num_examples, most)).round().astype(int)
    names, first = np.unique(groups, return_index=True)
    step = max(1, round(num_examples / most))
    return np.flatnonzero(np.isin(groups, names[np.argsort(first)][::step]))


def has_others(labels: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Whether the class of each example, bool (n,), has others that are not left out with it."""
    pairs = np.unique(np.stack([labels, np.arange(len(labels)) if groups is None else groups]), axis=1)
    return np.bincount(pairs[0])[labels] > 1


def _parts(groups: np.ndarray) -> list[np.ndarray]:
    """The positions of each group with several examples."""
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(groups[order][1:] != groups[order][:-1]) + 1)
    return [part for part in parts if len(part) > 1]
