"""Whether a confidence means what it says: of 100 images judged with confidence 0.9, about 90 should be right.

Temperature scaling (Guo et al., 2017, arXiv:1706.04599): the logits are multiplied by one number, chosen on validation
images, which changes every confidence and no predicted class.
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binned_statistic

from transfer_learning.evaluation import predictions
from transfer_learning.evaluation.intervals import wilson_interval

NUM_BINS = 15  # of equal width, as in Guo et al.
MISTAKES_NEEDED = 5  # among the validation images; fewer cannot tell 99 % from 99.9 %
RANGE = (0.05, 20.0)  # of the temperature
IMAGES_NEEDED = 10_000  # for one number no more
PART = 4096  # images that are computed together


def fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> tuple[float, str]:
    """The temperature by which logits have to be divided for the least log loss.

    Args:
        logits: float32 (n, classes), of validation images.
        labels: int (n,), positions of the true classes.

    Returns:
        The temperature, 1 where there are too few mistakes to tell; and a sentence about it.
    """
    if not np.isfinite(logits).all():
        return 1.0, "Confidences are not corrected: the network gives something that is no number."
    num_mistakes = int(np.sum(logits.argmax(axis=1) != labels))
    if num_mistakes < MISTAKES_NEEDED:
        return 1.0, (
            f"Confidences are as the network gives them: {num_mistakes} mistakes among {len(labels):,} validation images "
            "are too few to correct them by."
        )
    chosen = slice(None, None, -(-len(labels) // IMAGES_NEEDED))
    logits, labels = logits[chosen].astype(np.float64), labels[chosen]
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits * np.exp(-log_temperature), axis=1)[rows, labels].mean()

    found = minimize_scalar(loss, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-6})
    temperature = float(np.exp(found.x))
    return temperature, (
        f"Confidences are corrected by temperature {temperature:.3g}: by the {len(labels):,} validation images the network "
        f"is too {'sure' if temperature > 1 else 'unsure'} of itself, whose log loss falls from {loss(0.0):.3f} to "
        f"{found.fun:.3f}. No predicted class changes."
    )


def measure(table: pd.DataFrame, temperature: float) -> dict[str, Any]:
    """How far confidences are from the shares of right answers.

    Args:
        table: what `predictions.table` returns, one row or more, of probabilities at this temperature.

    Returns:
        Plain numbers, ready for JSON: ``temperature``; ``error``, the expected calibration error: the distance between
        confidence and accuracy, 0 to 1, averaged over `NUM_BINS` bins of the confidence of equal width, each weighted by
        its images; ``bins``, those that are not empty, with ``low``, ``high``, ``num_examples``, the mean ``confidence``,
        the ``accuracy`` and its 95 % Wilson ``interval``; and ``uncorrected``, the ``error`` and ``bins`` of the same
        network at temperature 1.
    """
    right = (table["label"] == table["predicted"]).to_numpy()
    corrected = _binned(table["confidence"].to_numpy(np.float64), right)
    chances, before = predictions.probabilities(table), np.empty(len(table))
    for start in range(0, len(table), PART):
        part = slice(start, start + PART)
        with np.errstate(divide="ignore"):
            logits = temperature * np.log(chances[part].astype(np.float64))
        before[part] = softmax(logits, axis=1).max(axis=1)
    return {"temperature": temperature, **corrected, "uncorrected": _binned(before, right)}


def _binned(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """The expected calibration error and the bins that it is made of."""
    values = [np.ones(len(right)), np.clip(confidence, 0, 1), right.astype(float)]
    (counts, confidences, rights), edges, _ = binned_statistic(values[1], values, "sum", NUM_BINS, range=(0, 1))
    bins = [
        {
            "low": float(edges[place]),
            "high": float(edges[place + 1]),
            "num_examples": int(counts[place]),
            "confidence": float(confidences[place] / counts[place]),
            "accuracy": float(rights[place] / counts[place]),
            "interval": wilson_interval(int(rights[place]), int(counts[place])),
        }
        for place in np.flatnonzero(counts)
    ]
    return {"error": float(np.abs(rights - confidences).sum() / len(right)), "bins": bins}
