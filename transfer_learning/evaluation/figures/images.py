"""Grids of images with captions."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from transfer_learning.evaluation import predictions
from transfer_learning.evaluation.figures.style import GREEN, VERMILION, readable, settings, shortened

Arrays = Sequence[np.ndarray] | np.ndarray
SIDE = 1.8  # of the shown images in inches
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
    """
    marks = [None] * len(images) if correct is None else [bool(value) for value in correct]
    num_columns = min(5 // wide, len(images))
    num_rows = math.ceil(len(images) / num_columns)
    num_lines = max(text.count("\n") + 1 for text in captions)
    with settings():
        # Of a cell in inches, which are the units of the only axes: one per image and a layout take twice the time.
        width, height = 2.1 * wide, 1.95 + 0.16 * num_lines
        figure = Figure(figsize=(width * num_columns, height * num_rows))
        axes = figure.add_axes((0, 0, 1, 1), frame_on=False, xticks=[], yticks=[])
        for number, (image, text, right) in enumerate(zip(images, captions, marks, strict=True)):
            row, column = divmod(number, num_columns)
            tall, broad = np.array(image.shape[:2]) * min(SIDE / image.shape[0], wide * SIDE / image.shape[1])
            left, bottom = (column + 0.5) * width - broad / 2, (row + 1) * height - 0.05
            smoothing = "nearest" if max(image.shape[:2]) < 128 else "antialiased"
            place = (left, left + broad, bottom, bottom - tall)
            axes.imshow(image, extent=place, aspect="auto", interpolation=smoothing)
            mark, frame, colour = MARKS[right]
            line = 1 if right is None else 3
            axes.add_patch(Rectangle((left, bottom - tall), broad, tall, fill=False, color=frame, linewidth=line))
            first, *others = [shortened(line, 30) for line in text.split("\n")]
            look: Any = dict(ha="center", va="bottom", fontsize=8.5, color=colour, parse_math=False)
            axes.text(left + broad / 2, bottom - tall - 0.07, "\n".join([f"{mark}{first}", *others]), **look)
        axes.set(xlim=(0, width * num_columns), ylim=(height * num_rows, 0))
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
