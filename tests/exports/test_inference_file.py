"""The inference file of a run: checked against the recorded predictions, used by `predict`, no reason to lose a run."""

import csv
import dataclasses
import io
import shutil

import numpy as np
import pytest

from tests.support import run_without
from transfer_learning import predict
from transfer_learning.cli.parser import run_main
from transfer_learning.experiments import export
from transfer_learning.experiments.trained_model import find_trained_model
from transfer_learning.exports import inference_file, litert
from transfer_learning.exports.predictor import Predictor, predictor_of_run
from transfer_learning.models.classifier import build_classifier, probabilities
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.files import write_json
from transfer_learning.storage.run_directory import RunDir


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_predict_uses_it_without_tensorflow_and_exact_gives_the_recorded_bits(run, recorded, photos_folder, capsys):
    table, _ = recorded
    images = [str(photos_folder / id) for id in table["id"]]
    flags = ["--top-k", "2", "--reject"]
    code = "from transfer_learning.__main__ import main\nsys.exit(main())"
    done = run_without("tensorflow keras pandas scipy matplotlib", code, "predict", run.name, *images, *flags)
    fast = rows(done.stdout)
    assert run_main(predict.main, [run.name, *images, *flags, "--exact"]) == 0
    exact = rows(capsys.readouterr().out)
    assert [row["class"] for row in fast] == [row["class"] for row in exact]
    assert [row["rejected"] for row in fast] == [row["rejected"] for row in exact]
    for name in ("confidence", "confidence_2"):
        assert np.allclose([float(row[name]) for row in fast], [float(row[name]) for row in exact], atol=1e-4)
    assert np.array_equal(np.float32([row["confidence"] for row in exact]), table["confidence"])


def test_the_python_api_uses_it_too_and_exact_gives_the_recorded_bits(run, recorded, photos_folder):
    table, _ = recorded
    images = [str(photos_folder / id) for id in table["id"]]
    code = "import transfer_learning as tl\nprint(tl.load_run(sys.argv[1]).predict(sys.argv[2:]).to_csv())"
    fast = rows(run_without("tensorflow keras", code, run.name, *images).stdout)
    assert [row["class"] for row in fast] == list(table["predicted"])
    assert np.allclose([float(row["confidence"]) for row in fast], table["confidence"], atol=1e-4)
    assert np.array_equal(np.float32(run.predict(images, exact=True)["confidence"]), table["confidence"])


def test_other_weights_and_a_damaged_file_are_not_used(run, tmp_path, caplog):
    other = RunDir(tmp_path / "run")
    other.path.mkdir()
    shutil.copy(run.run_dir.inference, other.inference)
    write_json(other.evaluation, run.evaluation)
    assert predictor_of_run(other).path == other.inference
    write_json(other.evaluation, run.evaluation | {"weights_sha256": "trained further"})
    assert predictor_of_run(other) is None
    write_json(other.evaluation, run.evaluation)
    other.inference.write_bytes(run.run_dir.inference.read_bytes()[:1000])
    assert predictor_of_run(other) is None
    assert "model.tflite is not used" in caplog.text
    assert not isinstance(find_trained_model(run.name).open(), Predictor), "`serve` needs the features of the run"


def no_conversion(network):
    raise ValueError("an operator\nis missing")


@pytest.mark.parametrize("reason", ["a probability differs", "NaN", "an operator is missing"])
def test_a_file_that_fails_is_not_there_and_the_log_says_why(reason, run, tmp_path, monkeypatch, caplog):
    network = export.load_network(run.run_dir)
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    run_dir.inference.write_bytes(b"of an earlier attempt")
    pixels = np.zeros((2, *[network.metadata.image_size] * 2, 3), np.uint8)
    recorded = np.full((2, len(run.class_names)), 1 / len(run.class_names), np.float32)
    if reason == "NaN":
        monkeypatch.setattr(Predictor, "probabilities", lambda self, images: recorded * np.nan)
    if reason == "an operator is missing":
        monkeypatch.setattr(litert, "converted", no_conversion)
    inference_file.write_inference_file(network, pixels, recorded, run_dir)
    assert not list(run_dir.path.iterdir())
    assert reason in caplog.text and "model.tflite was not written" in caplog.text


def test_another_linear_head_is_put_into_the_converted_network_to_the_same_bytes(run, tmp_path, monkeypatch, caplog):
    config, cache = dataclasses.replace(run.config, head=()), Cache(tmp_path / "cache")
    metadata = dataclasses.replace(export.load_network(run.run_dir).metadata, temperature=1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *[metadata.image_size] * 2, 3), np.uint8)
    classifier = build_classifier(config, metadata.class_names)
    conversions, original = [], litert.converted

    def written(name, temperature, recorded=None, cache=cache):
        other = dataclasses.replace(classifier, temperature=temperature)
        network = export.Network(other, metadata, lambda: pixels)
        run_dir = RunDir(tmp_path / name)
        recorded = probabilities(other, pixels, np.arange(3)) if recorded is None else recorded
        inference_file.write_inference_file(network, pixels, recorded, run_dir, cache)
        # Without the archive, which has a date.
        return run_dir.inference.exists() and run_dir.inference.read_bytes().split(b"PK\x03\x04")[0]

    monkeypatch.setattr(litert, "converted", lambda network: conversions.append(1) or original(network))
    for name, temperature in (("first", 1.3), ("second", 0.7)):
        for weight in classifier.head.weights:
            weight.assign(np.random.default_rng(len(name)).normal(size=weight.shape))
        assert written(name, temperature)
    assert written("second", 0.7) == written("anew", 0.7, cache=None) and len(conversions) == 2
    # One that does not predict what was recorded is converted again, and the cache has the new one.
    [records] = cache.folder.glob("networks/*/records.bin")
    assert not written("refused", 0.7, np.roll(probabilities(classifier, pixels, np.arange(3)), 1, axis=1))
    assert len(conversions) == 3 and "a probability differs" in caplog.text
    records.write_bytes(records.read_bytes()[:-1000])
    assert written("damaged", 0.7) == written("anew", 0.7, cache=None) and len(conversions) == 5
