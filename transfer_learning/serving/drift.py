"""Drift: how far the images that are served are from the validation images.

Three histograms are counted, and nothing else is stored of an image: the confidence, the predicted class, and the
distance of the features from the mean of the validation images. Each is compared with that of the validation images by
the population stability index, sum of (p - q) ln(p / q). Without drift, the index divided by (1/n + 1/m) is distributed
as chi-squared with one degree of freedom less than there are bins (Yurdakul and Naranjo, 2020, Journal of Risk Model
Validation 14(4)), which gives the limit above which a difference is no chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_BINS = 10
MIN_IMAGES = 100  # with fewer, nothing is said
WINDOW = 2000  # images after which all counts are halved, so that the recent ones weigh more
CHANCE = 0.001  # of reporting drift where there is none


class Histogram:
    """Counts of served images in the bins of a reference.

    Args:
        reference: counts of validation images by bin.
    """

    def __init__(self, reference: np.ndarray):
        from scipy.special import gammaincinv

        self._reference, self._counts = reference.astype(np.float64), np.zeros(len(reference))
        # The same as scipy.stats.chi2.ppf, whose import takes a second more.
        self._chi_squared = 2 * gammaincinv(max(1, len(reference) - 1) / 2, 1 - CHANCE)

    def add(self, bins: np.ndarray) -> None:
        """Counts images, whose bins are given."""
        np.add.at(self._counts, bins, 1)
        if self._counts.sum() >= WINDOW:
            self._counts /= 2

    def summary(self) -> dict[str, Any]:
        """Returns ``images``, ``stability_index``, its ``limit``, and whether it is above: ``drift``.

        The last three are None below MIN_IMAGES.
        """
        n, m = self._counts.sum(), self._reference.sum()
        if n < MIN_IMAGES or not m:
            return {"images": round(n), "stability_index": None, "limit": None, "drift": None}
        # Half an image in each bin: the index of an empty one would be infinite.
        p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (self._counts, self._reference))
        index = float(np.sum((p - q) * np.log(p / q)))
        limit = float(self._chi_squared * (1 / n + 1 / m))
        return {"images": round(n), "stability_index": index, "limit": limit, "drift": index > limit}


@dataclass(frozen=True)
class Reference:
    """The validation images."""

    probabilities: np.ndarray  # float32 (m, classes)
    features: np.ndarray | None = None  # float32 (k, width), of all or some of them


class Drift:
    """The histograms of a server."""

    def __init__(self, reference: Reference):
        confidence = reference.probabilities.max(axis=1)
        self._num_classes = reference.probabilities.shape[1]
        classes = np.bincount(reference.probabilities.argmax(axis=1), minlength=self._num_classes)
        self._confidence_edges = _edges(confidence)
        self._histograms = {
            "confidence": Histogram(_counted(confidence, self._confidence_edges)),
            "classes": Histogram(classes),
        }
        self._has_features = reference.features is not None
        if reference.features is not None:
            self._mean, self._deviation = reference.features.mean(axis=0), reference.features.std(axis=0) + 1e-6
            distances = self._distances(reference.features)
            self._distance_edges = _edges(distances)
            self._histograms["features"] = Histogram(_counted(distances, self._distance_edges))

    def add(self, probabilities: np.ndarray, features: np.ndarray | None) -> None:
        """Counts served images: float32 (n, classes), and (n, width) or None."""
        if not len(probabilities):
            return
        self._histograms["confidence"].add(np.searchsorted(self._confidence_edges, probabilities.max(axis=1)))
        self._histograms["classes"].add(probabilities.argmax(axis=1))
        if self._has_features and features is not None:
            self._histograms["features"].add(np.searchsorted(self._distance_edges, self._distances(features)))

    def summary(self) -> dict[str, dict[str, Any]]:
        """Returns `Histogram.summary` for ``confidence``, ``classes`` and, where it is known, ``features``."""
        return {name: histogram.summary() for name, histogram in self._histograms.items()}

    def _distances(self, features: np.ndarray) -> np.ndarray:
        """Root mean square of the standardized features: 1 on average for validation images."""
        return np.sqrt((((features - self._mean) / self._deviation) ** 2).mean(axis=1))


def _edges(values: np.ndarray | Sequence[float]) -> np.ndarray:
    """The inner edges of bins that hold about as many of `values` each."""
    return np.unique(np.quantile(values, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))


def _counted(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
