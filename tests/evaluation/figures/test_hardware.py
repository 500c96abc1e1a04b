"""The figure of resource usage draws what was measured, and marks what happened."""

import numpy as np
import pandas as pd
import pytest

from tests.support.figures import overlapping
from transfer_learning.evaluation.figures.hardware import MAX_POINTS, hardware
from transfer_learning.machine import gpus, monitor


def watched(num_rows, num_gpus=0, step=1.0, sessions=(1,), **changes):
    """What a run of some rows, so many seconds apart, leaves of a machine with so many GPUs; a day between sessions."""
    rows, start = [], pd.Timestamp("2026-01-31T12:00:00", tz="UTC")
    for session in sessions:
        times = start + pd.to_timedelta(step * np.arange(num_rows), "s")
        stages = np.array(["decode", "frozen", "fine_tune", "evaluate"])[np.arange(num_rows) * 4 // num_rows]
        rows.append(pd.DataFrame({"time": times, "session": float(session), "stage": stages}))
        start = times[-1] + pd.Timedelta("1 day")
    table = pd.concat(rows, ignore_index=True)
    wave = 50 + 40 * np.sin(np.arange(len(table)) / 7)
    for number, name in enumerate(monitor.COLUMNS[3:]):
        table[name] = wave + number
    table["learning_rate"] = 1e-3
    table.loc[~table["stage"].isin(["frozen", "fine_tune"]), ["images_per_second", "learning_rate"]] = np.nan
    table[["memory_total_mb", "memory_available_mb", "process_memory_mb"]] = [16000.0, 9000.0, 2000.0]
    for gpu in range(num_gpus):
        for number, name in enumerate(gpus.FIGURES):
            table[f"gpu{gpu}_{name}"] = wave + number + gpu
        table[f"gpu{gpu}_throttled_by"] = "none"
    return table.assign(**changes)


HOST = ["images/s", "learning rate", "utilisation", "memory in use", "disk, MB/s"]
OF_GPUS = ["GPU, °C", "GPU, W", "GPU clock, MHz"]


@pytest.mark.parametrize(
    ("table", "panels", "unit"),
    [
        (watched(1), HOST[3:4], "seconds"),
        (watched(2), HOST[2:], "seconds"),
        (watched(12), HOST, "seconds"),
        (watched(12, num_gpus=2), HOST + OF_GPUS, "seconds"),
        (watched(500, num_gpus=1, step=10.0, sessions=(1, 2)), HOST + OF_GPUS, "minutes"),
        (watched(700, num_gpus=8, step=60.0, sessions=(1, 2, 5)), HOST + OF_GPUS, "hours"),
        (watched(12, num_gpus=1, gpu0_watts=np.nan), [name for name in HOST + OF_GPUS if name != "GPU, W"], "seconds"),
        (watched(12, disk_read_mb_per_second=np.nan, disk_write_mb_per_second=np.nan), HOST[:4], "seconds"),
        (watched(12, learning_rate=np.logspace(-6, -2, 12)), HOST, "seconds"),
        (watched(12, stage=""), HOST, "seconds"),
        (watched(3, **dict.fromkeys(monitor.COLUMNS[3:], np.nan)), [], "seconds"),
    ],
)
def test_hardware_draws_what_was_measured(table, panels, unit):
    if len(table) < 3:  # nothing is known of the time before the first row
        changing = ["cpu_percent", "process_cpu_percent", "disk_read_mb_per_second", "disk_write_mb_per_second"]
        table.loc[0, changing] = np.nan
        table[["images_per_second", "learning_rate"]] = np.nan
    figure = hardware(table)
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == panels
    assert figure.axes[-1].get_xlabel() == f"time, {unit}"
    texts = [axes.yaxis.label for axes in figure.axes]
    texts += [text for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    assert overlapping(figure, [*texts, *(text for legend in figure.legends for text in legend.get_texts())]) == []


def test_hardware_omits_the_time_between_sessions_and_marks_it():
    figure = hardware(watched(61, step=60.0, sessions=(1, 2)))
    assert figure.axes[0].get_xlim() == (0, 120)  # minutes
    (mark,) = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert list(mark.get_xdata()) == [60, 60]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][-1] == "stopped and resumed"


def test_hardware_shades_the_range_of_binned_samples():
    table = watched(5000)
    table.loc[2222, "cpu_percent"] = 99.75
    axes = next(axes for axes in hardware(table).axes if axes.get_ylabel() == "utilisation")
    shaded = max(path.vertices[:, 1].max() for area in axes.collections for path in area.get_paths())
    assert shaded == 99.75
    longest = max(len(line.get_xdata()) for line in axes.lines)
    assert 100 < longest <= MAX_POINTS + 1


def test_hardware_marks_throttling():
    table = watched(20, num_gpus=2)
    table.loc[[4, 5], "gpu1_throttled_by"] = "heat"
    axes = next(axes for axes in hardware(table).axes if axes.get_ylabel() == "GPU clock, MHz")
    marks = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert sorted(place for line in marks for place in line.get_xdata()) == [4, 5]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["GPU 0", "GPU 1", "throttled"]
