"""The reliability diagram: accuracy against confidence."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from transfer_learning.evaluation.figures.style import BLUE, GREY, clean_axes, settings


def reliability(calibration: Mapping[str, Any]) -> Figure:
    """Draws accuracy against confidence, before and after temperature scaling, above the number of images in each bin:
    one panel of the result of `calibration.measure` if its temperature is 1.
    """
    panels = [("uncalibrated", calibration["uncorrected"])]
    if calibration["temperature"] != 1:
        panels.append(("calibrated", calibration))
    with settings():
        figure = Figure(figsize=(4.2 * len(panels) + 0.3, 5.2), layout=ConstrainedLayoutEngine(wspace=0.08))
        grid = figure.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False, height_ratios=(4, 1))
        for (title, measured), (axes, counts) in zip(panels, grid.T, strict=True):
            bins = measured["bins"]
            confidence, accuracy = ([row[name] for row in bins] for name in ("confidence", "accuracy"))
            reach = np.abs(np.array([row["interval"] for row in bins]).T - accuracy)
            axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.4, label="perfect calibration")
            look = dict(color=BLUE, linestyle="none", marker="o", markersize=5, elinewidth=1, capsize=2)
            axes.errorbar(confidence, accuracy, reach, label="measured, with 95 % interval", **look)
            axes.set_title(f"{title}: ECE {100 * measured['error']:.1f} %", fontsize=10.5)
            axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02))
            lows, numbers = [row["low"] for row in bins], [row["num_examples"] for row in bins]
            widths = [row["high"] - row["low"] for row in bins]
            counts.bar(lows, numbers, widths, align="edge", color=BLUE, alpha=0.45, edgecolor="white")
            counts.set_xlabel("confidence")
            counts.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            counts.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            clean_axes(axes, counts)
        first, counts = grid[:, 0]
        first.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        first.set_ylabel("accuracy")
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        counts.set_ylabel("images")
    return figure
