"""A finished run in MLflow: in a store of SQLite, and through a real server (long)."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.support.logs import log_messages
from tests.support.shortened import with_inference_file
from transfer_learning import report
from transfer_learning.config import flat
from transfer_learning.errors import UserError
from transfer_learning.exports.predictor import Predictor
from transfer_learning.reports.mlflow import EXPERIMENT, check_server, log_run
from transfer_learning.storage.run_directory import RunDir


@pytest.fixture(scope="module")
def run_dir(small_config, tmp_path_factory):
    from transfer_learning.experiments.train import run_experiment

    run_dir = RunDir(tmp_path_factory.mktemp("runs") / "mine")
    uri = f"sqlite:///{run_dir.path.parent}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch, with_inference_file():
        patch.chdir(run_dir.path.parent)  # MLflow's artefacts go below the current folder
        run_experiment(replace(small_config, mlflow=uri), run_dir)
    return run_dir


def check(run_dir, photos, uri, tmp_path):
    """What MLflow has of the newest run is what its directory holds, and the model predicts."""
    with warnings.catch_warnings(action="ignore"):
        import mlflow

        client = mlflow.MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
        logged = client.search_runs([experiment])[0]
        assert (logged.info.run_name, logged.info.status) == ("mine", "FINISHED")
        assert logged.data.params == {name: str(value) for name, value in flat(run_dir.read_config()).items()}
        history = pd.read_csv(run_dir.history)
        assert len(history) == 4
        for name in ("loss", "val_accuracy", "learning_rate"):
            values = {one.step: one.value for one in client.get_metric_history(logged.info.run_id, name)}
            assert values == dict(enumerate(history[name], 1))
        evaluation = json.loads(run_dir.evaluation.read_text())
        assert logged.data.metrics["test_accuracy"] == evaluation["accuracy"]
        assert {"seconds", "images_per_second"} <= logged.data.metrics.keys()
        names = {file.path for file in client.list_artifacts(logged.info.run_id)}
        assert {"report.html", "model.keras", "predictions"} <= names and not {"checkpoint", ".lock"} & names
        report = mlflow.artifacts.download_artifacts(
            run_id=logged.info.run_id, artifact_path="report.html", dst_path=str(tmp_path), tracking_uri=uri
        )
        assert open(report, "rb").read() == run_dir.report.read_bytes()
        mlflow.set_tracking_uri(uri)
        model = mlflow.pyfunc.load_model(f"runs:/{logged.info.run_id}/model")
        mlflow.set_tracking_uri(None)
        images = [path.read_bytes() for path in sorted(photos.rglob("*.png"))[:3]]
        found, expected = model.predict([*images, b"no image"]), Predictor(run_dir.inference).predict(images)
    assert list(found["class"][:3]) == list(expected["class"]) and found["problem"][3]
    assert np.array_equal(found["confidence"][:3], expected["confidence"])


def test_a_run_logs_its_parameters_metrics_files_and_model(run_dir, photos, tmp_path):
    check(run_dir, photos, flat(run_dir.read_config())["mlflow"], tmp_path)
    assert "Logged to MLflow at" in run_dir.log.read_text()


def test_what_cannot_be_used_is_one_sentence_and_costs_no_run(run_dir, monkeypatch, refused):
    from transfer_learning.experiments import train

    for uri, words in (("http://me:secret@localhost", "MLFLOW_TRACKING_PASSWORD"), ("nothing://x", "cannot be used")):
        with pytest.raises(UserError, match=words):
            check_server(uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    line = refused(report.main, run_dir.path, "--mlflow", "http://127.0.0.1:1")
    assert line.startswith("error: MLflow at http://127.0.0.1:1 cannot be used")
    messages = log_messages()
    train._log_to_mlflow(run_dir, "http://127.0.0.1:1")
    assert "log it with: " in messages[0] and "--mlflow http://127.0.0.1:1" in messages[0]


@pytest.mark.long
def test_a_server_with_sqlite_gets_the_same(run_dir, photos, tmp_path):
    """The server of mlflow-skinny is the one of MLflow, without its page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db"]
    command += ["--artifacts-destination", "artefacts", "--workers", "1", "--host", "127.0.0.1", "--port", port]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}) as server:
        try:
            while server.poll() is None:
                try:
                    urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            log_run(run_dir, uri)
            check(run_dir, photos, uri, tmp_path)
        finally:
            server.terminate()
