"""What `predict` and `serve` take, opened in two steps, so that mistakes are found before TensorFlow is imported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from transfer_learning.cli.parser import quiet_start
from transfer_learning.config import RunConfig
from transfer_learning.errors import UserError
from transfer_learning.exports.formats import format_of
from transfer_learning.exports.predictor import Predictor, predictor_of_run
from transfer_learning.storage.run_directory import RunDir, evaluated_run_dir


class TrainedModel(NamedTuple):
    """A finished run, or an exported file."""

    name: str  # its path
    data_dir: str  # where its datasets are
    open: Callable[[], Any]  # -> RunPredictor or Predictor


def find_trained_model(path: str, exact: bool = True) -> TrainedModel:
    """Checks what is at a path; an export is opened without TensorFlow, unless its format is TensorFlow's.

    Args:
        exact: open the saved model of a run; otherwise its inference file, if it has one.

    Raises:
        UserError: there is neither a finished run nor an exported file.
    """
    if is_export(path):
        return TrainedModel(path, RunConfig.data_dir, lambda: Predictor(path))
    run_dir = evaluated_run_dir(path)
    return TrainedModel(path, run_dir.read_config().data_dir, lambda: _run_predictor(run_dir, exact))


def is_export(path: str) -> bool:
    """Whether there is an exported file at a path, by its name; the directory of a run is none."""
    if RunDir(path).config.exists():
        return False
    try:
        format_of(Path(path))
    except UserError:
        return False
    return True


def _run_predictor(run_dir: RunDir, exact: bool) -> Any:
    if not exact and (predictor := predictor_of_run(run_dir)):
        return predictor
    with quiet_start(in_command=True):
        from transfer_learning.experiments.finished_run import FinishedRun

    return FinishedRun(run_dir).predictor()
