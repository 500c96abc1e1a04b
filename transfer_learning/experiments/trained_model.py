"""What `predict` and `serve` take, opened in two steps, so that mistakes are found before TensorFlow is imported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from transfer_learning.cli.parser import quiet_start
from transfer_learning.storage.run_directory import RunDir, evaluated_run_dir


class TrainedModel(NamedTuple):
    """A finished run."""

    name: str  # its path
    data_dir: str  # where its datasets are
    open: Callable[[], Any]  # -> RunPredictor


def find_trained_model(path: str) -> TrainedModel:
    """Checks what is at a path.

    Raises:
        UserError: there is no finished run.
    """
    run_dir = evaluated_run_dir(path)
    return TrainedModel(str(Path(path)), run_dir.read_config().data_dir, lambda: _run_predictor(run_dir))


def _run_predictor(run_dir: RunDir) -> Any:
    with quiet_start():
        from transfer_learning.experiments.finished_run import FinishedRun

    return FinishedRun(run_dir).predictor()
