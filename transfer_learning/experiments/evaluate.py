"""Evaluate a classifier on validation and test images: predictions, metrics, calibration, rejection, figures."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from transfer_learning.cli.progress import count_progress
from transfer_learning.datasets.dataset import UNSEEN
from transfer_learning.datasets.prepared import PreparedDataset
from transfer_learning.evaluation import calibration, metrics, ood, predictions, rejection
from transfer_learning.evaluation.figures import table as figures
from transfer_learning.evaluation.grad_cam import grad_cam
from transfer_learning.machine.monitor import read_hardware
from transfer_learning.models.classifier import (
    Classifier,
    logits_of_features,
    predicted_logits,
    read_back,
    save_model,
    softmax,
)
from transfer_learning.models.features import NamedImages
from transfer_learning.storage.files import write_text
from transfer_learning.storage.rows import Rows
from transfer_learning.storage.run_directory import RunDir

logger = logging.getLogger(__name__)

NUM_CHECKED = 64  # images that the saved model predicts too if cached features predict all
MAX_DIFFERENCE = 1e-5  # of their probabilities

# Returns features of images, float32 (records, width), and the row of each image in them; None if they are not cached.
Features = Callable[[NamedImages], tuple[Rows, np.ndarray] | None]


class Unseen(NamedTuple):
    """Predictions of images by classifiers that were not trained on them."""

    logits: np.ndarray  # float32 (n, classes)
    labels: np.ndarray  # int (n,)
    groups: np.ndarray | None  # int (n,), see `calibration.fitted_temperature`
    kind: str  # of these images, for log and report


def calibrate_and_evaluate(
    classifier: Classifier,
    data: PreparedDataset,
    run_dir: RunDir,
    unseen: Unseen | None = None,
    val_logits: np.ndarray | None = None,
    features: Features | None = None,
) -> tuple[Classifier, dict[str, dict[str, Any]]]:
    """Fits temperature and rejection threshold, saves the model, evaluates val and test.

    Args:
        unseen: calibrates the classifier; None: the validation images do.
        val_logits: of the validation images (n, classes), if the classifier was trained on them, too, by one without them.
        features: of images, if they are cached; used if some images get the same probabilities by the saved model.

    Returns:
        The calibrated classifier, and for each split that has images what `evaluate_split` returns; that of the
        evaluation split also has ``rejection``, see `rejection.measure`, None if nothing calibrates, and
        ``calibrated_on``: validation, out-of-fold or left-out, or "".
    """
    splits = [split for split in ("val", "test") if len(data.split(split))] or [data.eval_split]
    logits = {}
    for split in splits:
        known = val_logits if split == "val" else None
        logits[split] = _logits(classifier, data, split, features) if known is None else known
    used = unseen
    if not unseen and "val" in logits:
        used = Unseen(logits["val"], data.split("val").labels, data.groups("val"), "validation")
    if used:
        temperature, reason = calibration.fitted_temperature(*used)
        logger.info(reason)
        rejection_threshold = rejection.threshold(softmax(used.logits, temperature).max(axis=1))
        classifier = replace(classifier, temperature=temperature, rejection_threshold=rejection_threshold)
    save_model(classifier, run_dir.model)
    if features and not _agrees_with_saved(classifier, data, logits[data.eval_split], run_dir):
        return calibrate_and_evaluate(classifier, data, run_dir, unseen, val_logits)
    results = {split: _evaluate_logits(logits[split], classifier, data, split, run_dir) for split in logits}
    results[data.eval_split]["rejection"] = _evaluate_rejection(classifier, data, run_dir, features)
    results[data.eval_split]["calibrated_on"] = used.kind if used else ""
    return classifier, results


def evaluate_split(classifier: Classifier, data: PreparedDataset, split: str, run_dir: RunDir) -> dict[str, Any]:
    """Predicts a split from its images and writes ``predictions/SPLIT.csv``.

    Returns:
        The metrics of `metrics.evaluate` with ``split`` and ``calibration``, ready for JSON.
    """
    return _evaluate_logits(_logits(classifier, data, split), classifier, data, split, run_dir)


def _logits(classifier: Classifier, data: PreparedDataset, split: str, features: Features | None = None) -> np.ndarray:
    """The logits of all images of a split, float32 (n, classes)."""
    examples = data.split(split)
    named = NamedImages(examples.inputs, examples.rows, data.hashes(split).tolist())
    if cached := features and features(named):
        return logits_of_features(classifier, *cached)
    return predicted_logits(classifier, examples.inputs, examples.rows, count_progress(f"Predicting {split} images:"))


def _agrees_with_saved(classifier: Classifier, data: PreparedDataset, logits: np.ndarray, run_dir: RunDir) -> bool:
    """Whether some images of the evaluation split get the probabilities of these logits by the weights in the file too."""
    examples = data.split(data.eval_split)
    some = np.unique(np.linspace(0, len(examples) - 1, NUM_CHECKED).astype(np.int64))
    read_back(classifier, run_dir.model)
    whole = predicted_logits(classifier, examples.inputs, examples.rows[some])
    scale = classifier.temperature
    difference = np.abs(softmax(logits[some], scale) - softmax(whole, scale)).max()
    if difference <= MAX_DIFFERENCE:
        logger.debug(
            f"Predictions by cached features: {len(some)} images differ from the saved model by {difference:.1e}."
        )
        return True
    logger.warning(
        f"By their cached features {len(some)} images have other probabilities than by the saved model (up to "
        f"{difference:.1e}), so all are computed from their pixels; `transfer-learning cache --clear features` empties it."
    )
    return False


def _evaluate_logits(
    logits: np.ndarray, classifier: Classifier, data: PreparedDataset, split: str, run_dir: RunDir
) -> dict[str, Any]:
    examples, temperature = data.split(split), classifier.temperature
    table = predictions.table(examples.ids, examples.labels, softmax(logits, temperature), data.class_names)
    predictions.write(table, run_dir.predictions(split))
    results = metrics.evaluate(table)
    return {"split": split, **results, "calibration": calibration.measure(table, temperature)}


def _evaluate_rejection(
    classifier: Classifier, data: PreparedDataset, run_dir: RunDir, features: Features | None
) -> dict[str, Any] | None:
    """Applies the threshold to the evaluation split and to images of no class; None without a rejection threshold."""
    if not classifier.rejection_threshold:
        return None
    split = data.eval_split
    examples = data.split(split)
    some = examples.rows[np.random.default_rng(0).permutation(len(examples))[: ood.NUM_IMAGES]]
    kinds = {}
    if len(unseen := data.split(UNSEEN)):
        kinds["unseen classes"] = (unseen.inputs, unseen.rows)
    for name, pixels in (
        ("uniform noise", ood.uniform_noise(ood.NUM_IMAGES, classifier.model.input_shape[1])),
        (f"{split} images, scrambled", ood.scrambled(examples.inputs[some])),
    ):
        kinds[name] = (pixels, np.arange(len(pixels)))
    confidences = {}
    for name, (inputs, rows) in kinds.items():
        hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in inputs[rows]]
        cached = features and features(NamedImages(inputs, rows, [f"pixels {hashed}" for hashed in hashes]))
        logits = logits_of_features(classifier, *cached) if cached else predicted_logits(classifier, inputs, rows)
        confidences[name] = softmax(logits, classifier.temperature).max(axis=1)
    return rejection.measure(classifier.rejection_threshold, predictions.read(run_dir.predictions(split)), confidences)


def draw_figures(
    classifier: Classifier,
    data: PreparedDataset,
    seed: int,
    history: Sequence[dict],
    evaluation: dict[str, Any],
    run_dir: RunDir,
) -> None:
    """Draws the figures of the report, and writes the classification report.

    Args:
        history: one row per epoch, as in ``history.csv``; none for a soup.
        evaluation: the content of ``evaluation.json``.
    """
    examples, table = data.split(evaluation["split"]), predictions.read(run_dir.predictions(evaluation["split"]))
    write_text(run_dir.classification_report, metrics.classification_report(table))
    inputs = figures.FigureInputs(
        evaluation=evaluation,
        predictions=table,
        history=pd.DataFrame(history),
        hardware=read_hardware(run_dir.hardware),
        seed=seed,
        load_images=lambda rows: examples.inputs[examples.rows[rows]],
        grad_cam=lambda images, classes: grad_cam(classifier, images, classes),
    )
    figures.draw_figures(inputs, run_dir.figures)
