"""Learning curves of every kind of history, and of the variants of a comparison."""

import numpy as np
import pandas as pd
import pytest

from tests.support.figures import LONG, drawn, overlapping
from transfer_learning.evaluation.figures.curves import comparison, curves
from transfer_learning.evaluation.figures.style import readable, save


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
    figure = curves(history, {"frozen": 1, "fine_tune": 7})
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["loss", "accuracy", "learning rate\n(end of epoch)"]
    save(figure, tmp_path / "curves.png")


def test_curves_mark_the_change_of_phase_and_the_best_epochs():
    figure = curves(history_of(6, 8), {"frozen": 5, "fine_tune": 13})
    loss = figure.axes[0]
    assert [text.get_text() for text in loss.texts] == ["frozen phase", "fine-tune phase"]
    assert [list(line.get_xdata()) for line in loss.lines if line.get_linestyle() == ":"] == [[6.5, 6.5]]
    best = next(line for line in loss.lines if line.get_label() == "best epoch of the phase")
    assert list(best.get_xdata()) == [5, 13]
    np.testing.assert_allclose(best.get_ydata(), [1.1 / 5, 1.1 / 13])
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "val", "best epoch of the phase"]
    assert overlapping(figure, [*loss.texts, *loss.get_legend().get_texts()]) == []


def test_no_line_leads_from_one_phase_to_the_next():
    for axes in curves(history_of(2, 3)).axes:
        lengths = sorted({len(line.get_xdata()) for line in axes.lines if line.get_linestyle() != ":"})
        assert lengths == [2, 3]


def test_a_run_of_one_phase_names_it_and_marks_no_change():
    loss = curves(history_of(0, 4)).axes[0]
    assert [text.get_text() for text in loss.texts] == ["fine-tune phase"]
    assert not [line for line in loss.lines if line.get_linestyle() == ":"]


def curves_of(num_epochs, start, **changes):
    """Learning curves of one variant, as `comparison.curves` makes them."""
    epoch = np.arange(1, num_epochs + 1)
    table = pd.DataFrame({"epoch": epoch, "num_runs": 3, "seconds": 7.0 * epoch})
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        mean = start / epoch if "loss" in name else 1 - (1 - start) / epoch
        table[name], table[f"{name}_low"], table[f"{name}_high"] = mean, 0.9 * mean, 1.1 * mean
    return table.assign(**changes)


@pytest.mark.parametrize(
    "variants",
    [
        {"pretrained": curves_of(10, 0.7), "scratch": curves_of(10, 0.1)},
        {"a": curves_of(1, 0.7), LONG: curves_of(200, 0.1)},
        {f"variant {number}": curves_of(5, number / 10) for number in range(9)},
        {"a": curves_of(3, 0.7, val_loss=np.nan, val_accuracy=np.nan), "b": curves_of(2, 0.2, val_loss=[np.inf, 1.0])},
        {"a": curves_of(3, 0.5, val_loss=[3.0, 2e4, 1.0]), "$x^2$": curves_of(3, 0.0)},
    ],
    ids=lambda variants: f"{len(variants)} variants",
)
def test_learning_curves_of_every_kind_of_variant_are_drawn_and_named(tmp_path, variants):
    figure = drawn(comparison(variants, target_accuracies=[0.5, 0.9]))
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "validation accuracy",
        "validation accuracy",
        "validation loss",
        "training accuracy",
    ]
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch", "seconds of training", "epoch", "epoch"]
    texts = figure.legends[0].get_texts()
    assert [text.get_text() for text in texts] == readable(list(variants))
    assert overlapping(figure, texts) == []
    for axes in figure.axes[:2]:
        marked = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]
        assert marked == [0.5, 0.9]
    save(figure, tmp_path / "curves.png")


def test_learning_curves_show_the_mean_within_the_range_of_the_seeds():
    axes = comparison({"one": curves_of(4, 0.2), "two": curves_of(4, 0.6)}).axes[0]
    for table, line, band in zip((curves_of(4, 0.2), curves_of(4, 0.6)), axes.lines, axes.collections, strict=True):
        np.testing.assert_allclose(line.get_ydata(), table["val_accuracy"])
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.min() == pytest.approx(table["val_accuracy_low"].min())
        assert heights.max() == pytest.approx(table["val_accuracy_high"].max())
