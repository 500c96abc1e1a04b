"""The figure of the search of a learning rate."""

import pytest

from transfer_learning.evaluation.figures.rate_search import rate_search

TEST = [{"learning_rate": 1e-4 * 2**step, "loss": 1.0} for step in range(5)]
ROUNDS = [{"learning_rate": 1e-4 * 3**step, "steps": 16, "val_loss": 0.5} for step in range(4)]
ROUNDS += [
    {"learning_rate": 1e-4, "steps": 32, "val_loss": 0.4},
    {"learning_rate": 3e-4, "steps": 32, "val_loss": None},
]


@pytest.mark.parametrize(
    ("test", "rounds", "expected"),
    [(TEST, ROUNDS, [5, 4, 1, 2]), (TEST, [], [5, 2]), ([], [], [0, 2])],
    ids=["whole", "only one rate was left", "diverged at once"],
)
def test_each_round_is_a_line_and_what_has_diverged_is_left_out(test, rounds, expected):
    figure = rate_search({"range_test": test, "rounds": rounds, "learning_rate": 1e-4})
    (axes,) = figure.axes
    assert [len(line.get_xdata()) for line in axes.lines] == expected
    assert axes.get_xscale() == "log"
    figure.canvas.draw()
