"""The predictor of exported files gives the probabilities that the run recorded, without TensorFlow."""

import pickle
import shutil
import sys

import numpy as np
import pandas as pd
import pytest

import transfer_learning as tl
from tests.support import run_without
from transfer_learning.errors import UserError
from transfer_learning.exports.formats import FORMATS
from transfer_learning.exports.predictor import predictor_of_run
from transfer_learning.storage.files import write_json
from transfer_learning.storage.run_directory import RunDir

WITHOUT_TENSORFLOW = ("onnx", "litert")


@pytest.mark.parametrize("name", FORMATS)
def test_a_test_image_gets_the_probabilities_that_the_run_recorded(name, files, recorded, photos_folder):
    table, expected = recorded
    predictor = tl.Predictor(files[name], threads=1)
    images = np.stack([predictor.open_image(photos_folder / id) for id in table["id"]])
    assert images.dtype == np.uint8
    probabilities = predictor.probabilities(images)
    assert probabilities.dtype == np.float32
    assert abs(probabilities - expected).max() <= (1e-4 if FORMATS[name].is_float else 0.05)
    # Alone, and after a batch of another size, as in a batch.
    assert abs(predictor.probabilities(images[:1]) - probabilities[:1]).max() < 1e-5


@pytest.mark.parametrize("name", FORMATS)
def test_class_names_of_any_kind_and_the_contract_are_in_the_file(name, files, run):
    predictor = tl.Predictor(files[name])
    assert predictor.class_names == tuple(run.class_names) and "\n" in "".join(predictor.class_names)
    assert (predictor.image_size, predictor.resize) == (run.config.stored_size, "pad")
    assert predictor.metadata.weights_sha256 == run.evaluation["weights_sha256"]
    assert 0 < predictor.rejection_threshold < 1


def test_predict_takes_files_folders_bytes_and_arrays_and_gives_a_reason_for_what_is_unreadable(
    files, recorded, photos_folder, tmp_path
):
    table, expected = recorded
    path = photos_folder / table["id"][0]
    (tmp_path / "not_an_image.png").write_text("text")
    pixels = np.zeros((40, 30, 3), np.uint8)
    predictor = tl.Predictor(files["litert"])
    found = predictor.predict([path, path.read_bytes(), pixels, tmp_path / "not_an_image.png", b""])
    assert list(found["file"]) == [str(path), "", "", str(tmp_path / "not_an_image.png"), ""]
    assert list(found["class"][:2]) == [table["predicted"][0]] * 2 and (found["class"][3:] == "").all()
    assert found["confidence"][0] == pytest.approx(expected[0].max(), abs=1e-4)
    assert (found["rejected"] == (found["confidence"] < predictor.rejection_threshold)).all()
    assert list(found["problem"][:3]) == [""] * 3 and "cannot be decoded" in found["problem"][3]
    assert found["problem"][4] == "the file is empty" and found["confidence"][3:].isna().all()
    assert len(predictor.predict(photos_folder)) == 56
    assert len(predictor.predict([])) == 0
    with pytest.raises(UserError, match="not_an_image.png cannot be used: cannot be decoded"):
        predictor.open_image(tmp_path / "not_an_image.png")


def test_another_process_opens_the_file_again(files, recorded, photos_folder):
    predictor, path = tl.Predictor(files["litert"], threads=1), photos_folder / recorded[0]["id"][0]
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(predictor)).predict(path), predictor.predict(path))


def test_images_of_another_shape_or_dtype_are_refused(files):
    predictor = tl.Predictor(files["onnx"])
    with pytest.raises(ValueError, match="Expected uint8"):
        predictor.probabilities(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="Expected uint8"):
        predictor.probabilities(np.zeros((1, 16, 16, 3), np.float32))


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_a_missing_damaged_or_foreign_file_is_one_sentence(name, tmp_path, files):
    with pytest.raises(UserError, match="There is no file"):
        tl.Predictor(tmp_path / name)
    content = files[{"model.onnx": "onnx", "model.tflite": "litert"}[name]].read_bytes()
    for damaged in (b"", b"text", content[:1000]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be used as"):
            tl.Predictor(tmp_path / name)
    with pytest.raises(UserError, match="not an exported file"):
        tl.Predictor(tmp_path / "model.pt")


@pytest.mark.parametrize("name", WITHOUT_TENSORFLOW)
def test_predicting_needs_no_tensorflow(name, files, recorded, photos_folder):
    table, expected = recorded
    code = "import transfer_learning as tl\nprint(tl.Predictor(sys.argv[1]).predict(sys.argv[2])['confidence'][0])"
    modules = "tensorflow keras scipy sklearn matplotlib"
    done = run_without(modules, code, files[name], photos_folder / table["id"][0])
    assert done.stderr == ""
    assert float(done.stdout) == pytest.approx(expected[0].max(), abs=1e-4)


def test_a_place_without_images_is_one_sentence(files, tmp_path):
    predictor = tl.Predictor(files["onnx"])
    for place in (tmp_path / "missing.jpg", tmp_path):
        with pytest.raises(UserError, match="There is no image at"):
            predictor.predict(place)


def test_a_run_is_predicted_by_the_fastest_file_of_its_export_with_its_weights(run, exported, tmp_path, monkeypatch):
    assert predictor_of_run(run.run_dir).path == run.run_dir.inference
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    assert predictor_of_run(run.run_dir).path.name == "model.onnx"
    other = RunDir(tmp_path)
    write_json(other.evaluation, run.evaluation)
    assert predictor_of_run(other) is None  # not exported
    shutil.copytree(exported, other.export)
    assert predictor_of_run(other).path == other.export / "model.onnx"
    write_json(other.evaluation, run.evaluation | {"weights_sha256": "trained further"})
    assert predictor_of_run(other) is None
