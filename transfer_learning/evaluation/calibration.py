"""Calibration: of 100 images predicted with confidence 0.9, about 90 should be correct.

Temperature scaling (Guo et al., 2017, arXiv:1706.04599) divides the logits by one number, fitted on validation images.
It changes every confidence and no predicted class.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from transfer_learning.evaluation import predictions
from transfer_learning.evaluation.intervals import wilson_interval

NUM_BINS = 15  # of equal width, as in Guo et al.
# The logarithm of the temperature, before any image is seen, has Student's t distribution around 0 with this scale and
# these degrees of freedom: few images change it little, and its tails let more of them find a temperature far from 1.
SPREAD, FREEDOM = 0.25, 3
RANGE = (0.05, 20.0)  # of the temperature
MAX_IMAGES = 10_000  # enough to fit one number
PART = 4096  # images per step, for the memory
KINDS = {"out-of-fold": "out-of-fold predictions", "left-out": "leave-one-out predictions"}  # others: images of a split


def fitted_temperature(
    logits: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    kind: str = "validation",
    spread: float = SPREAD,
) -> tuple[float, str]:
    """Fits the most probable temperature, by the log loss of the logits divided by it.

    Before any image is seen a temperature near 1 is probable (SPREAD), so few images, or those of few groups, change it
    little, and many decide alone. Where few images have small logits and are mostly right, one near 1 and one near 0 may
    both be more probable than those between them; the search finds one of the two, always the same.

    Args:
        logits: float32 (n, classes), of images that were not trained on.
        labels: int (n,), positions of the true classes.
        groups: (n,), images with the same value count as one; None: each is alone.
        kind: of these images, for the message.
        spread: scale of the prior; with a larger one few images change the temperature more.

    Returns:
        The temperature, 1 for logits that are not finite, and a message for the log.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if not np.isfinite(logits).all():
        return 1.0, "Confidences not calibrated: the model outputs NaN or infinite values."
    thinned = slice(None, None, math.ceil(len(labels) / MAX_IMAGES))
    logits, labels = logits[thinned].astype(np.float64), labels[thinned]
    num_independent = len(labels) if groups is None else len(np.unique(groups[thinned]))
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return 0.0 - log_softmax(logits * np.exp(-log_temperature), axis=1)[rows, labels].mean()  # not -0.0

    def surprise(log_temperature: float) -> float:
        tails = math.log1p((log_temperature / spread) ** 2 / FREEDOM)
        return num_independent * loss(log_temperature) + (FREEDOM + 1) / 2 * tails

    found = minimize_scalar(surprise, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-6})
    temperature = float(np.exp(found.x))
    was = "well calibrated" if f"{temperature:.3g}" == "1" else f"{'over' if temperature > 1 else 'under'}confident"
    return temperature, (
        f"Calibration: temperature {temperature:.3g}; the model was {was} on {len(labels):,} {fitted_on(kind)} (log loss "
        f"{loss(0.0):.3f}, now {loss(found.x):.3f})."
    )


def fitted_on(kind: str) -> str:
    """``validation images``, ``leave-one-out predictions``: what a temperature of this kind was fitted on."""
    return KINDS.get(kind, f"{kind} images")


def measure(table: pd.DataFrame, temperature: float) -> dict[str, Any]:
    """Computes the expected calibration error (ECE) with and without the temperature.

    Args:
        table: the result of `predictions.table`, one row or more, with probabilities at this temperature.

    Returns:
        Plain numbers, ready for JSON: ``temperature``; ``error``, the ECE, 0..1: the distance between mean confidence
        and accuracy, averaged over `NUM_BINS` bins of equal width, weighted by their number of images; ``by_chance``, what
        it would be on average if each image were correct with the probability of its confidence; ``bins``, those
        that are not empty, with ``low``, ``high``, ``num_examples``, the mean ``confidence``, the ``accuracy`` and its
        95 % Wilson ``interval``; and ``uncorrected``, the same at temperature 1.
    """
    from scipy.special import softmax

    correct = (table["label"] == table["predicted"]).to_numpy()
    calibrated = _binned(table["confidence"].to_numpy(np.float64), correct)
    probabilities, before = predictions.probabilities(table), np.empty(len(table))
    for start in range(0, len(table), PART):
        part = slice(start, start + PART)
        with np.errstate(divide="ignore"):
            logits = temperature * np.log(probabilities[part].astype(np.float64))
        before[part] = softmax(logits, axis=1).max(axis=1)
    return {"temperature": temperature, **calibrated, "uncorrected": _binned(before, correct)}


def _binned(confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    from scipy.stats import binned_statistic

    confidence = np.clip(confidence, 0, 1)
    values = [np.ones(len(correct)), confidence, correct.astype(float), confidence * (1 - confidence)]
    (counts, confidences, num_correct, variances), edges, _ = binned_statistic(
        confidence, values, "sum", NUM_BINS, range=(0, 1)
    )
    bins = [
        {
            "low": float(edges[place]),
            "high": float(edges[place + 1]),
            "num_examples": int(counts[place]),
            "confidence": float(confidences[place] / counts[place]),
            "accuracy": float(num_correct[place] / counts[place]),
            "interval": wilson_interval(int(num_correct[place]), int(counts[place])),
        }
        for place in np.flatnonzero(counts)
    ]
    # The number of correct images of a bin is nearly normal, and so is its distance from the sum of their confidences.
    by_chance = np.sqrt(2 / np.pi * variances).sum() / len(correct)
    error = np.abs(num_correct - confidences).sum() / len(correct)
    return {"error": float(error), "by_chance": float(by_chance), "bins": bins}
