"""Evaluate a classifier on the validation and test images: predictions, metrics, figures."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from transfer_learning.cli.progress import count_progress
from transfer_learning.config import PHASES
from transfer_learning.datasets.dataset import UNSEEN
from transfer_learning.datasets.prepared import PreparedDataset
from transfer_learning.evaluation import calibration, figures, hardware_figure, metrics, ood, predictions, rejection
from transfer_learning.evaluation.grad_cam import attention
from transfer_learning.machine.monitor import read_hardware
from transfer_learning.models.classifier import Classifier, predicted_logits, probabilities, save_model, softmax
from transfer_learning.reports.run import MOST_CLASSES_DRAWN
from transfer_learning.storage.files import write_text
from transfer_learning.storage.run_directory import RunDir

logger = logging.getLogger(__name__)

NUM_PICTURES = 20  # in the figures of random predictions and of errors
NUM_GRAD_CAM = 4  # correct predictions, and as many errors


def calibrate_and_evaluate(
    classifier: Classifier, data: PreparedDataset, run_dir: RunDir
) -> tuple[Classifier, dict[str, dict]]:
    """Gives the classifier what validation images tell, saves it, and judges it on each split it was not trained on."""
    logits = {split: logits_of_split(classifier, data, split) for split in ("val", "test") if len(data.split(split))}
    if "val" in logits:
        temperature, reason = calibration.fitted_temperature(logits["val"], data.split("val").labels)
        logger.info(reason)
        rejection_threshold = rejection.threshold(softmax(logits["val"], temperature).max(axis=1))
        classifier = replace(classifier, temperature=temperature, rejection_threshold=rejection_threshold)
    save_model(classifier, run_dir.model)
    results = {split: evaluate_logits(logits[split], classifier.temperature, data, split, run_dir) for split in logits}
    results[data.eval_split]["rejection"] = evaluate_rejection(classifier, data, data.eval_split, run_dir)
    return classifier, results


def evaluate_rejection(classifier: Classifier, data: PreparedDataset, split: str, run_dir: RunDir) -> dict | None:
    """What the rule for unknown costs on a split, and what it catches of other images; None where there is no rule."""
    if not classifier.rejection_threshold:
        return None
    examples = data.split(split)
    some = examples.rows[np.random.default_rng(0).permutation(len(examples))[: ood.NUM_IMAGES]]
    images = {
        "uniform noise": ood.uniform_noise(ood.NUM_IMAGES, classifier.model.input_shape[1]),
        f"{split} images, scrambled": ood.scrambled(examples.inputs[some]),
    }
    looked_at = {name: (pixels, np.arange(len(pixels))) for name, pixels in images.items()}
    if len(unseen_classes := data.split(UNSEEN)):
        looked_at = {"classes held out": (unseen_classes.inputs, unseen_classes.rows), **looked_at}
    confidences = {name: probabilities(classifier, *pixels).max(axis=1) for name, pixels in looked_at.items()}
    return rejection.measure(classifier.rejection_threshold, predictions.read(run_dir.predictions(split)), confidences)


def evaluate_split(classifier: Classifier, data: PreparedDataset, split: str, run_dir: RunDir) -> dict:
    """Predicts a split from its images, writes ``predictions/<split>.csv`` and returns the metrics."""
    return evaluate_logits(logits_of_split(classifier, data, split), classifier.temperature, data, split, run_dir)


def logits_of_split(classifier: Classifier, data: PreparedDataset, split: str) -> np.ndarray:
    examples = data.split(split)
    progress = count_progress(f"Predicting {split} images:")
    return predicted_logits(classifier, examples.inputs, examples.rows, progress)


def evaluate_logits(logits: np.ndarray, temperature: float, data: PreparedDataset, split: str, run_dir: RunDir) -> dict:
    """Writes the predictions of a split, and measures them."""
    examples = data.split(split)
    table = predictions.table(examples.ids, examples.labels, softmax(logits, temperature), data.class_names)
    predictions.write(table, run_dir.predictions(split))
    measured = metrics.evaluate(table, data.class_names)
    return {"split": split, **measured, "calibration": calibration.measure(table, temperature)}


def draw_figures(
    classifier: Classifier,
    data: PreparedDataset,
    seed: int,
    history: list[dict],
    evaluation: dict[str, Any],
    run_dir: RunDir,
) -> None:
    """Draws the figures of the report, and writes the classification report."""
    split, class_names = evaluation["split"], data.class_names
    table = predictions.read(run_dir.predictions(split))
    if len(hardware := read_hardware(run_dir.hardware)):
        figures.save(hardware_figure.hardware(hardware), run_dir.figures / "hardware.png")
    write_text(run_dir.classification_report, metrics.classification_report(table, class_names))
    best = {phase: evaluation[phase]["best_epoch"] for phase in PHASES if evaluation[phase]}
    if history:  # a soup was not trained
        figures.save(figures.curves(pd.DataFrame(history), best), run_dir.figures / "curves.png")
    matrices = ((False, "confusion_matrix.png"), (True, "confusion_matrix_normalised.png"))
    for normalised, name in matrices if len(class_names) <= MOST_CLASSES_DRAWN else ():
        figure = figures.confusion_matrix(evaluation["confusion_matrix"], class_names, normalised)
        figures.save(figure, run_dir.figures / name)
    figures.save(figures.reliability(evaluation["calibration"]), run_dir.figures / "reliability.png")
    right = (table["label"] == table["predicted"]).to_numpy()
    by_chance = np.random.default_rng(seed).permutation(len(table))
    by_confidence = np.argsort(-table["confidence"].to_numpy(), kind="stable")
    examples = data.split(split)
    for name, rows in (("samples.png", by_chance), ("mistakes.png", by_confidence[~right[by_confidence]])):
        rows = rows[:NUM_PICTURES]
        (run_dir.figures / name).unlink(missing_ok=True)  # a run without mistakes has no picture of them
        if len(rows):
            captions = figures.captions(table.iloc[rows])
            figure = figures.image_grid(examples.inputs[examples.rows[rows]], captions, right[rows])
            figures.save(figure, run_dir.figures / name)
    draw_attention(classifier, data, split, run_dir)


def draw_attention(classifier: Classifier, data: PreparedDataset, split: str, run_dir: RunDir) -> None:
    """Draws where the network looked in random right predictions and in its most confident mistakes."""
    path = run_dir.figures / "attention.png"
    path.unlink(missing_ok=True)
    table, examples = predictions.read(run_dir.predictions(split)), data.split(split)
    right = (table["label"] == table["predicted"]).to_numpy()
    by_chance = np.random.default_rng(0).permutation(len(table))
    by_confidence = np.argsort(-table["confidence"].to_numpy(), kind="stable")
    ordered = by_chance[right[by_chance]], by_confidence[~right[by_confidence]]
    rows = np.concatenate([kind[:NUM_GRAD_CAM] for kind in ordered])
    images = examples.inputs[examples.rows[rows]]
    predicted = [data.class_names.index(name) for name in table["predicted"].iloc[rows]]
    maps = attention(classifier, images, predicted)
    if maps[0].size == 1:  # one place is the whole image
        return
    pictures = [figures.beside_attention(image, places) for image, places in zip(images, maps, strict=True)]
    figures.save(figures.image_grid(pictures, figures.captions(table.iloc[rows]), right[rows], wide=2), path)
