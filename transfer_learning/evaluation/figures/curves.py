"""Learning curves: of one run, and of the variants of a comparison."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from transfer_learning.evaluation.figures import style
from transfer_learning.evaluation.figures.style import clean_axes, finite, readable, scale_by_span

VARIANTS = (style.BLUE, style.VERMILION, style.GREEN, style.ORANGE, "#CC79A7", "#56B4E9")  # colours in a comparison
MARKERS = "osD^vP"  # which distinguish the variants without colours


def curves(history: pd.DataFrame, best_epochs: Mapping[str, int] | None = None) -> Figure:
    """Draws loss, accuracy and learning rate over the epochs of both phases, with the start of fine-tuning marked.

    Args:
        history: one row or more, one per epoch, with columns ``phase`` (``frozen`` or ``fine_tune``), ``epoch`` (counted
            from 1 over both phases), ``learning_rate``, ``loss``, ``accuracy``, ``val_loss``, ``val_accuracy``; missing
            or non-finite values have no point.
        best_epochs: the epoch with the best weights, by phase; marked on the validation curves, or on the training
            curves if there are no validation values.
    """
    history = history.reset_index(drop=True)
    epochs = history["epoch"].to_numpy()
    starts = {phase: int(rows["epoch"].iloc[0]) for phase, rows in history.groupby("phase", sort=False)}
    with style.settings():
        figure = Figure(figsize=(8, 8.2), layout="constrained")
        panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
        marker = "o" if len(history) <= 40 else None
        for axes, quantity in zip(panels[:2], ("loss", "accuracy"), strict=True):
            train = finite(history[quantity])
            val = finite(history[f"val_{quantity}"])
            _plot_by_phase(axes, history, train, color=style.BLUE, linestyle="--", marker=marker, label="train")
            if val.notna().any():
                _plot_by_phase(axes, history, val, color=style.ORANGE, marker=marker, label="val")
            best = (val if val.notna().any() else train)[history["epoch"].isin((best_epochs or {}).values())]
            if best.notna().any():
                ring = dict(marker="o", markersize=10, markerfacecolor="none", markeredgewidth=1.8, linestyle="none")
                places = history["epoch"][best.index]
                axes.plot(places, best, color=style.VERMILION, label="best epoch of the phase", **ring)
            axes.set_ylabel(quantity)
        panels[1].yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1.09), ncols=3, frameon=False, borderaxespad=0)
        rates = finite(history["learning_rate"])
        _plot_by_phase(panels[2], history, rates, color="#333333", marker=marker)
        panels[2].set_ylabel("learning rate\n(end of epoch)")
        scale_by_span(panels[2], rates)
        clean_axes(*panels)
        for axes in panels:
            if "fine_tune" in starts:
                axes.axvspan(starts["fine_tune"] - 0.5, epochs[-1] + 0.5, color=style.BLUE, alpha=0.06, linewidth=0)
            for start in list(starts.values())[1:]:
                axes.axvline(start - 0.5, color=style.GREY, linestyle=":", linewidth=1.4)
        for (phase, start), end in zip(starts.items(), [*list(starts.values())[1:], epochs[-1] + 1], strict=True):
            title, above = f"{phase.replace('_', '-')} phase", panels[0].get_xaxis_transform()
            look = dict(ha="center", va="bottom", color="#444444")
            panels[0].text((start + end - 1) / 2, 1.02, title, transform=above, **look)
        panels[2].set_xlabel("epoch")
        panels[2].set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        panels[2].xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    return figure


def comparison(curves: Mapping[str, pd.DataFrame], target_accuracies: Sequence[float] = ()) -> Figure:
    """Draws the learning curves of several variants: the mean over their runs, and a band from minimum to maximum.

    Args:
        curves: by variant one row per epoch with ``epoch``, ``seconds`` and the columns ``X``, ``X_low``, ``X_high``
            for X in ``accuracy``, ``val_accuracy`` and ``val_loss``; values may be missing.
        target_accuracies: validation accuracies to mark, 0..1.
    """
    panels_of = (
        ("val_accuracy", "epoch", "validation accuracy", "epoch"),
        ("val_accuracy", "seconds", "validation accuracy", "seconds of training"),
        ("val_loss", "epoch", "validation loss", "epoch"),
        ("accuracy", "epoch", "training accuracy", "epoch"),
    )
    names = readable(list(curves))
    with style.settings():
        figure = Figure(figsize=(10, 7.4), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        panels = figure.subplots(2, 2)
        panels[0, 0].sharey(panels[0, 1])
        clean_axes(*panels.flat)
        for axes, (quantity, across, title, below) in zip(panels.flat, panels_of, strict=True):
            for number, (name, table) in enumerate(zip(names, curves.values(), strict=True)):
                colour = VARIANTS[number % len(VARIANTS)]
                mean, low, high = (finite(table[f"{quantity}{end}"]) for end in ("", "_low", "_high"))
                axes.fill_between(table[across], low, high, color=colour, alpha=0.18, linewidth=0)
                marks = dict(marker=MARKERS[number % len(MARKERS)], markersize=3.5, markevery=max(1, len(table) // 20))
                axes.plot(table[across], mean, color=colour, label=name, **marks)
            axes.set(ylabel=title, xlabel=below)
            if quantity.endswith("accuracy"):
                axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            if quantity == "val_accuracy":
                for accuracy in target_accuracies:
                    axes.axhline(accuracy, color=style.GREY, linestyle=":", linewidth=1.2, zorder=0)
            if across == "epoch":
                axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
            else:
                axes.set_xlim(left=0)
        losses = pd.concat([finite(table["val_loss"]) for table in curves.values()])
        if (losses > 0).all() and losses.max() > 20 * losses.min():
            panels[1, 0].set_yscale("log")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _plot_by_phase(axes: Axes, history: pd.DataFrame, values: pd.Series, label: str | None = None, **look) -> None:
    """Draws one line per phase; nothing connects the end of one with the start of the next."""
    for _, rows in history.groupby("phase", sort=False):
        axes.plot(rows["epoch"], values[rows.index], markersize=3.5, label=label, **look)
        label = None  # one entry in the legend
