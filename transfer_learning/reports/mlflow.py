"""A finished run in MLflow: parameters, metrics per epoch, files and the model, all read from the run directory."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from transfer_learning import __version__
from transfer_learning.config import flat
from transfer_learning.errors import UserError, needs_extra
from transfer_learning.exports.predictor import predictor_of_run
from transfer_learning.storage.files import read_json
from transfer_learning.storage.run_directory import RunDir

EXPERIMENT = "transfer-learning"  # unless MLFLOW_EXPERIMENT_NAME names another
SETTINGS = {  # unless the environment says otherwise
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # of MLflow's 7 the last comes after minutes
    "GIT_PYTHON_REFRESH": "quiet",  # no git is no error
}


def check_server(uri: str) -> None:
    """Asks MLflow for its experiments, so that a mistake is found before a training.

    Args:
        uri: a tracking URI of MLflow: ``http://host:5000``, ``sqlite:///runs.db``, ...

    Raises:
        MissingExtra: MLflow is not installed.
        UserError: there is no MLflow at `uri`, it refuses, or the URI holds a password, which the config would store.
    """
    if urlsplit(uri).password:
        raise UserError(
            "The URI of --mlflow holds a password, which would be stored; give it in MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD."
        )
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    with _errors_of(uri) as mlflow:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)


def log_run(run_dir: RunDir, uri: str) -> str:
    """Logs a finished run and returns the id that MLflow gives it.

    Parameters are the fields of the config; metrics the columns of ``history.csv`` and ``timings.csv``, with epochs
    counted over both phases, and the numbers of ``evaluation.json``; artefacts all files but checkpoints and events of
    TensorBoard. The model is the file that `predict` uses: ``mlflow.pyfunc.load_model`` predicts encoded images with it.

    Raises:
        MissingExtra: MLflow is not installed.
        UserError: there is no MLflow at `uri`, it refuses, or a file of the run is damaged.
    """
    check_server(uri)
    evaluation, environment = read_json(run_dir.evaluation, split=str), read_json(run_dir.environment, dataset=dict)
    results = {
        f"{evaluation['split']}_{name}": value for name, value in evaluation.items() if type(value) in (int, float)
    }
    tags = {"version": __version__, "dataset_fingerprint": environment["dataset"]["fingerprint"]}
    with _errors_of(uri) as mlflow:
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(uri)
        try:
            experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)).experiment_id
            with mlflow.start_run(experiment_id=experiment, run_name=run_dir.path.name, tags=tags, nested=True) as run:
                mlflow.log_params(flat(run_dir.read_config()))
                for step, values in enumerate(_epochs(run_dir), 1):
                    mlflow.log_metrics(values, step=step)
                mlflow.log_metrics(results)
                for path in sorted(
                    set(run_dir.path.iterdir()) - {run_dir.checkpoint, run_dir.tensorboard, run_dir.lock}
                ):
                    if path.is_dir():
                        mlflow.log_artifacts(str(path), path.name)
                    else:
                        mlflow.log_artifact(str(path))
                if (predictor := predictor_of_run(run_dir)) and predictor.path.suffix != ".xml":  # half of two files
                    mlflow.pyfunc.log_model(
                        name="model",
                        python_model=str(Path(__file__).with_name("mlflow_model.py")),
                        artifacts={"file": str(predictor.path)},
                        pip_requirements=[f"transfer-learning[export]=={__version__}"],
                    )
        finally:
            mlflow.set_tracking_uri(before)
    return run.info.run_id


def _epochs(run_dir: RunDir) -> list[dict[str, float]]:
    if not run_dir.history.exists():
        return []
    epoch = ["phase", "epoch"]
    timings = pd.read_csv(run_dir.timings).drop_duplicates(epoch, keep="last")
    table = pd.read_csv(run_dir.history).merge(timings, "left", epoch).drop(columns=epoch)
    return [row.dropna().to_dict() for _, row in table.iterrows()]


@contextmanager
def _errors_of(uri: str) -> Iterator[Any]:
    """Yields MLflow without its warnings and messages; its errors are UserErrors."""
    with warnings.catch_warnings(action="ignore"), needs_extra("mlflow"):
        import mlflow
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield mlflow
    except (mlflow.MlflowException, ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"MLflow at {uri} cannot be used ({reason}); check --mlflow, and whether the server runs."
        ) from None
