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

KEPT_SHARE = 0.95  # of the validation images, at the least, are not called unknown


def threshold(confidences: np.ndarray) -> float:
    """The confidence below which a prediction is called unknown, out of those of the validation images, 0..1."""
    return float(np.quantile(confidences, 1 - KEPT_SHARE, method="lower"))


def measure(unknown_below: float, judged: pd.DataFrame, others: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the rule costs on images of the classes, and what it catches of other images.

    Args:
        unknown_below: what `threshold` returned.
        judged: what `predictions.table` returns, of images of the classes, one row or more.
        others: confidences of images that are of no class, by the name of their kind, one or more each.

    Returns:
        Plain numbers, ready for JSON: ``threshold``; ``kept_share``, what it was chosen for; of the judged images
        ``num_examples``, ``num_right`` and ``num_wrong``, and how many of these are called unknown,
        ``num_right_called_unknown`` and ``num_wrong_called_unknown``; and in ``others`` for each kind ``num_images``, the
        share ``called_unknown`` with its 95 % Wilson ``interval``, and ``told_apart``, the chance that one of them is given
        less confidence than a judged image (area under the ROC curve; 0.5 is none).
    """
    confidence = judged["confidence"].to_numpy(np.float64)
    is_right, is_unknown = (judged["label"] == judged["predicted"]).to_numpy(), confidence < unknown_below
    kinds = {}
    for name, values in others.items():
        values = np.asarray(values, np.float64)
        num_caught = int(np.sum(values < unknown_below))
        is_judged = np.repeat([True, False], [len(confidence), len(values)])
        kinds[name] = {
            "num_images": len(values),
            "called_unknown": num_caught / len(values),
            "interval": wilson_interval(num_caught, len(values)),
            "told_apart": float(roc_auc_score(is_judged, np.concatenate([confidence, values]))),
        }
    return {
        "threshold": unknown_below,
        "kept_share": KEPT_SHARE,
        "num_examples": len(judged),
        "num_right": int(is_right.sum()),
        "num_wrong": int((~is_right).sum()),
        "num_right_called_unknown": int((is_right & is_unknown).sum()),
        "num_wrong_called_unknown": int((~is_right & is_unknown).sum()),
        "others": kinds,
    }
