"""Tables of predictions as files: every format gives back the rows, whatever the names are."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from transfer_learning import predict
from transfer_learning.errors import MissingExtra, UserError
from transfer_learning.experiments import prediction_table
from transfer_learning.experiments.prediction import columns
from transfer_learning.experiments.prediction_table import FORMATS, format_of, table_writer

ROWS = [
    ("a,b.jpg", 'quotes "', 0.123456791, True, "", "two\nlines", 0.1),
    ("emoji 🙂.png", "", math.nan, False, "the file is empty", "", math.nan),
]


@pytest.mark.parametrize("name", FORMATS)
def test_rows_come_back(name, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_table, "ROWS_PER_GROUP", 2)
    path = tmp_path / "below" / f"found.{name}"
    with table_writer(name, path, columns(2)) as write:
        for row in ROWS * 2:
            write(row)
        assert not path.exists()
    read = {"csv": pd.read_csv, "jsonl": lambda path: pd.read_json(path, lines=True), "parquet": pd.read_parquet}[name]
    table = read(path)
    assert list(table.columns) == [*"file class confidence rejected problem class_2 confidence_2".split()]
    assert len(table) == 4 and list(table["rejected"]) == [True, False] * 2
    texts = table[["file", "class", "problem", "class_2"]].fillna("")
    assert [tuple(row) for row in texts.values[:2]] == [(row[0], row[1], row[4], row[5]) for row in ROWS]
    assert table["confidence"][0] == pytest.approx(0.123456791, abs=1e-8) and math.isnan(table["confidence"][1])


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), table_writer("csv", tmp_path / "found.csv", columns(1)) as write:
        write(ROWS[0][:5])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_utf8_come_through(tmp_path, capsys):
    row = ("odd\udcff.png", "class\udcff", 0.5, False, "")
    for name in FORMATS:
        with table_writer(name, tmp_path / name, columns(1)) as write:
            write(row)
    assert b"odd\xff.png,class\xff" in (tmp_path / "csv").read_bytes()
    assert json.loads((tmp_path / "jsonl").read_text())["file"] == row[0]
    assert pd.read_parquet(tmp_path / "parquet")["file"][0] == "odd?.png"


def test_the_format_is_that_of_the_name_unless_it_is_given():
    assert format_of(None, None) == "csv" == format_of(None, Path("a.txt"))
    assert format_of(None, Path("a.JSONL")) == "jsonl" and format_of("csv", Path("a.parquet")) == "csv"
    assert format_of("jsonl", Path("a.json")) == "jsonl"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--format", "parquets"], "no format parquets. Did you mean parquet?"),
        (["--format", "parquet"], "needs a file; give one with --output"),
        (["--top-k", "0"], "--top-k 0 names no class"),
        (["--tta", "crops"], "predict has flip"),
        (["--output", "a.JPG"], "--output a.JPG has the name of an image, and a table would replace it"),
        (["--output", "a.png", "--format", "csv"], "has the name of an image"),
        (["--output", "a.json"], "asks for the format json; give a name that ends with csv, jsonl, parquet"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(flags, words):
    with pytest.raises(UserError) as caught:
        predict.parse(["run", "image.png", *flags])
    assert words in str(caught.value)


def test_a_table_of_images_is_not_replaced_by_its_predictions(tmp_path):
    (tmp_path / "images.csv").write_text("path\n")
    with pytest.raises(UserError, match="is also given as input"):
        predict.parse(["run", "a.png", str(tmp_path / "images.csv"), "--output", f"{tmp_path}/./images.csv"])


def test_parquet_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with (
        pytest.raises(MissingExtra, match=r"transfer-learning\[parquet\]"),
        table_writer("parquet", tmp_path / "a.parquet", columns(1)),
    ):
        pass
