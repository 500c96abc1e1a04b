"""A person can read the pictures: nothing overlaps, mistakes stand out, odd input is drawn, the bytes are the same."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from transfer_learning.evaluation import figures, hardware_figure, predictions
from transfer_learning.machine import gpus, monitor

LONG = "A very long pharmaceutical product name, 500 mg, film-coated tablets"
HOSTILE = ["$x^2$", "a $ b", "<b>bold</b>", "two\nlines", "", " ", "錠剤", "💊", "\udcff", "%s {0} \\frac"]


def matrix_of(num_classes, support=100):
    """Nearly all right; class 0 is once taken for class 1."""
    matrix = np.diag([support] * num_classes)
    matrix[0, :2] = support - 1, 1
    return matrix


def history_of(frozen, fine_tune, **changes):
    num_epochs = frozen + fine_tune
    epoch = np.arange(1, num_epochs + 1)
    history = pd.DataFrame(
        {
            "phase": ["frozen"] * frozen + ["fine_tune"] * fine_tune,
            "epoch": epoch,
            "updates": 10 * epoch,
            "learning_rate": [1e-3] * frozen + [1e-5] * fine_tune,
            "loss": 1 / epoch,
            "accuracy": 1 - 0.5 / epoch,
            "val_loss": 1.1 / epoch,
            "val_accuracy": 1 - 0.6 / epoch,
        }
    )
    return history.assign(**changes)


def drawn(figure):
    """The figure after its layout, as `save` would draw it."""
    FigureCanvasAgg(figure).draw()
    return figure


def overlapping(figure, texts):
    """Pairs of texts that cover each other when the figure is drawn."""
    drawn(figure)
    texts = [text for text in texts if text.get_text()]
    left, low, right, high = np.array([text.get_window_extent().extents for text in texts]).T
    cover = (left < right[:, None]) & (left[:, None] < right) & (low < high[:, None]) & (low[:, None] < high)
    return [(texts[i].get_text(), texts[j].get_text()) for i, j in zip(*np.nonzero(np.triu(cover, 1)), strict=True)]


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(
    ("num_classes", "name"), [(2, "stop"), (2, LONG), (10, "class"), (10, LONG), (30, LONG), (100, "class"), (200, "c")]
)
def test_labels_of_a_confusion_matrix_do_not_overlap(num_classes, name, normalised):
    names = [f"{i} {name} {i}" for i in range(num_classes)]
    figure = figures.confusion_matrix(matrix_of(num_classes), names, normalised)
    axes = figure.axes[0]
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    assert overlapping(figure, [*labels, *axes.texts, axes.xaxis.label, axes.yaxis.label]) == []
    assert len(labels) == 2 * num_classes if num_classes <= 100 else 50 < len(labels) < 2 * num_classes
    assert max(figure.get_size_inches()) * figures.DOTS_PER_INCH < 5000


@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize("normalised", [False, True])
def test_one_mistake_in_a_hundred_is_darker_than_what_is_right(num_classes, normalised):
    figure = figures.confusion_matrix(matrix_of(num_classes), [str(i) for i in range(num_classes)], normalised)
    drawn(figure)
    right, mistakes = figure.axes[0].collections
    darkest = {}
    for name, mesh in (("right", right), ("mistakes", mistakes)):
        shown = ~np.ma.getmaskarray(mesh.get_array()).ravel()
        darkest[name] = mesh.get_facecolors()[shown][:, :3].mean(axis=1).min()
    assert darkest["mistakes"] < darkest["right"] - 0.2


@pytest.mark.parametrize(
    ("matrix", "normalised", "expected"),
    [
        ([[3, 1], [0, 12]], False, {(0, 0): "3", (1, 0): "1", (1, 1): "12"}),
        ([[3, 1], [0, 12]], True, {(0, 0): "75", (1, 0): "25", (1, 1): "100"}),
        ([[0, 0], [1, 9999]], True, {(0, 1): "<0.1", (1, 1): "99.9"}),
        ([[98, 2], [0, 0]], True, {(0, 0): "98", (1, 0): "2.0"}),
    ],
)
def test_numbers_stand_in_their_cells_true_class_by_row(matrix, normalised, expected):
    axes = figures.confusion_matrix(matrix, ["a", "b"], normalised).axes[0]
    texts = {tuple(int(place) for place in text.get_position()): text.get_text() for text in axes.texts}
    assert texts == expected
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert axes.yaxis_inverted()


@pytest.mark.parametrize("normalised", [False, True])
def test_hostile_names_are_drawn_as_they_are_or_by_number(tmp_path, normalised):
    figure = figures.confusion_matrix(np.eye(len(HOSTILE), dtype=int), HOSTILE, normalised)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown[:4] == ["$x^2$", "a $ b", "<b>bold</b>", "two lines"]
    assert [shown[4], shown[5], shown[8]] == ["class 4", "class 5", "class 8"]
    figures.save(figure, tmp_path / "matrix.png")


def test_long_names_that_differ_at_an_end_still_differ():
    shown = figures.readable([f"{LONG} A", f"{LONG} B", f"A {LONG}"])
    assert len(set(shown)) == 3
    assert all(len(name) <= figures.LONGEST_NAME for name in shown)


@pytest.mark.parametrize(
    "history",
    [
        history_of(6, 8),
        history_of(1, 0),
        history_of(0, 1),
        history_of(1, 1),
        history_of(5, 0),
        history_of(0, 5),
        history_of(100, 100),
        history_of(3, 3, learning_rate=[1e-3, 1e-3, 0.0, 1e-5, 1e-6, 0.0]),
        history_of(2, 0, learning_rate=0.0),
        history_of(3, 0, val_loss=np.nan, val_accuracy=np.nan),
        history_of(3, 0, loss=[1.0, np.inf, np.nan], val_loss=np.inf),
        history_of(3, 3).iloc[2:],
    ],
)
def test_curves_draw_every_kind_of_history(tmp_path, history):
    figure = figures.curves(history, {"frozen": 1, "fine_tune": 7})
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["loss", "accuracy", "learning rate\n(end of the epoch)"]
    figures.save(figure, tmp_path / "curves.png")


def test_curves_mark_the_change_of_phase_and_the_best_epochs():
    figure = figures.curves(history_of(6, 8), {"frozen": 5, "fine_tune": 13})
    loss = figure.axes[0]
    assert [text.get_text() for text in loss.texts] == ["frozen phase", "fine-tune phase"]
    assert [list(line.get_xdata()) for line in loss.lines if line.get_linestyle() == ":"] == [[6.5, 6.5]]
    best = next(line for line in loss.lines if line.get_label() == "best epoch of its phase")
    assert list(best.get_xdata()) == [5, 13]
    np.testing.assert_allclose(best.get_ydata(), [1.1 / 5, 1.1 / 13])
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "val", "best epoch of its phase"]
    assert overlapping(figure, [*loss.texts, *loss.get_legend().get_texts()]) == []


def test_no_line_leads_from_one_phase_to_the_next():
    for axes in figures.curves(history_of(2, 3)).axes:
        lengths = sorted({len(line.get_xdata()) for line in axes.lines if line.get_linestyle() != ":"})
        assert lengths == [2, 3]


def test_a_run_of_one_phase_names_it_and_marks_no_change():
    loss = figures.curves(history_of(0, 4)).axes[0]
    assert [text.get_text() for text in loss.texts] == ["fine-tune phase"]
    assert not [line for line in loss.lines if line.get_linestyle() == ":"]


@pytest.mark.parametrize(("num_images", "side"), [(1, 224), (2, 8), (5, 28), (6, 32), (25, 8), (4, 128)])
def test_image_grid_shows_each_image_with_its_caption_and_mark(tmp_path, num_images, side):
    random = np.random.default_rng(0)
    images = random.integers(256, size=(num_images, side, side, 3), dtype=np.uint8)
    correct = [i % 2 == 0 for i in range(num_images)]
    figure = figures.image_grid(images, [f"{LONG} {i}\ntrue: {LONG}" for i in range(num_images)], correct)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == num_images
    assert [axes.get_title()[0] for axes in shown] == ["✓" if right else "✗" for right in correct]
    assert len({axes.spines["top"].get_edgecolor() for axes in shown}) == min(2, num_images)
    for axes, image in zip(shown, images, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
    assert overlapping(figure, [axes.title for axes in shown]) == []
    figures.save(figure, tmp_path / "grid.png")


@pytest.mark.parametrize(("captions", "correct"), [([], []), (["a"], [True, False]), (["a", "b"], [True])])
def test_image_grid_wants_a_caption_and_a_mark_for_each_image(captions, correct):
    with pytest.raises(ValueError, match="expected"):
        figures.image_grid(np.zeros((len(captions), 8, 8, 3), np.uint8), captions, correct)


@pytest.mark.parametrize(("side", "shown"), [(8, 160), (28, 140), (160, 160), (224, 224)])
def test_what_was_looked_at_is_coloured_beside_the_image(tmp_path, side, shown):
    image = np.random.default_rng(0).integers(0, 100, (side, side, 3), np.uint8)
    attention = np.zeros((4, 4), np.float32)
    attention[0, 0] = 1
    pair = figures.beside_attention(image, attention)
    assert pair.shape == (shown, 2 * shown, 3) and pair.dtype == np.uint8
    factor = shown // side
    np.testing.assert_array_equal(pair[::factor, :shown:factor], image)
    bright, dark = pair[: shown // 8, shown : shown + shown // 8], pair[-shown // 4 :, -shown // 4 :]
    assert bright.mean() > dark.mean() + 50
    assert np.ptp(dark.astype(int), axis=2).max() == 0, "what speaks for nothing is grey"
    grid = figures.image_grid([pair] * 8, ["one\ntwo"] * 8, [True] * 8, wide=2)
    assert len(grid.axes) == 8 and grid.axes[1].get_position().y0 == grid.axes[0].get_position().y0
    figures.save(grid, tmp_path / "attention.png")


def test_captions_name_both_classes_and_never_round_up_to_certain():
    names, probabilities = ["right", "wrong", "\udcff"], [[0, 0.9998, 0.0002], [0, 0, 1]]
    table = predictions.table(["x", "y"], np.array([0, 2]), probabilities, names)
    assert figures.captions(table) == ["wrong 99.9 %\ntrue: right", "class 2 100.0 %\ntrue: class 2"]


def curves_of(num_epochs, start, **changes):
    """Learning curves of one side, as `comparison.curves` makes them."""
    epoch = np.arange(1, num_epochs + 1)
    table = pd.DataFrame({"epoch": epoch, "num_runs": 3, "seconds": 7.0 * epoch})
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        mean = start / epoch if "loss" in name else 1 - (1 - start) / epoch
        table[name], table[f"{name}_low"], table[f"{name}_high"] = mean, 0.9 * mean, 1.1 * mean
    return table.assign(**changes)


@pytest.mark.parametrize(
    "sides",
    [
        {"pretrained": curves_of(10, 0.7), "scratch": curves_of(10, 0.1)},
        {"a": curves_of(1, 0.7), LONG: curves_of(200, 0.1)},
        {f"side {number}": curves_of(5, number / 10) for number in range(9)},
        {"a": curves_of(3, 0.7, val_loss=np.nan, val_accuracy=np.nan), "b": curves_of(2, 0.2, val_loss=[np.inf, 1.0])},
        {"a": curves_of(3, 0.5, val_loss=[3.0, 2e4, 1.0]), "$x^2$": curves_of(3, 0.0)},
    ],
    ids=lambda sides: f"{len(sides)} sides",
)
def test_learning_curves_of_every_kind_of_side_are_drawn_and_named(tmp_path, sides):
    figure = drawn(figures.comparison(sides, reach=[0.5, 0.9]))
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "validation accuracy",
        "validation accuracy",
        "validation loss",
        "training accuracy",
    ]
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch", "seconds of training", "epoch", "epoch"]
    texts = figure.legends[0].get_texts()
    assert [text.get_text() for text in texts] == figures.readable(list(sides))
    assert overlapping(figure, texts) == []
    for axes in figure.axes[:2]:
        marked = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]
        assert marked == [0.5, 0.9]
    figures.save(figure, tmp_path / "curves.png")


def test_learning_curves_show_the_mean_within_the_range_of_the_seeds():
    axes = figures.comparison({"one": curves_of(4, 0.2), "two": curves_of(4, 0.6)}).axes[0]
    for table, line, band in zip((curves_of(4, 0.2), curves_of(4, 0.6)), axes.lines, axes.collections, strict=True):
        np.testing.assert_allclose(line.get_ydata(), table["val_accuracy"])
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.min() == pytest.approx(table["val_accuracy_low"].min())
        assert heights.max() == pytest.approx(table["val_accuracy_high"].max())


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


HOST = ["images/s", "learning rate", "in use", "memory in use", "disks, MB/s"]
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
    figure = hardware_figure.hardware(table)
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == panels
    assert figure.axes[-1].get_xlabel() == f"{unit} of running"
    texts = [axes.yaxis.label for axes in figure.axes]
    texts += [text for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    assert overlapping(figure, [*texts, *(text for legend in figure.legends for text in legend.get_texts())]) == []


def test_hardware_leaves_the_time_between_sessions_out_and_marks_it():
    figure = hardware_figure.hardware(watched(61, step=60.0, sessions=(1, 2)))
    assert figure.axes[0].get_xlim() == (0, 120)  # minutes
    (mark,) = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert list(mark.get_xdata()) == [60, 60]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][-1] == "stopped and resumed"


def test_hardware_shades_the_extremes_of_what_it_thins_out():
    table = watched(5000)
    table.loc[2222, "cpu_percent"] = 99.75
    axes = next(axes for axes in hardware_figure.hardware(table).axes if axes.get_ylabel() == "in use")
    shaded = max(path.vertices[:, 1].max() for area in axes.collections for path in area.get_paths())
    assert shaded == 99.75
    longest = max(len(line.get_xdata()) for line in axes.lines)
    assert 100 < longest <= hardware_figure.MOST_POINTS + 1


def test_hardware_marks_where_a_clock_was_lowered():
    table = watched(20, num_gpus=2)
    table.loc[[4, 5], "gpu1_throttled_by"] = "heat"
    axes = next(axes for axes in hardware_figure.hardware(table).axes if axes.get_ylabel() == "GPU clock, MHz")
    marks = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert sorted(place for line in marks for place in line.get_xdata()) == [4, 5]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["GPU 0", "GPU 1", "lowered"]


FIGURES = {
    "hardware": lambda: hardware_figure.hardware(watched(30, num_gpus=1)),
    "matrix": lambda: figures.confusion_matrix(matrix_of(10), [f"class {i}" for i in range(10)], True),
    "curves": lambda: figures.curves(history_of(3, 2), {"frozen": 2}),
    "comparison": lambda: figures.comparison({"a": curves_of(3, 0.5), "b": curves_of(2, 0.1)}, [0.8]),
    "grid": lambda: figures.image_grid(np.full((5, 8, 8, 3), 99, np.uint8), list("abcde"), [True] * 5),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_the_same_input_gives_the_same_bytes_whatever_the_users_settings(tmp_path, make):
    figures.save(make(), tmp_path / "one.png")
    own = {"font.size": 22, "figure.facecolor": "black", "savefig.dpi": 50, "savefig.transparent": True}
    with matplotlib.rc_context(own):
        figures.save(make(), tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        assert "Software" not in picture.info
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert pyplot.get_fignums() == []
