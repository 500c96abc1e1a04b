"""`predict` and `serve` take exported files, and the documented request of TensorFlow Serving fits the SavedModel."""

import ast
import base64
import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import transfer_learning as tl
from tests.support import ROOT, run_without
from tests.support.serving import served
from transfer_learning.experiments.export import load_network
from transfer_learning.experiments.trained_model import find_trained_model
from transfer_learning.exports.formats import FORMATS


@pytest.mark.parametrize("name", ["onnx", "litert"])
def test_the_command_predicts_with_an_export_without_tensorflow(name, files, recorded, photos_folder):
    table, expected = recorded
    code = "from transfer_learning.__main__ import main\nsys.exit(main())"
    images = [photos_folder / id for id in table["id"]]
    done = run_without("tensorflow keras", code, "predict", files[name], *images, "--top-k", "2")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["class"] for row in rows] == list(table["predicted"])
    assert np.allclose([float(row["confidence"]) for row in rows], expected.max(axis=1), atol=1e-4)
    assert np.allclose([float(row["confidence_2"]) for row in rows], np.sort(expected)[:, -2], atol=1e-4)


@pytest.mark.parametrize("name", ["onnx", "saved_model"])
def test_an_export_is_served_with_the_recorded_probabilities_and_has_no_grad_cam(name, files, recorded, photos_folder):
    table, expected = recorded
    with served(find_trained_model(str(files[name])).open()) as client:
        for id, row in zip(table["id"], expected, strict=True):
            answer = client.post("/predict", (photos_folder / id).read_bytes()).json
            assert np.allclose([top["probability"] for top in answer["top"]], np.sort(row)[::-1], atol=1e-4)
        answer = client.post("/grad-cam?class=x", b"")
        assert answer.status == 404
        model = client.get("/model").json
        assert model["class_names"] == list(tl.Predictor(files[name]).class_names) and model["drift"] is None


def test_good_requests_among_hostile_ones_get_right_answers_from_a_server_that_goes_on(run, files):
    """A sample of what `make test-serve` sends; how fast the answers are is not tested."""
    flags = ["--hostile", "125", "--good", "62", "--rate", "60", "--clients", "", "--max-ratio", "inf"]
    command = [
        sys.executable,
        "-m",
        "tests.support.attack",
        str(run.run_dir.path),
        "--file",
        str(files["litert"]),
        *flags,
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    printed = ended.stdout
    assert ended.returncode == 0 and printed.endswith("All limits held.\n"), printed + ended.stderr
    assert all(f"62 good requests among {kind} others: p50 " in printed for kind in ("no", "harmless", "hostile"))
    (statuses,) = re.findall(r"^Answers to 125 hostile requests: (.*)$", printed, re.MULTILINE)
    assert {200, 400} <= ast.literal_eval(statuses).keys()
    assert "Answers to 125 harmless requests: {200: 125}\n" in printed
    assert "Wrong answers: 0; 503: 0; alive: True; exit code after SIGTERM: 0\n" in printed
    assert re.search(r"^Resident memory: idle [1-9]\d+ MB, peak [1-9]\d+ MB, after [1-9]\d+ MB$", printed, re.MULTILINE)


def test_the_documented_request_of_tensorflow_serving_fits_the_signature(files, recorded, photos_folder):
    """TensorFlow Serving decodes the texts under b64, and gives the named input of each instance to the signature."""
    import tensorflow as tf

    (text,) = re.findall(r'"(\{\\"signature_name.*?)"\n', (ROOT / "docs/serving.md").read_text())
    content = (photos_folder / recorded[0]["id"][0]).read_bytes()
    encoded = base64.b64encode(content).decode()
    request = json.loads(text.replace('\\"', '"').replace("$(base64 -w0 photo.jpg)", encoded))
    (instance,) = request["instances"]
    inputs = {name: tf.constant([base64.b64decode(value["b64"])]) for name, value in instance.items()}
    model = tf.saved_model.load(str(files["saved_model"]))
    result = model.signatures[request["signature_name"]](**inputs)
    assert np.allclose(result["probabilities"][0], recorded[1][0], atol=0.02)


def test_an_export_is_compared_with_its_run_on_the_images_of_the_run(run, files, recorded, tmp_path, refused):
    from transfer_learning import evaluate
    from transfer_learning.cli.parser import run_main

    def compared(new, old):
        words = [str(new), str(old), "--paired", "--not-worse-than", "0", "--run-dir"]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        code = run_main(evaluate.main, [*words, str(folder)])
        result = json.loads((folder / "comparison_test.json").read_text())
        assert (result["before"], result["after"], result["num_examples"]) == (str(new), str(old), len(recorded[0]))
        assert code == (3 if result["is_worse"] else 0)
        return result

    for new, old in ((files["onnx"], run.name), (run.name, files["onnx"])):
        result = compared(new, old)
        assert not result["is_worse"]
        assert not result["only_before_right"] + result["only_after_right"], "the file predicts what the run does"
    network, worse = load_network(run.run_dir), tmp_path / "worse.tflite"
    swapped = replace(network.metadata, class_names=network.metadata.class_names[::-1])
    FORMATS["litert"].write(replace(network, metadata=swapped), worse)
    assert compared(worse, run.name)["is_worse"] and not compared(run.name, worse)["is_worse"]
    for wrong, words in (
        ([str(files["onnx"]), str(files["litert"]), "--paired"], "two exported files"),
        ([str(files["onnx"]), run.name, "--paired", "--tta", "flip"], "leave out --tta"),
        ([str(files["onnx"]), run.name], "run directory"),
    ):
        assert words in refused(evaluate.main, *wrong, "--run-dir", tmp_path / "wrong")
