"""The figures of a run and of its report; a new one is a function that returns a Figure, and a row of `FIGURES`."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:  # imported by the functions that draw: the report reads the rows of the table only
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

NUM_NAMED = 4  # classes per message

NUM_IMAGES = 20  # random predictions, and errors
NUM_GRAD_CAM = 4  # correct predictions, and as many errors
MAX_CLASSES = 200  # of a confusion matrix; with 1,000 a cell would be four pixels wide, and most of them empty


@dataclass(frozen=True)
class FigureInputs:
    """The results of a run, which its figures are drawn from."""

    evaluation: Mapping[str, Any]  # the content of evaluation.json
    predictions: pd.DataFrame  # of the evaluation split, see evaluation/predictions.py
    history: pd.DataFrame  # one row per epoch; none for a soup
    hardware: pd.DataFrame  # one row per sample; there may be none
    seed: int
    load_images: Callable[[np.ndarray], np.ndarray]  # row numbers of `predictions` -> uint8 (n, size, size, 3)
    grad_cam: Callable[[np.ndarray, np.ndarray], np.ndarray]  # images, class numbers -> float32 (n, rows, columns)

    @cached_property
    def correct(self) -> np.ndarray:
        """For each prediction whether it is correct, bool (n,)."""
        return (self.predictions["label"] == self.predictions["predicted"]).to_numpy()

    def at_random(self, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).permutation(len(self.predictions))

    @property
    def confident_errors(self) -> np.ndarray:
        """Row numbers of the wrong predictions, the most confident first."""
        by_confidence = np.argsort(-self.predictions["confidence"].to_numpy(), kind="stable")
        return by_confidence[~self.correct[by_confidence]]


class FigureRow(NamedTuple):
    draw: Callable[[FigureInputs], "Figure | None"]  # None if there is nothing to draw
    section: str  # of the report, see the table in reports/run.html
    title: str  # for readers who do not see the figure
    caption: str
    optional: bool = True  # False only for figures that all versions draw: the report says if such a file is missing
    is_photo: bool = False  # compressed with loss in the report


def draw_figures(inputs: FigureInputs, folder: Path) -> None:
    """Writes each figure of the table as ``NAME.png``, and deletes the file of one with nothing to draw."""
    from transfer_learning.evaluation.figures.style import save, without_font

    if hidden := without_font(inputs.evaluation["class_names"]):
        shown = ", ".join(f"{number} for {name}" for number, name in hidden[:NUM_NAMED])
        logger.info(
            f"No installed font has all characters of {len(hidden):,} class names, so figures show their numbers: {shown}"
            f"{', ...' if len(hidden) > NUM_NAMED else ''}."
        )
    for name, row in FIGURES.items():
        figure = row.draw(inputs)
        if figure is None:
            (folder / f"{name}.png").unlink(missing_ok=True)
        else:
            save(figure, folder / f"{name}.png")


def _curves(inputs: FigureInputs) -> "Figure | None":
    from transfer_learning.evaluation.figures.curves import curves

    if inputs.history.empty:
        return None
    phases = {name: inputs.evaluation[name] for name in ("frozen", "fine_tune")}
    return curves(inputs.history, {name: phase["best_epoch"] for name, phase in phases.items() if phase})


def _confusion_matrix(inputs: FigureInputs, normalised: bool = False) -> "Figure | None":
    from transfer_learning.evaluation.figures.confusion import confusion_matrix

    class_names = inputs.evaluation["class_names"]
    if len(class_names) > MAX_CLASSES:
        return None
    return confusion_matrix(inputs.evaluation["confusion_matrix"], class_names, normalised)


def _images(inputs: FigureInputs, rows: np.ndarray) -> "Figure | None":
    from transfer_learning.evaluation.figures.images import captions, image_grid

    if not len(rows):
        return None
    return image_grid(inputs.load_images(rows), captions(inputs.predictions.iloc[rows]), inputs.correct[rows])


def _grad_cam(inputs: FigureInputs) -> "Figure | None":
    from transfer_learning.evaluation.figures.images import beside_grad_cam, captions, image_grid

    at_random = inputs.at_random(0)
    correct = at_random[inputs.correct[at_random]]
    rows = np.concatenate([correct[:NUM_GRAD_CAM], inputs.confident_errors[:NUM_GRAD_CAM]])
    class_numbers = {name: number for number, name in enumerate(inputs.evaluation["class_names"])}
    images = inputs.load_images(rows)
    maps = inputs.grad_cam(images, inputs.predictions["predicted"].iloc[rows].map(class_numbers).to_numpy())
    if maps[0].size == 1:  # a feature map of one cell says nothing about places
        return None
    pairs = [beside_grad_cam(image, importance) for image, importance in zip(images, maps, strict=True)]
    return image_grid(pairs, captions(inputs.predictions.iloc[rows]), inputs.correct[rows], wide=2)


def _reliability(inputs: FigureInputs) -> "Figure":
    from transfer_learning.evaluation.figures.reliability import reliability

    return reliability(inputs.evaluation["calibration"])


def _hardware(inputs: FigureInputs) -> "Figure | None":
    from transfer_learning.evaluation.figures.hardware import hardware

    return None if inputs.hardware.empty else hardware(inputs.hardware)


def _rate_search(inputs: FigureInputs) -> "Figure | None":
    from transfer_learning.evaluation.figures.rate_search import rate_search

    found = inputs.evaluation.get("rate_search")
    return rate_search(found) if found else None


FIGURES = {
    "curves": FigureRow(
        _curves,
        "training",
        "loss, accuracy and learning rate over the epochs",
        "Loss, accuracy and learning rate of both phases; the fine-tune phase is shaded.",
        optional=False,
    ),
    "rate_search": FigureRow(
        _rate_search,
        "training",
        "losses of the learning-rate search",
        "Search of the learning rate of fine-tuning. Line: training loss while the rate rises from step to step. Points: "
        "validation loss after a few steps at a rate.",
    ),
    "confusion_matrix": FigureRow(
        _confusion_matrix,
        "confusion-matrix",
        "confusion matrix, counts",
        "Number of images. Rows are true classes, columns predicted classes; errors have their own colour scale.",
        optional=False,
    ),
    "confusion_matrix_normalised": FigureRow(
        lambda inputs: _confusion_matrix(inputs, normalised=True),
        "confusion-matrix",
        "confusion matrix, each row in percent",
        "The same in percent of each row: the recall of a class is on the diagonal.",
        optional=False,
    ),
    "reliability": FigureRow(
        _reliability,
        "calibration",
        "reliability diagram",
        "Top: accuracy of the predictions in each bin of confidence. Bottom: number of images in the bin.",
        optional=False,
    ),
    "samples": FigureRow(
        lambda inputs: _images(inputs, inputs.at_random(inputs.seed)[:NUM_IMAGES]),
        "random-predictions",
        "random images with predicted class, confidence and true class",
        "Images drawn at random, with predicted class and confidence, and the true class. ✓ correct, ✗ wrong.",
        optional=False,
        is_photo=True,
    ),
    "mistakes": FigureRow(
        lambda inputs: _images(inputs, inputs.confident_errors[:NUM_IMAGES]),
        "errors",
        "the most confident errors",
        "Wrong predictions, the most confident first. Wrong labels in the data appear here too.",
        optional=False,
        is_photo=True,
    ),
    "attention": FigureRow(
        _grad_cam,
        "grad-cam",
        "images and their Grad-CAM maps",
        "Random correct predictions, then the most confident errors. Bright regions support the predicted class most.",
        is_photo=True,
    ),
    "hardware": FigureRow(
        _hardware,
        "resource-usage",
        "utilisation, memory, temperature and power over time, with images per second and learning rate",
        "The whole machine during the run, other programs included; hardware.csv holds every sample.",
        optional=False,
    ),
}
