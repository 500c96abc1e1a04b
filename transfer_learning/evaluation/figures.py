"""The pictures of a report, each a matplotlib Figure: no window, no global state, the same bytes for the same input."""

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from transfer_learning.evaluation import predictions
from transfer_learning.storage.files import written_atomically

DOTS_PER_INCH = 150

# Colours that people with any kind of colour blindness tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
SIDES = (BLUE, VERMILION, GREEN, ORANGE, "#CC79A7", "#56B4E9")  # of a comparison, in their order
MARKERS = "osD^vP"  # which tell them apart without colours
MISTAKES = LinearSegmentedColormap.from_list("mistakes", ["#ffffff", "#f6c9ad", VERMILION, "#6b2400"])
RIGHT = LinearSegmentedColormap.from_list("right", ["#f1f6fa", "#a9cbe2"])  # pale: what is right must not outshine
# What stands ahead of a caption, the frame and the colour of the caption, by whether a prediction is right
MARKS = {True: ("✓ ", GREEN, "#00543d"), False: ("✗ ", VERMILION, "#8f3a00"), None: ("", "#bbbbbb", "#222222")}

# The first is part of matplotlib; the others write other scripts, where the machine has them.
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Malgun Gothic",
)
LONGEST_NAME = 28  # characters


def confusion_matrix(matrix: Sequence[Sequence[int]], class_names: Sequence[str], normalised: bool) -> Figure:
    """Draws true classes (rows) against predicted ones (columns).

    Mistakes have a colour scale of their own, and the diagonal a pale one, so that few mistakes among many right
    answers are seen. Numbers stand in the cells up to 30 classes; from 180 classes or so on not every class is labelled.

    Args:
        matrix: counts, integers, shape (n, n).
        class_names: n names, by position.
        normalised: shows each row as percentages of its examples; the row of a class without examples is grey.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    num_classes = len(class_names)
    totals = counts.sum(axis=1, keepdims=True)
    values = 100 * counts / np.maximum(totals, 1) if normalised else counts
    names = readable(class_names)
    longest = max(map(len, names))

    annotated = num_classes <= 30
    cell = 0.9 if num_classes <= 4 else 0.62 if num_classes <= 12 else 0.42 if annotated else 0.17
    side = min(max(cell * num_classes, 3.2), 25.0)  # inches; 3750 pixels are as many as anybody scrolls through
    name_size = 10 if num_classes <= 12 else 8.5 if annotated else 7.5
    margin = 0.6 + longest * name_size * 0.0085  # what the longest name takes
    with style():
        figure = Figure(figsize=(side + margin + 1.5, side + margin + 0.5), layout="constrained")
        axes = figure.subplots()
        diagonal = np.eye(num_classes, dtype=bool)
        absent = np.broadcast_to(totals == 0, counts.shape)
        axes.set_facecolor("#e4e4e4")
        for mask, colours, shown in ((~diagonal, RIGHT, "right"), (diagonal, MISTAKES, "mistakes")):
            highest = np.max(values[~mask])
            seaborn.heatmap(
                values,
                mask=mask | (absent & normalised),
                ax=axes,
                cmap=colours,
                vmin=0,
                vmax=max(highest, 1),
                square=True,
                linewidths=0.5 if annotated else 0,
                linecolor="#dddddd",
                xticklabels=False,
                yticklabels=False,
                cbar_kws={
                    "label": f"{shown}, {'% of the true class' if normalised else 'images'}",
                    "shrink": 0.6,
                    "aspect": 25,
                    "pad": 0.03,
                    "ticks": MaxNLocator(5, integer=True),
                },
            )
        if annotated:
            number_size = 10 if num_classes <= 12 else 7
            for row, column in zip(*np.nonzero(counts), strict=True):
                dark = row != column and values[row, column] > 0.65 * max(np.max(values[~diagonal]), 1)
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    _cell_text(values[row, column], normalised),
                    ha="center",
                    va="center",
                    fontsize=number_size,
                    color="white" if dark else "black",
                )
        else:
            axes.set_xticks(np.arange(num_classes + 1), minor=True)
            axes.set_yticks(np.arange(num_classes + 1), minor=True)
            axes.tick_params(which="minor", length=0)
            if num_classes < 150:
                axes.grid(which="minor", color="#eeeeee", linewidth=0.4)
        step = max(1, int(np.ceil(num_classes * 0.14 / side)))  # a label needs this much of an inch
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


def curves(history: pd.DataFrame, best_epochs: Mapping[str, int] | None = None) -> Figure:
    """Draws loss, accuracy and learning rate over the epochs of both phases, with the change of phase marked.

    Args:
        history: one row an epoch, one or more, with columns ``phase`` (``frozen`` or ``fine_tune``), ``epoch`` (from 1
            on over both phases), ``learning_rate``, ``loss``, ``accuracy``, ``val_loss``, ``val_accuracy``; values may
            be missing or not finite, and then have no point.
        best_epochs: for each phase the epoch, counted as in `history`, whose weights were kept; marked on the
            validation curves, or on the training curves where there are no validation values.

    Raises:
        ValueError: `history` has no row.
    """
    if history.empty:
        raise ValueError("The history has no epoch to draw.")
    history = history.reset_index(drop=True)
    epochs = history["epoch"].to_numpy()
    starts = {phase: int(rows["epoch"].iloc[0]) for phase, rows in history.groupby("phase", sort=False)}
    with style():
        figure = Figure(figsize=(8, 8.2), layout="constrained")
        panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
        marker = "o" if len(history) <= 40 else None
        for axes, quantity in zip(panels[:2], ("loss", "accuracy"), strict=True):
            train = finite(history[quantity])
            val = finite(history[f"val_{quantity}"])
            _plot_by_phase(axes, history, train, color=BLUE, linestyle="--", marker=marker, label="train")
            if val.notna().any():
                _plot_by_phase(axes, history, val, color=ORANGE, marker=marker, label="val")
            best = (val if val.notna().any() else train)[history["epoch"].isin((best_epochs or {}).values())]
            if best.notna().any():
                axes.plot(
                    history["epoch"][best.index],
                    best,
                    color=VERMILION,
                    linestyle="none",
                    marker="o",
                    markersize=10,
                    markerfacecolor="none",
                    markeredgewidth=1.8,
                    label="best epoch of its phase",
                )
            axes.set_ylabel(quantity)
        panels[1].yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1.09), ncols=3, frameon=False, borderaxespad=0)
        rates = finite(history["learning_rate"])
        _plot_by_phase(panels[2], history, rates, color="#333333", marker=marker)
        panels[2].set_ylabel("learning rate\n(end of the epoch)")
        scale_by_span(panels[2], rates)
        for axes in panels:
            axes.grid(color="#e6e6e6", linewidth=0.7)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            if "fine_tune" in starts:
                axes.axvspan(starts["fine_tune"] - 0.5, epochs[-1] + 0.5, color=BLUE, alpha=0.06, linewidth=0)
            for start in list(starts.values())[1:]:
                axes.axvline(start - 0.5, color=GREY, linestyle=":", linewidth=1.4)
        for (phase, start), end in zip(starts.items(), [*list(starts.values())[1:], epochs[-1] + 1], strict=True):
            panels[0].text(
                (start + end - 1) / 2,
                1.02,
                f"{phase.replace('_', '-')} phase",
                ha="center",
                va="bottom",
                color="#444444",
                transform=panels[0].get_xaxis_transform(),
            )
        panels[2].set_xlabel("epoch")
        panels[2].set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        panels[2].xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    return figure


def comparison(curves: Mapping[str, pd.DataFrame], reach: Sequence[float] = ()) -> Figure:
    """Draws the learning curves of several sides: the means over their runs, and bands from the lowest to the highest.

    Args:
        curves: by the name of the side a row an epoch, as `comparison.curves` returns it; values may be missing.
        reach: validation accuracies to mark, 0..1.
    """
    panels_of = (
        ("val_accuracy", "epoch", "validation accuracy", "epoch"),
        ("val_accuracy", "seconds", "validation accuracy", "seconds of training"),
        ("val_loss", "epoch", "validation loss", "epoch"),
        ("accuracy", "epoch", "training accuracy", "epoch"),
    )
    names = readable(list(curves))
    with style():
        figure = Figure(figsize=(10, 7.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        panels = figure.subplots(2, 2)
        panels[0, 0].sharey(panels[0, 1])
        for axes, (quantity, across, title, below) in zip(panels.flat, panels_of, strict=True):
            for number, (name, table) in enumerate(zip(names, curves.values(), strict=True)):
                colour = SIDES[number % len(SIDES)]
                mean, low, high = (finite(table[f"{quantity}{end}"]) for end in ("", "_low", "_high"))
                axes.fill_between(table[across], low, high, color=colour, alpha=0.18, linewidth=0)
                axes.plot(
                    table[across],
                    mean,
                    color=colour,
                    marker=MARKERS[number % len(MARKERS)],
                    markersize=3.5,
                    markevery=max(1, len(table) // 20),
                    label=name,
                )
            axes.set(ylabel=title, xlabel=below)
            axes.grid(color="#e6e6e6", linewidth=0.7)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            if quantity.endswith("accuracy"):
                axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            if quantity == "val_accuracy":
                for accuracy in reach:
                    axes.axhline(accuracy, color=GREY, linestyle=":", linewidth=1.2, zorder=0)
            if across == "epoch":
                axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
            else:
                axes.set_xlim(left=0)
        losses = pd.concat([finite(table["val_loss"]) for table in curves.values()])
        if (losses > 0).all() and losses.max() > 20 * losses.min():
            panels[1, 0].set_yscale("log")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def reliability(calibration: Mapping[str, Any]) -> Figure:
    """Draws accuracy against confidence, as the network gives it and corrected, with the images of each bin below.

    calibration: what `calibration.measure` returns.
    """
    panels = [("corrected", calibration)] if calibration["temperature"] != 1 else []
    panels.insert(0, ("as the network gives it", calibration["uncorrected"]))
    with style():
        figure = Figure(figsize=(4.2 * len(panels) + 0.3, 5.2), layout="constrained")
        grid = figure.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False, height_ratios=(4, 1))
        for (title, measured), (axes, counts) in zip(panels, grid.T, strict=True):
            bins = measured["bins"]
            confidence, accuracy = ([row[name] for row in bins] for name in ("confidence", "accuracy"))
            reach = np.abs(np.array([row["interval"] for row in bins]).T - accuracy)
            axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.4, label="as it should be")
            axes.errorbar(
                confidence,
                accuracy,
                reach,
                color=BLUE,
                linestyle="none",
                marker="o",
                markersize=5,
                elinewidth=1,
                capsize=2,
                label="measured, with 95 % interval",
            )
            axes.set_title(f"{title}: error {100 * measured['error']:.1f} %", fontsize=10.5)
            axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02))
            widths = [row["high"] - row["low"] for row in bins]
            counts.bar(
                [row["low"] for row in bins],
                [row["num_examples"] for row in bins],
                widths,
                align="edge",
                color=BLUE,
                alpha=0.45,
                edgecolor="white",
            )
            counts.set_xlabel("confidence")
            counts.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            counts.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            for each in (axes, counts):
                each.grid(color="#e6e6e6", linewidth=0.7)
                each.set_axisbelow(True)
                each.spines[["top", "right"]].set_visible(False)
        first, counts = grid[:, 0]
        first.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        first.set_ylabel("share of right answers")
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        figure.get_layout_engine().set(wspace=0.08)
        counts.set_ylabel("images")
    return figure


def beside_attention(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """An image, and beside it the same one in grey, coloured where the network looked.

    Args:
        image: uint8 (height, width, 3); a small one is enlarged by a whole factor, without blur.
        attention: float32 (rows, columns), 0..1.

    Returns:
        uint8, of the height (height, 2 * width, 3).
    """
    factor = max(1, 160 // max(image.shape[:2]))
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = image.shape[:2]
    places = Image.fromarray(attention.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(places), 0, 1)[:, :, None]
    grey = image.mean(axis=2, keepdims=True) * 0.7 + 60
    coloured = 255 * matplotlib.colormaps["inferno"](strength[:, :, 0])[:, :, :3]
    share = 0.75 * strength
    return np.concatenate([image, (grey * (1 - share) + coloured * share).astype(np.uint8)], axis=1)


def image_grid(
    images: Sequence[np.ndarray], captions: Sequence[str], correct: Sequence[bool] | None = None, wide: int = 1
) -> Figure:
    """Shows images, those that were predicted rightly with a green frame and ✓, the others with a red frame and ✗.

    Args:
        images: 1 to 25 or so, each uint8, shape (height, width, 3); small ones are enlarged without blur.
        captions: a text of one line or more for each image, such as `captions` makes.
        correct: for each image whether the prediction is right; None where nothing was predicted.
        wide: how many times as wide as high the images are.

    Raises:
        ValueError: no images, or not one caption and one mark for each.
    """
    marks = [None] * len(images) if correct is None else correct
    if not len(images) == len(captions) == len(marks) or len(images) == 0:
        raise ValueError(
            f"As many images as captions and marks, and one or more, were expected; "
            f"got {len(images)}, {len(captions)} and {len(marks)}."
        )
    num_columns = min(5 // wide, len(images))
    num_rows = -(-len(images) // num_columns)
    num_lines = max(text.count("\n") + 1 for text in captions)
    with style():
        width, height = 2.1 * wide, 1.95 + 0.16 * num_lines
        figure = Figure(figsize=(width * num_columns, height * num_rows), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
        grid = figure.subplots(num_rows, num_columns, squeeze=False).flat
        for axes, image, text, right in zip(grid, images, captions, marks, strict=False):  # the grid may be larger
            axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 128 else "antialiased")
            axes.set(xticks=[], yticks=[])
            mark, frame, colour = MARKS[None if right is None else bool(right)]
            axes.spines[:].set(color=frame, linewidth=1 if right is None else 3)
            first, *others = [_shortened(line, 30) for line in text.split("\n")]
            axes.set_title("\n".join([f"{mark}{first}", *others]), fontsize=8.5, pad=5, color=colour, parse_math=False)
        for axes in list(figure.axes)[len(images) :]:
            axes.set_visible(False)
    return figure


def captions(rows: pd.DataFrame) -> list[str]:
    """Two lines for each row of a table of predictions: the predicted class with its confidence, and the true class."""
    names = predictions.class_names(rows)
    shown = dict(zip(names, readable(names, longest=20), strict=True))
    return [
        # Never rounded up: 99.98 % is not certain.
        f"{shown[predicted]} {np.floor(1000 * confidence) / 10:.1f} %\ntrue: {shown[label]}"
        for label, predicted, confidence in zip(rows["label"], rows["predicted"], rows["confidence"], strict=True)
    ]


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all; the same figure gives the same bytes, on every day."""
    picture = io.BytesIO()
    with style():
        figure.savefig(
            picture,
            format="png",
            dpi=DOTS_PER_INCH,
            facecolor="white",
            bbox_inches="tight",
            metadata={"Software": None},  # it would name matplotlib's version
            pil_kwargs={"compress_level": 1},  # pictures of photos take half the time, and a tenth more bytes
        )
    with written_atomically(Path(path)) as temporary:
        temporary.write_bytes(picture.getvalue())


def readable(names: Sequence[str], longest: int = LONGEST_NAME) -> list[str]:
    """Names as a figure can show them: on one line, the middle of long ones left out.

    A name with a character that no font of this machine draws becomes ``class 3``, its position in `names` from 0 on.
    """
    drawable = _drawable_characters()
    lines = [" ".join(name.split()) for name in names]
    return [
        _shortened(line, longest) if line and set(line) <= drawable else f"class {position}"
        for position, line in enumerate(lines)
    ]


def style():
    """Settings that a matplotlibrc of the user does not reach."""
    own = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    return matplotlib.rc_context({**own, "font.family": _installed_fonts(), "font.size": 10})


def _installed_fonts() -> list[str]:
    installed = set(font_manager.get_font_names())
    return [font for font in FONTS if font in installed]


@cache
def _drawable_characters() -> frozenset[str]:
    return frozenset(
        chr(code)
        for font in _installed_fonts()
        for code in font_manager.get_font(font_manager.findfont(font)).get_charmap()
    )


def _shortened(text: str, longest: int) -> str:
    """The ends are kept, for names that differ often differ there."""
    return text if len(text) <= longest else f"{text[: (longest - 1) * 2 // 3]}…{text[-((longest - 1) // 3) :]}"


def _cell_text(value: float, normalised: bool) -> str:
    """A percentage below 10, or just below 100, has a decimal: 0.4 is not none, and 99.9 not all."""
    if not normalised or 9.95 <= value < 99.5 or value == 100:
        return f"{value:.0f}"
    return "<0.1" if value < 0.05 else f"{min(value, 99.9):.1f}"


def finite(values: pd.Series) -> pd.Series:
    """Numbers, NaN in place of what is none or not finite."""
    return pd.to_numeric(values, errors="coerce").where(np.isfinite)


def _plot_by_phase(axes: Axes, history: pd.DataFrame, values: pd.Series, label: str | None = None, **look) -> None:
    """A line for each phase: nothing was trained between the two, so no line leads from one to the other."""
    for _, rows in history.groupby("phase", sort=False):
        axes.plot(rows["epoch"], values[rows.index], markersize=3.5, label=label, **look)
        label = None  # one entry in the legend


def scale_by_span(axes: Axes, values: pd.Series) -> None:
    """Logarithmic where the values span more than a factor of 20, with room for the zero that a schedule may end at."""
    positive = values[values > 0]
    if len(positive) == 0 or positive.max() <= 20 * positive.min():
        axes.set_ylim(bottom=0)
    elif (values == 0).any():
        axes.set_yscale("symlog", linthresh=positive.min())
    else:
        axes.set_yscale("log")
