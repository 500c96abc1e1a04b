"""The search of a learning rate: training loss of the range test, and validation loss of the rates that were compared."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from transfer_learning.evaluation.figures.style import BLUE, GREY, ORANGE, clean_axes, settings


def rate_search(found: Mapping[str, Any]) -> Figure:
    """Draws the result of `find_learning_rate`: losses against learning rates, and a line at the rate that was chosen."""
    test, rounds = found["range_test"], [row for row in found["rounds"] if row["val_loss"] is not None]
    with settings():
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(
            [row["learning_rate"] for row in test], [row["loss"] for row in test], color=BLUE, label="range test: loss"
        )
        for number, steps in enumerate(sorted({row["steps"] for row in rounds})):
            own = sorted((row["learning_rate"], row["val_loss"]) for row in rounds if row["steps"] == steps)
            x, y = np.array(own).T
            axes.plot(
                x, y, "o--" if number == 0 else "s--", color=ORANGE, linewidth=1, label=f"val_loss after {steps} steps"
            )
        axes.axvline(found["learning_rate"], color=GREY, linestyle=":", label=f"chosen: {found['learning_rate']:g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(0, None))
        clean_axes(axes)
        figure.legend(loc="outside right upper", frameon=False)
    return figure
