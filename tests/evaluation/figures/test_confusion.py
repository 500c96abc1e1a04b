"""Labels do not overlap, and a few errors stand out."""

import numpy as np
import pytest

from tests.support.figures import HOSTILE, LONG, drawn, overlapping
from transfer_learning.evaluation.figures.confusion import confusion_matrix
from transfer_learning.evaluation.figures.style import DOTS_PER_INCH, save


def matrix_of(num_classes, support=100):
    """Nearly all right; class 0 is once taken for class 1."""
    matrix = np.diag([support] * num_classes)
    matrix[0, :2] = support - 1, 1
    return matrix


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(
    ("num_classes", "name"), [(2, "stop"), (2, LONG), (10, "class"), (10, LONG), (30, LONG), (100, "class"), (200, "c")]
)
def test_labels_of_a_confusion_matrix_do_not_overlap(num_classes, name, normalised):
    names = [f"{i} {name} {i}" for i in range(num_classes)]
    figure = confusion_matrix(matrix_of(num_classes), names, normalised)
    axes = figure.axes[0]
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    assert overlapping(figure, [*labels, *axes.texts, axes.xaxis.label, axes.yaxis.label]) == []
    assert len(labels) == 2 * num_classes if num_classes <= 100 else 50 < len(labels) < 2 * num_classes
    assert max(figure.get_size_inches()) * DOTS_PER_INCH < 5000


@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize("normalised", [False, True])
def test_one_mistake_in_a_hundred_is_darker_than_what_is_right(num_classes, normalised):
    figure = confusion_matrix(matrix_of(num_classes), [str(i) for i in range(num_classes)], normalised)
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
def test_numbers_are_in_their_cells_true_class_by_row(matrix, normalised, expected):
    axes = confusion_matrix(matrix, ["a", "b"], normalised).axes[0]
    texts = {tuple(int(place) for place in text.get_position()): text.get_text() for text in axes.texts}
    assert texts == expected
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert axes.yaxis_inverted()


@pytest.mark.parametrize("normalised", [False, True])
def test_hostile_names_are_drawn_as_they_are_or_by_number(tmp_path, normalised):
    figure = confusion_matrix(np.eye(len(HOSTILE), dtype=int), HOSTILE, normalised)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown[:4] == ["$x^2$", "a $ b", "<b>bold</b>", "two lines"]
    assert [shown[4], shown[5], shown[8]] == ["class 4", "class 5", "class 8"]
    save(figure, tmp_path / "matrix.png")
