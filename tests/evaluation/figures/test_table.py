"""All figures of a run."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.logs import log_messages
from transfer_learning.evaluation.figures import table


@pytest.mark.parametrize(
    ("class_names", "line"),
    [
        (["cat", "dog"], None),
        (
            ["cat", "\U00013000\U00013001", "caf\U00013000"],
            "No installed font has all characters of 2 class names, so figures show their numbers: "
            "1 for \U00013000\U00013001, 2 for caf\U00013000.",
        ),
        (["\U00013000" * number for number in range(1, 9)], "8 class names, so figures show their numbers: 0 for"),
    ],
)
def test_class_names_without_a_font_get_one_line(class_names, line, tmp_path, monkeypatch):
    monkeypatch.setattr(table, "FIGURES", {})
    messages = log_messages()
    table.draw_figures(cast(Any, SimpleNamespace(evaluation={"class_names": class_names})), tmp_path)
    assert len(messages) == (line is not None) and all(line in message for message in messages)
    assert len(class_names) < 8 or ", ..." in messages[0]
