"""Grids of images with captions."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from transfer_learning.evaluation import predictions
from transfer_learning.evaluation.figures.style import GREEN, VERMILION, readable, settings, shortened

Arrays = Sequence[np.ndarray] | np.ndarray
# By whether the prediction is correct: the mark before the caption, the colour of the frame, that of the caption.
MARKS = {True: ("✓ ", GREEN, "#00543d"), False: ("✗ ", VERMILION, "#8f3a00"), None: ("", "#bbbbbb", "#222222")}


def beside_grad_cam(image: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Returns an image beside a grey copy of it with the Grad-CAM map as colours.

    Args:
        image: uint8 (height, width, 3); a small one is enlarged by an integer factor, without blur.
        importance: float32 (rows, columns), 0..1.

    Returns:
        uint8 (height, 2 * width, 3).
    """
    factor = max(1, 160 // max(image.shape[:2]))
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = image.shape[:2]
    places = Image.fromarray(importance.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(places), 0, 1)[:, :, None]
    grey = image.mean(axis=2, keepdims=True) * 0.7 + 60
    coloured = 255 * matplotlib.colormaps["inferno"](strength[:, :, 0])[:, :, :3]
    share = 0.75 * strength
    return np.concatenate([image, (grey * (1 - share) + coloured * share).astype(np.uint8)], axis=1)


def image_grid(
    images: Arrays, captions: Sequence[str], correct: Sequence[bool] | np.ndarray | None = None, wide: int = 1
) -> Figure:
    """Draws images in rows: correct predictions with a green frame and ✓, errors with a red frame and ✗.

    Args:
        images: 1 to about 25 arrays, uint8 (height, width, 3); small ones are enlarged without blur.
        captions: one text per image, of one line or more, such as `captions` returns.
        correct: whether each prediction is correct; None for images without a prediction.
        wide: the ratio of width to height of the images.

    Raises:
        ValueError: there are no images, or not one caption and one mark for each.
    """
    marks = [None] * len(images) if correct is None else [bool(value) for value in correct]
    if not len(images) == len(captions) == len(marks) or len(images) == 0:
        raise ValueError(
            f"Expected one caption and one mark per image, and at least one image; got {len(images)} images, "
            f"{len(captions)} captions and {len(marks)} marks."
        )
    num_columns = min(5 // wide, len(images))
    num_rows = math.ceil(len(images) / num_columns)
    num_lines = max(text.count("\n") + 1 for text in captions)
    with settings():
        width, height = 2.1 * wide, 1.95 + 0.16 * num_lines
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08)
        figure = Figure(figsize=(width * num_columns, height * num_rows), layout=layout)
        grid = figure.subplots(num_rows, num_columns, squeeze=False).flat
        for axes, image, text, right in zip(grid, images, captions, marks, strict=False):  # the last row may be shorter
            axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 128 else "antialiased")
            axes.set(xticks=[], yticks=[])
            mark, frame, colour = MARKS[right]
            axes.spines[:].set(color=frame, linewidth=1 if right is None else 3)
            first, *others = [shortened(line, 30) for line in text.split("\n")]
            axes.set_title("\n".join([f"{mark}{first}", *others]), fontsize=8.5, pad=5, color=colour, parse_math=False)
        for axes in list(figure.axes)[len(images) :]:
            axes.set_visible(False)
    return figure


def captions(rows: pd.DataFrame) -> list[str]:
    """Returns two lines per row of a table of predictions: predicted class with confidence, and true class."""
    names = predictions.class_names(rows)
    shown = dict(zip(names, readable(names, longest=20), strict=True))
    return [
        # Rounded down: 99.98 % must not look like certainty.
        f"{shown[predicted]} {np.floor(1000 * confidence) / 10:.1f} %\ntrue: {shown[label]}"
        for label, predicted, confidence in zip(rows["label"], rows["predicted"], rows["confidence"], strict=True)
    ]
