"""The survey: counts and sizes out of file headers, on which the defaults for a person's own images rest."""

import numpy as np
import pytest
from PIL import Image

from transfer_learning.datasets import survey as survey_module
from transfer_learning.datasets.dataset import Dataset, Example
from transfer_learning.datasets.survey import Survey, survey


def dataset_of(rows):
    """A dataset of rows (label, split, content)."""
    examples = [Example(str(number), *row) for number, row in enumerate(rows)]
    return Dataset("rows", tuple(sorted({label for label, *_ in rows})), tuple(examples))


def array(width, height=100):
    return np.zeros((height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a", "", array(10))] * 3 + [("b", "", array(30))] * 2, Survey(5, 2, 2, 3, 10)),
        (
            [("a", "train", array(10))] * 2 + [("b", "train", array(10))] + [("b", "test", array(10))] * 9,
            Survey(3, 2, 1, 2, 10),
        ),
        ([("a", "train", array(20))] + [("b", "val", array(20))] * 4, Survey(1, 2, 0, 1, 20)),
        ([("a", "", array(500, 40)), ("b", "", array(40, 500)), ("b", "", array(40, 40))], Survey(3, 2, 1, 2, 40)),
    ],
)
def test_counts_what_may_be_trained_on(rows, expected):
    assert survey(dataset_of(rows)) == expected


def test_files_are_measured_by_their_headers_and_unreadable_ones_are_left_out(tmp_path):
    for number, width in enumerate((50, 60, 70)):
        Image.new("RGB", (width, 200)).save(tmp_path / f"{number}.png")
    cut = (tmp_path / "2.png").read_bytes()[:50]  # the header alone
    (tmp_path / "2.png").write_bytes(cut)
    (tmp_path / "text.png").write_text("no image")
    names = ("0.png", "1.png", "2.png", "text.png")
    rows = [("ab"[number % 2], "", tmp_path / name) for number, name in enumerate(names)]
    assert survey(dataset_of([*rows, ("a", "", tmp_path / "missing.png")])) == Survey(5, 2, 2, 3, 60)


def test_without_a_readable_image_the_size_is_unknown(tmp_path):
    assert survey(dataset_of([("a", "", tmp_path / "1.png"), ("b", "", tmp_path / "2.png")])).short_side == 0


@pytest.mark.parametrize("count", [199, 200, 201, 5000])
def test_opens_at_most_200_files_spread_over_all_of_them(count, monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(survey_module, "_short_side", lambda path: opened.append(int(path.name)) or 100)
    result = survey(dataset_of([("ab"[number % 2], "", tmp_path / str(number)) for number in range(count)]))
    assert result.short_side == 100 and len(opened) <= 200 <= 2 * len(opened)
    assert min(opened) == 0 and max(opened) >= count * 0.99 - 1
