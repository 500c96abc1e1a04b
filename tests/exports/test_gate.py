"""The gate measures a file by its own runtime and refuses one that differs from the recorded predictions."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from transfer_learning.errors import UserError
from transfer_learning.evaluation import predictions
from transfer_learning.exports import gate
from transfer_learning.exports.formats import FORMATS, Format, chosen_formats, format_of
from transfer_learning.exports.images import load_images
from transfer_learning.exports.metadata import Metadata
from transfer_learning.storage.files import read_json, write_json
from transfer_learning.storage.run_directory import RunDir

ONNX = FORMATS["onnx"]


@pytest.fixture(scope="module")
def images(run):
    return load_images(run.run_dir)


def with_probabilities(images, change):
    recorded = images.recorded.copy()
    columns = recorded.columns[4:]
    recorded[columns] = change(recorded[columns].to_numpy()).astype(np.float32)
    recorded["predicted"] = np.array(predictions.class_names(recorded), dtype=object)[
        recorded[columns].to_numpy().argmax(axis=1)
    ]
    return images._replace(recorded=recorded)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_passes_and_is_measured(name, exported, run):
    rows = {row["format"]: row for row in json.loads((exported / "export.json").read_text())["formats"]}
    row = rows[name]
    assert row["problem"] == "" and row["num_images"] == run.evaluation["num_examples"]
    assert row["largest_difference"] <= (1e-4 if FORMATS[name].is_float else 0.1)
    assert not FORMATS[name].is_float or row["agreement"] == 1
    assert row["accuracy_interval"][0] <= row["accuracy"] <= row["accuracy_interval"][1]
    assert min(row["images_per_second"].values()) > 0 and row["start_up_seconds"] > 0 and row["bytes"] > 10_000
    assert row["runtime"].rpartition(" ")[2][0].isdigit() and row["weights_sha256"] == run.evaluation["weights_sha256"]


def test_integers_take_less_space(files):
    assert files["litert-int8"].stat().st_size < 0.4 * files["litert"].stat().st_size


def test_a_difference_above_the_limit_of_a_float_format_is_a_problem(images, files):
    shifted = with_probabilities(images, lambda values: values * 0.99 + 0.01 / values.shape[1])
    result = gate.check(ONNX, files["onnx"], shifted, int8_limit=1.0, seconds=0.01)
    assert "differs from the recorded one by" in result["problem"] and "more than 0.0001" in result["problem"]
    assert gate.check(ONNX, files["onnx"], shifted._replace(limit=0.01), 1.0, seconds=0.01)["problem"] == ""


def test_an_integer_format_fails_by_its_loss_of_accuracy_alone():
    row = replace(FORMATS["litert-int8"])
    result = {"largest_difference": 0.5, "difference": -0.03, "limit": 0.02}
    assert gate.problem_of(row, result) == "its accuracy is 3.00 points lower, more than 2"
    assert gate.problem_of(row, result | {"limit": 0.03}) == ""


def test_a_snippet_that_prints_something_else_or_fails_is_a_problem(images, files, monkeypatch):
    predictor = gate.Predictor(files["onnx"])
    seconds, problem = gate.run_snippet(ONNX, files["onnx"], predictor, images)
    assert problem == "" and seconds > 0
    for text, expected in (
        ("print('cat', 0.5)", "printed cat 0.5 for an image of"),
        ("raise OSError('no camera')", "ended with OSError: no camera"),
    ):
        monkeypatch.setattr(Format, "snippet", lambda *_, text=text: text)
        assert expected in gate.run_snippet(ONNX, files["onnx"], predictor, images)[1]


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_snippet_has_at_most_12_lines_and_is_python(name, resize):
    text = FORMATS[name].snippet(Metadata(("a", "b"), 160, resize))
    assert len(text.splitlines()) <= 12 and max(map(len, text.splitlines())) <= 100
    compile(text, name, "exec")
    assert FORMATS[name].path in text


def test_changed_and_missing_images_are_refused_and_moved_ones_found(run, images, files, photos_folder, tmp_path):
    path = photos_folder / images.recorded["id"][0]
    content = path.read_bytes()
    try:
        path.write_bytes(content + b"0")
        with pytest.raises(UserError, match="has changed since"):
            load_images(run.run_dir)
        path.unlink()
        with pytest.raises(UserError, match="lacks 1 of"):
            load_images(run.run_dir)
    finally:
        path.write_bytes(content)
    moved = shutil.copytree(photos_folder, tmp_path / "moved" / "deeper")
    again = load_images(run.run_dir, str(moved.parent))
    assert (again.pixels == images.pixels).all()
    other = images.recorded.rename(columns={images.recorded.columns[4]: "another class"})
    with pytest.raises(UserError, match="other classes"):
        gate.check(ONNX, files["onnx"], images._replace(recorded=other), 1.0, seconds=0.01)


def test_images_are_in_the_columns_that_the_run_was_given(run, images, photos_folder, tmp_path):
    photos, table = sorted(photos_folder.rglob("*.png")), tmp_path / "photos.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("where", "what"), *((path, path.parent.name) for path in photos)])
    copy = RunDir(shutil.copytree(run.run_dir.path, tmp_path / "run"))
    columns = {"dataset": str(table), "path_column": "where", "label_column": "what"}
    write_json(copy.config, read_json(copy.config) | columns)
    assert (load_images(copy).pixels == images.pixels).all()


def test_formats_are_chosen_by_name_and_known_by_suffix_or_content(exported, tmp_path):
    assert [row.name for row in chosen_formats("litert, onnx")] == ["onnx", "litert"]
    assert [row.name for row in chosen_formats("all")] == list(FORMATS)
    with pytest.raises(UserError, match="no format 'onx'. Did you mean onnx"):
        chosen_formats("onnx,onx")
    assert format_of(exported / "openvino" / "model.xml").name == format_of(exported / "openvino").name == "openvino"
    (tmp_path / "1").symlink_to(exported / "saved_model")  # as TensorFlow Serving wants it
    assert format_of(tmp_path / "1").name == "saved_model"
