"""Rejection of images that belong to no class: predictions whose confidence is below a threshold.

The confidence is the maximum softmax probability, the baseline of Hendrycks and Gimpel, 2017, arXiv:1610.02136. Models
are known to be confident about some images of no class, so the report shows how many are rejected.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from transfer_learning.evaluation.intervals import wilson_interval
from transfer_learning.storage.files import renamed

EARLIER_NAMES = {  # of versions before 0.2
    "kept_share": "accepted_fraction",
    "num_right_called_unknown": "num_right_rejected",
    "num_wrong_called_unknown": "num_wrong_rejected",
    "called_unknown": "rejected_fraction",
    "told_apart": "auroc",
}
ACCEPTED_FRACTION = 0.95  # of the validation images, at least


def threshold(confidences: np.ndarray) -> float:
    """Returns the rejection threshold for the confidences of validation images, one of them, 0..1."""
    return float(np.quantile(confidences, 1 - ACCEPTED_FRACTION, method="lower"))


def measure(rejection_threshold: float, table: pd.DataFrame, others: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Counts the rejected predictions among images of the classes and among images of no class.

    Args:
        rejection_threshold: the result of `threshold`.
        table: the result of `predictions.table` for images of the classes, one row or more.
        others: confidences of images of no class, by the name of their kind, one or more each.

    Returns:
        Plain numbers, ready for JSON: ``threshold``; ``accepted_fraction`` of the validation images; the numbers of
        images of the classes ``num_examples``, ``num_right``, ``num_wrong``, ``num_right_rejected`` and
        ``num_wrong_rejected``; and in ``others`` by kind ``num_images``, ``rejected_fraction`` with its 95 % Wilson
        ``interval``, and ``auroc``: the probability that such an image gets a lower confidence than an image of the
        classes; 0.5 is chance.
    """
    from sklearn.metrics import roc_auc_score

    confidence = table["confidence"].to_numpy(np.float64)
    is_correct, is_rejected = (table["label"] == table["predicted"]).to_numpy(), confidence < rejection_threshold
    kinds = {}
    for name, values in others.items():
        values = np.asarray(values, np.float64)
        num_rejected = int(np.sum(values < rejection_threshold))
        is_of_class = np.repeat([True, False], [len(confidence), len(values)])
        kinds[name] = {
            "num_images": len(values),
            "rejected_fraction": num_rejected / len(values),
            "interval": wilson_interval(num_rejected, len(values)),
            "auroc": float(roc_auc_score(is_of_class, np.concatenate([confidence, values]))),
        }
    counts = {"num_right": is_correct, "num_wrong": ~is_correct}
    counts |= {"num_right_rejected": is_correct & is_rejected, "num_wrong_rejected": ~is_correct & is_rejected}
    result = {"threshold": rejection_threshold, "accepted_fraction": ACCEPTED_FRACTION, "num_examples": len(table)}
    return result | {name: int(chosen.sum()) for name, chosen in counts.items()} | {"others": kinds}


def read(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the result of `measure` from an ``evaluation.json`` of this or an earlier version; None without one."""
    values = evaluation.get("rejection", evaluation.get("unknown"))
    if not values:
        return None
    values = renamed(values, EARLIER_NAMES)
    others = renamed(values["others"], {"classes held out": "unseen classes"})
    return values | {"others": {kind: renamed(row, EARLIER_NAMES) for kind, row in others.items()}}
