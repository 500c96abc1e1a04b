"""Resource usage over the time of a run: panels one below the other."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from transfer_learning.evaluation.figures import style
from transfer_learning.evaluation.figures.style import finite, scale_by_span
from transfer_learning.machine.monitor import gpu_numbers

OF_GPUS = (style.ORANGE, style.GREEN, "#CC79A7", "#56B4E9", "#8C5A2B", "#222222", "#B3A000", "#6A51A3")
OF_STAGES = {"decode": "#efefef", "frozen": "#fdf1dc", "fine_tune": "#e6f0f8", "evaluate": "#e3f3ec"}
MAX_POINTS = 300  # of a line over time
LARGEST_SPAN = 1e4  # of a logarithmic axis: the highest value divided by the lowest one shown


def hardware(table: pd.DataFrame) -> Figure:
    """Draws images per second, learning rate, and the usage of processors, memory, disks and GPUs over time.

    The table is that of `monitor.read_hardware`, one row or more. The time between two sessions is left out. Many
    samples are binned: the mean is a line, the range is shaded. A panel without measurements is left out.
    """
    seconds, resumed = _running_time(table)
    units = (180, 1, "seconds"), (3 * 3600, 60, "minutes"), (np.inf, 3600, "hours")
    unit, name = next((unit, name) for most, unit, name in units if seconds.max() <= most)
    time = seconds / unit
    gpus = {number: OF_GPUS[place % len(OF_GPUS)] for place, number in enumerate(gpu_numbers(table))}

    def of_gpus(values: Callable[[str], pd.Series]) -> list[tuple[str, str, pd.Series]]:
        return [(f"GPU {number}", colour, values(f"gpu{number}_")) for number, colour in gpus.items()]

    use = [("CPU, all programs", style.GREY, table["cpu_percent"])]
    use += [("CPU, this run", style.BLUE, table["process_cpu_percent"])]
    use += of_gpus(lambda gpu: table[f"{gpu}percent"])
    memory = [("all programs", style.GREY, 100 * (1 - table["memory_available_mb"] / table["memory_total_mb"]))]
    memory += [("this run", style.BLUE, 100 * table["process_memory_mb"] / table["memory_total_mb"])]
    memory += of_gpus(lambda gpu: 100 * table[f"{gpu}memory_used_mb"] / table[f"{gpu}memory_total_mb"])
    disk = [("read", style.BLUE, table["disk_read_mb_per_second"])]
    disk += [("written", style.ORANGE, table["disk_write_mb_per_second"])]
    panels = [
        ("images/s", [("", style.BLUE, table["images_per_second"])]),
        ("learning rate", [("", "#333333", table["learning_rate"])]),
        ("utilisation", use),
        ("memory in use", memory),
        ("disk, MB/s", disk),
        ("GPU, °C", of_gpus(lambda gpu: table[f"{gpu}celsius"])),
        ("GPU, W", of_gpus(lambda gpu: table[f"{gpu}watts"])),
        ("GPU clock, MHz", of_gpus(lambda gpu: table[f"{gpu}sm_mhz"])),
    ]
    panels = [(title, lines) for title, lines in panels if any(finite(values).notna().any() for *_, values in lines)]
    with style.settings():
        figure = Figure(figsize=(9.5, 0.7 + 1.35 * max(1, len(panels))), layout="constrained")
        drawn = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, lines) in zip(drawn, panels, strict=False):  # nothing measured: one empty panel
            # No line connects two phases: nothing was trained in between.
            parts = ["session", "stage"] if title in ("images/s", "learning rate") else ["session"]
            for label, colour, values in lines:
                _plot_over_time(axes, time, finite(values), [table[part] for part in parts], colour, label)
            axes.set_ylabel(title, fontsize=9)
            if title in ("images/s", "learning rate"):
                known = finite(lines[0][-1])
                scale_by_span(axes, known.clip(lower=known.max() / LARGEST_SPAN))  # a cosine ends near 0
                axes.set_ylim(bottom=max(axes.get_ylim()[0], known.max() / LARGEST_SPAN / 2))
            elif title not in ("GPU, °C", "GPU clock, MHz"):
                axes.set_ylim(bottom=0)
            if title in ("utilisation", "memory in use"):
                axes.set_ylim(0, 105)
                axes.yaxis.set_major_formatter(PercentFormatter(100, symbol=" %"))
            if title == "GPU clock, MHz":
                for number in gpus:
                    throttled = ~table[f"gpu{number}_throttled_by"].isin(["", "none"])
                    clock, label = table[f"gpu{number}_sm_mhz"], "throttled" if number == max(gpus) else "_throttled"
                    dots = dict(color=style.VERMILION, linestyle="none", marker=".", markersize=4)
                    axes.plot(time[throttled], clock[throttled], label=label, **dots)
            if lines[0][0]:
                look = dict(frameon=False, fontsize=8, labelspacing=0.25, ncols=1 + (len(lines) > 6))
                axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.08), **look)
        stages = _stages(table, time)
        for axes in drawn:
            for stage, start, end in stages:
                axes.axvspan(start, end, color=OF_STAGES[stage], linewidth=0, zorder=0)
            for place in resumed:
                axes.axvline(place / unit, color=style.GREY, linestyle=":", linewidth=1.4)
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        drawn[-1].set_xlabel(f"time, {name}")
        drawn[-1].set_xlim(0, max(time.max(), 1e-9))
        present = {stage for stage, *_ in stages}
        colours = {stage: colour for stage, colour in OF_STAGES.items() if stage in present}
        marks: list[Artist] = [Patch(color=colour, label=name.replace("_", "-")) for name, colour in colours.items()]
        if resumed:
            marks.append(Line2D([], [], color=style.GREY, linestyle=":", label="stopped and resumed"))
        if marks:
            figure.legend(handles=marks, loc="outside upper left", ncols=len(marks), frameon=False, fontsize=9)
    return figure


def _running_time(table: pd.DataFrame) -> tuple[pd.Series, list[float]]:
    """Returns seconds since the first row without the time between sessions, and the starts of the later sessions."""
    seconds, begun, starts = pd.Series(0.0, table.index), 0.0, []
    for _, times in table.groupby("session", sort=False)["time"]:
        starts.append(begun)
        seconds[times.index] = begun + (times - times.iloc[0]).dt.total_seconds().clip(lower=0.0)
        begun = seconds[times.index].max()
    return seconds, starts[1:]


def _stages(table: pd.DataFrame, time: pd.Series) -> list[tuple[str, float, float]]:
    """Returns (stage, start, end); a row belongs to the time since the row before it."""
    parts = table[["session", "stage"]]
    number = parts.ne(parts.shift()).any(axis=1).cumsum()
    before = time.groupby(table["session"]).shift().fillna(time)
    return [
        (table["stage"][rows.index[0]], before[rows.index[0]], rows.iloc[-1])
        for _, rows in time.groupby(number)
        if table["stage"][rows.index[0]] in OF_STAGES and rows.iloc[-1] > before[rows.index[0]]
    ]


def _plot_over_time(
    axes: Axes, time: pd.Series, values: pd.Series, parts: list[pd.Series], colour: str, label: str
) -> None:
    """Draws a line per part, binned to its mean and range if it has many points."""
    known = values.notna()
    width = time.max() / MAX_POINTS if known.sum() > MAX_POINTS else 0.0
    marker = "o" if known.sum() <= 60 else None
    for _, of_part in values[known].groupby([part[known] for part in parts], sort=False):
        places = time[of_part.index]
        if width:
            binned = pd.DataFrame({"time": places, "value": of_part}).groupby((places // width).to_numpy())
            places, lowest, highest = binned["time"].mean(), binned["value"].min(), binned["value"].max()
            axes.fill_between(places, lowest, highest, color=colour, alpha=0.2, linewidth=0)
            of_part = binned["value"].mean()
        axes.plot(places, of_part, color=colour, linewidth=1.2, marker=marker, markersize=2.5, label=label or None)
        label = "_" + label  # one entry in the legend
