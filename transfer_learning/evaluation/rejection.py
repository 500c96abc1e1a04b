"""A rule for what is none of the classes: a prediction whose confidence is too low is called unknown.

The confidence is that of the most probable class, the baseline of Hendrycks and Gimpel, 2017, arXiv:1610.02136. It is
known to be sure of some things that it never saw, so the rule is shown with what it costs and with what it catches.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from transfer_learning.evaluation.intervals import wilson_interval
from transfer_learning.storage.files import renamed

EARLIER_NAMES = {
    "kept_share": "accepted_fraction",
    "num_right_called_unknown": "num_right_rejected",
    "num_wrong_called_unknown": "num_wrong_rejected",
    "called_unknown": "rejected_fraction",
    "told_apart": "auroc",
}
ACCEPTED_FRACTION = 0.95  # of the validation images, at the least, are not called unknown


def threshold(confidences: np.ndarray) -> float:
    """The confidence below which a prediction is called unknown, out of those of the validation images, 0..1."""
    return float(np.quantile(confidences, 1 - ACCEPTED_FRACTION, method="lower"))


def measure(rejection_threshold: float, judged: pd.DataFrame, others: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the rule costs on images of the classes, and what it catches of other images.

    Args:
        rejection_threshold: what `threshold` returned.
        judged: what `predictions.table` returns, of images of the classes, one row or more.
        others: confidences of images that are of no class, by the name of their kind, one or more each.

    Returns:
        Plain numbers, ready for JSON: ``threshold``; ``accepted_fraction``, what it was chosen for; of the judged images
        ``num_examples``, ``num_right`` and ``num_wrong``, and how many of these are called unknown,
        ``num_right_rejected`` and ``num_wrong_rejected``; and in ``others`` for each kind ``num_images``, the
        share ``rejected_fraction`` with its 95 % Wilson ``interval``, and ``auroc``, the chance that one of them is given
        less confidence than a judged image (area under the ROC curve; 0.5 is none).
    """
    confidence = judged["confidence"].to_numpy(np.float64)
    is_right, is_unknown = (judged["label"] == judged["predicted"]).to_numpy(), confidence < rejection_threshold
    kinds = {}
    for name, values in others.items():
        values = np.asarray(values, np.float64)
        num_caught = int(np.sum(values < rejection_threshold))
        is_judged = np.repeat([True, False], [len(confidence), len(values)])
        kinds[name] = {
            "num_images": len(values),
            "rejected_fraction": num_caught / len(values),
            "interval": wilson_interval(num_caught, len(values)),
            "auroc": float(roc_auc_score(is_judged, np.concatenate([confidence, values]))),
        }
    return {
        "threshold": rejection_threshold,
        "accepted_fraction": ACCEPTED_FRACTION,
        "num_examples": len(judged),
        "num_right": int(is_right.sum()),
        "num_wrong": int((~is_right).sum()),
        "num_right_rejected": int((is_right & is_unknown).sum()),
        "num_wrong_rejected": int((~is_right & is_unknown).sum()),
        "others": kinds,
    }


def read(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `measure` returned, out of an ``evaluation.json`` of this or an earlier version; None where there is none."""
    values = evaluation.get("rejection", evaluation.get("unknown"))
    if not values:
        return None
    values = renamed(values, EARLIER_NAMES)
    return values | {"others": {kind: renamed(row, EARLIER_NAMES) for kind, row in values["others"].items()}}
