"""The confusion matrix."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from transfer_learning.evaluation.figures.style import VERMILION, readable, settings

ERRORS = LinearSegmentedColormap.from_list("errors", ["#ffffff", "#f6c9ad", VERMILION, "#6b2400"])
CORRECT = LinearSegmentedColormap.from_list("correct", ["#f1f6fa", "#a9cbe2"])  # pale, so that errors stand out


def confusion_matrix(matrix: Sequence[Sequence[int]], class_names: Sequence[str], normalised: bool) -> Figure:
    """Draws true classes (rows) against predicted classes (columns) by counts (n, n), or as percentages of each true
    class.

    Errors and the diagonal have colour scales of their own, so that a few errors among many correct predictions are
    visible; the percentages of a class without images are grey. Up to 30 classes the cells hold numbers; from about 180
    classes on not every class is labelled.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    num_classes = len(class_names)
    totals = counts.sum(axis=1, keepdims=True)
    values = 100 * counts / np.maximum(totals, 1) if normalised else counts
    names = readable(class_names)
    longest = max(map(len, names))

    annotated = num_classes <= 30
    cell = 0.9 if num_classes <= 4 else 0.62 if num_classes <= 12 else 0.42 if annotated else 0.17
    side = min(max(cell * num_classes, 3.2), 25.0)  # inches; 3750 pixels
    name_size = 10 if num_classes <= 12 else 8.5 if annotated else 7.5
    margin = 0.6 + longest * name_size * 0.0085  # the width of the longest name
    with settings():
        figure = Figure(figsize=(side + margin + 1.5, side + margin + 0.5), layout="constrained")
        axes = figure.subplots()
        diagonal = np.eye(num_classes, dtype=bool)
        absent = np.broadcast_to(totals == 0, counts.shape)
        axes.set_facecolor("#e4e4e4")
        for mask, colours, shown in ((~diagonal, CORRECT, "correct"), (diagonal, ERRORS, "errors")):
            highest = np.max(values[~mask])
            hidden = mask | (absent & normalised)
            title = f"{shown}, {'% of the true class' if normalised else 'images'}"
            bar = dict(label=title, shrink=0.6, aspect=25, pad=0.03, ticks=MaxNLocator(5, integer=True))
            look = dict(cmap=colours, vmin=0, vmax=max(highest, 1), xticklabels=False, yticklabels=False, square=True)
            lines = dict(linewidths=0.5 if annotated else 0, linecolor="#dddddd")
            seaborn.heatmap(values, mask=hidden, ax=axes, cbar_kws=bar, **look, **lines)
        if annotated:
            centred: Any = dict(ha="center", va="center", fontsize=10 if num_classes <= 12 else 7)
            for row, column in zip(*np.nonzero(counts), strict=True):
                dark = row != column and values[row, column] > 0.65 * max(np.max(values[~diagonal]), 1)
                text = _cell_text(values[row, column], normalised)
                axes.text(column + 0.5, row + 0.5, text, color="white" if dark else "black", **centred)
        else:
            axes.set_xticks(np.arange(num_classes + 1), minor=True)
            axes.set_yticks(np.arange(num_classes + 1), minor=True)
            axes.tick_params(which="minor", length=0)
            if num_classes < 150:
                axes.grid(which="minor", color="#eeeeee", linewidth=0.4)
        step = max(1, math.ceil(num_classes * 0.14 / side))  # a label needs 0.14 inches
        places = np.arange(0, num_classes, step)
        labels = [names[place] for place in places]
        upright = num_classes > 12 or longest * name_size * 0.0085 > side / num_classes
        axes.set_xticks(places + 0.5, labels, rotation=90 if upright else 0, fontsize=name_size, parse_math=False)
        axes.set_yticks(places + 0.5, labels, rotation=0, fontsize=name_size, parse_math=False)
        axes.tick_params(which="major", length=2)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.spines[:].set(visible=True, color="#aaaaaa")
    return figure


def _cell_text(value: float, normalised: bool) -> str:
    """Percentages below 10 or just below 100 get a decimal: 0.4 must not look like 0, nor 99.9 like 100."""
    if not normalised or 9.95 <= value < 99.5 or value == 100:
        return f"{value:.0f}"
    return "<0.1" if value < 0.05 else f"{min(value, 99.9):.1f}"
