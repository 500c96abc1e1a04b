"""Metrics of predictions with intervals, by scikit-learn, ready for JSON."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from transfer_learning.evaluation.intervals import f1_interval, resampled_interval, wilson_interval
from transfer_learning.evaluation.predictions import class_names as names_of
from transfer_learning.evaluation.predictions import probabilities

PART = 4096  # rows of probabilities per call of scikit-learn


def evaluate(predictions: pd.DataFrame) -> dict[str, Any]:
    """Computes all metrics of a table of predictions, the result of `predictions.table`, of one row or more.

    Returns:
        Plain numbers, texts, lists and dicts. ``accuracy``, ``top_5_accuracy`` (only with more than five classes) and
        ``macro_f1`` are 0..1; ``accuracy_interval`` and ``top_5_interval`` are 95 % Wilson intervals ``[low, high]``;
        ``log_loss`` is in nats. ``per_class`` has precision, recall, f1 (0 for a division by zero, None for a class
        without examples and predictions) and support, the number of examples, of every class. ``macro_f1`` is the mean
        over the classes that have an f1. ``confusion_matrix`` holds counts: rows are true classes, columns predicted
        classes, in the order of ``class_names``, which is that of the table.

        Precision and recall have Wilson intervals too. ``macro_f1_interval``, the ``f1_interval`` of each class and
        ``accuracy_resampled_interval`` are bootstrap intervals (`resampled_intervals`). If all resamples are equal, as
        without errors, they are replaced by Wilson's interval or `intervals.f1_interval`.
    """
    from sklearn.metrics import (
        confusion_matrix,
        f1_score,
        log_loss,
        precision_recall_fscore_support,
        top_k_accuracy_score,
    )

    class_names = names_of(predictions)
    true, predicted = _positions(predictions)
    every, present = range(len(class_names)), _present(true, predicted)
    num_right = int(np.sum(true == predicted))
    scores = probabilities(predictions)
    resampled = resampled_intervals(true, predicted, len(class_names))
    matrix = confusion_matrix(true, predicted, labels=every)

    def total_loss(true: np.ndarray, scores: np.ndarray) -> float:
        return log_loss(true, scores / scores.sum(axis=1, keepdims=True), normalize=False, labels=every)

    def num_among_5(true: np.ndarray, scores: np.ndarray) -> float:
        return top_k_accuracy_score(true, scores, k=5, normalize=False, labels=every)

    result = {
        "accuracy": num_right / len(true),
        "accuracy_interval": wilson_interval(num_right, len(true)),
        "accuracy_resampled_interval": _or_else(resampled["accuracy"], wilson_interval(num_right, len(true))),
        "macro_f1": float(f1_score(true, predicted, labels=present, average="macro", zero_division=0)),
        "macro_f1_interval": _or_else(resampled["macro_f1"], f1_interval(num_right, len(true) - num_right)),
        "num_examples": len(true),
        "log_loss": _sum_over_parts(total_loss, true, scores) / len(true),
    }
    if len(class_names) > 5:
        among_5 = round(_sum_over_parts(num_among_5, true, scores))
        result |= {"top_5_accuracy": among_5 / len(true), "top_5_interval": wilson_interval(among_5, len(true))}
    columns = precision_recall_fscore_support(true, predicted, labels=every, zero_division=0)
    per_class = {}
    rows = zip(class_names, *columns, _class_intervals(matrix, resampled["f1"]), strict=True)
    for position, (name, *values, support, intervals) in enumerate(rows):
        known = [float(value) if position in present else None for value in values]
        row = dict(zip(("precision", "recall", "f1"), known, strict=True))
        per_class[name] = row | {"support": int(support), **intervals}
    return result | {"per_class": per_class, "class_names": class_names, "confusion_matrix": matrix.tolist()}


def resampled_intervals(true: np.ndarray, predicted: np.ndarray, num_classes: int) -> dict[str, list]:
    """Returns 95 % bootstrap intervals over the images, see `intervals.resampled_interval`.

    Args:
        true: positions of the true classes, int (n,).
        predicted: positions of the predicted classes, int (n,).

    Returns:
        ``accuracy`` and ``macro_f1``, each ``[low, high]``; and ``f1``, one interval per class. In a resample without
        examples and predictions of a class its F1 is 0, and the macro F1 excludes it.
    """

    def statistics(pairs: np.ndarray, axis: int) -> np.ndarray:
        true, predicted = np.divmod(pairs.reshape(-1, pairs.shape[axis]), num_classes)
        draws = num_classes * np.arange(len(true))[:, None]

        def count(classes: np.ndarray) -> np.ndarray:
            return np.bincount(classes.ravel(), minlength=num_classes * len(true)).reshape(-1, num_classes)

        right = count((draws + true)[true == predicted])
        num_true_or_predicted = count(draws + true) + count(draws + predicted)
        f1 = 2 * right / np.maximum(num_true_or_predicted, 1)
        macro_f1 = f1.sum(axis=1) / (num_true_or_predicted > 0).sum(axis=1)
        measured = np.column_stack([right.sum(axis=1) / true.shape[1], macro_f1, f1]).T
        return measured if pairs.ndim > 1 else measured[:, 0]

    low, high = resampled_interval(true * num_classes + predicted, statistics)
    accuracy, macro_f1, *f1 = np.stack([low, high], axis=1).tolist()
    return {"accuracy": accuracy, "macro_f1": macro_f1, "f1": f1}


def _class_intervals(matrix: np.ndarray, resampled_f1: list[list[float]]) -> list[dict[str, list[float] | None]]:
    """Returns the intervals of precision, recall and F1 of each class, None where the metric is undefined."""
    right, support, predicted = np.diag(matrix).tolist(), matrix.sum(axis=1).tolist(), matrix.sum(axis=0).tolist()
    rows: list[dict[str, list[float] | None]] = []
    for num_correct, num_true, num_predicted, f1 in zip(right, support, predicted, resampled_f1, strict=True):
        precision = wilson_interval(num_correct, num_predicted) if num_predicted else None
        recall = wilson_interval(num_correct, num_true) if num_true else None
        num_all = num_true + num_predicted
        of_f1 = _or_else(f1, f1_interval(num_correct, num_all - 2 * num_correct)) if num_all else None
        rows.append({"precision_interval": precision, "recall_interval": recall, "f1_interval": of_f1})
    return rows


def _or_else(resampled: list[float], analytic: list[float]) -> list[float]:
    return resampled if resampled[0] < resampled[1] else analytic


def classification_report(predictions: pd.DataFrame) -> str:
    """Returns scikit-learn's table of precision, recall and F1, with classes without examples and predictions below it.
    Takes what `evaluate` does.
    """
    from sklearn.metrics import classification_report as text_report

    class_names = names_of(predictions)
    true, predicted = _positions(predictions)
    present = _present(true, predicted)
    names = [class_names[position] for position in present]
    text = text_report(true, predicted, labels=present, target_names=names, digits=4, zero_division=0)
    absent = [name for position, name in enumerate(class_names) if position not in present]
    return text + (f"\nNo example and no prediction of: {', '.join(absent)}\n" if absent else "")


def _positions(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Returns true and predicted classes as positions: scikit-learn would sort names and parse some as numbers."""
    position = {name: place for place, name in enumerate(names_of(predictions))}
    true, predicted = (np.array([position[name] for name in predictions[column]]) for column in ("label", "predicted"))
    return true, predicted


def _present(true: np.ndarray, predicted: np.ndarray) -> list[int]:
    return sorted({*true.tolist(), *predicted.tolist()})


def _sum_over_parts(total: Callable[..., float], true: np.ndarray, scores: np.ndarray) -> float:
    """Sums over parts: scikit-learn copies probabilities to float64 several times, 1.4 GB for 50,000 x 1,000."""
    parts = [slice(start, start + PART) for start in range(0, len(true), PART)]
    return float(sum(total(true[part], scores[part]) for part in parts))


def describe(evaluation: dict[str, Any]) -> str:
    """``test accuracy 91.06% (95 % interval 86.83% to 94.02%, n = 246), top-5 99.19%, macro F1 0.907``."""
    low, high = evaluation["accuracy_interval"]
    # An interval is for new images, of which those that a classifier was trained on say nothing.
    evidence = (
        "images it was trained on" if evaluation["split"] == "train" else f"95 % interval {low:.2%} to {high:.2%}"
    )
    top_5 = f"top-5 {evaluation['top_5_accuracy']:.2%}, " if "top_5_accuracy" in evaluation else ""
    return (
        f"{evaluation['split']} accuracy {evaluation['accuracy']:.2%} ({evidence}, n = {evaluation['num_examples']:,}), "
        f"{top_5}macro F1 {evaluation['macro_f1']:.3f}"
    )
