"""The model card: the Hub's header, the results with intervals, and the programs that the gate ran."""

import re

import pytest
import yaml

from transfer_learning.exports.formats import FORMATS
from transfer_learning.exports.model_card import remarks


@pytest.fixture(scope="module")
def card(exported):
    return (exported / "README.md").read_text(encoding="utf-8")


def test_the_header_holds_the_results_as_the_hub_reads_them(card, run):
    from huggingface_hub import ModelCardData

    header = yaml.safe_load(card.split("---\n")[1])
    assert header["pipeline_tag"] == "image-classification" and header["library_name"] == "keras"
    (result,) = ModelCardData(**header).eval_results[:1]
    assert result.metric_type == "accuracy"
    assert result.metric_value == pytest.approx(run.evaluation["accuracy"], abs=1e-4)
    for title, name in (("accuracy", "accuracy"), ("macro F1", "macro_f1")):  # the header has no field for an interval
        value, (low, high) = run.evaluation[name], run.evaluation[f"{name}_interval"]
        assert f"\n| {title} | {100 * value:.2f} % | {100 * low:.1f} to {100 * high:.1f} % |\n" in card


def test_the_card_has_each_file_each_class_and_the_programs_of_the_gate(card, run):
    metadata_of = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(metadata_of) == len(FORMATS)
    from transfer_learning.exports.metadata import Metadata

    metadata = Metadata(tuple(run.class_names), run.config.stored_size, run.config.resize)
    assert metadata_of == [row.snippet(metadata) for row in FORMATS.values()]
    for heading in ("Results", "Files", "Use", "Calibration and rejection", "Data", "Limits", "Licences"):
        assert f"\n## {heading}\n" in card
    table = card[card.index("Classes by position") : card.index("## Limits")]
    rows = re.findall(r"^\| \d+ \|.*\|$", table, re.MULTILINE)
    assert len(rows) == len(run.class_names)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)  # names do not break the table
    assert run.evaluation["weights_sha256"] in card and "95 % of the validation images reach" in card


def test_the_card_says_where_integers_are_slower_or_worse():
    rows = [
        {"format": "litert", "file": "model.tflite", "images_per_second": {"1": 100.0}},
        {
            "format": "litert-int8",
            "file": "model_int8.tflite",
            "images_per_second": {"1": 80.0},
            "difference": -0.01,
            "difference_interval": [-0.02, 0.0],
        },
    ]
    (sentence,) = remarks(rows)
    assert "is slower than `model.tflite`" in sentence and "-1.00 points" in sentence and "-2.00 to +0.00" in sentence
    assert remarks(rows[:1]) == []
