"""The reliability diagram shows calibration before and after temperature scaling."""

import numpy as np
import pytest

from transfer_learning.evaluation import calibration, predictions
from transfer_learning.evaluation.figures.reliability import reliability
from transfer_learning.evaluation.figures.style import save


def table_of(confidences, correct):
    """Two classes; each image is predicted with the given confidence of 0.5 or more."""
    confidences, correct = np.array(confidences), np.array(correct, bool)
    probabilities = np.stack([confidences, 1 - confidences], axis=1)
    ids = [str(i) for i in range(len(correct))]
    return predictions.table(ids, (~correct).astype(int), probabilities, ["a", "b"])


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_a_second_panel_shows_the_effect_of_the_temperature(tmp_path, temperature):
    measured = calibration.measure(table_of([0.6, 0.82, 0.84, 0.96, 1.0], [0, 1, 0, 1, 1]), temperature)
    figure = reliability(measured)
    assert len(figure.axes) == (2 if temperature == 1 else 4)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[0].startswith("uncalibrated") and titles[-1].endswith(f"ECE {100 * measured['error']:.1f} %")
    save(figure, tmp_path / "reliability.png")
