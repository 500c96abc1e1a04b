"""Transfer learning for image classification on Keras 3 and TensorFlow.

    import transfer_learning as tl

    run = tl.train("photos/", epochs=5)
    run.evaluation["accuracy"]
    run.predict(["a.jpg", "folder/"])
    run = tl.load_run("runs/photos-efficientnet_lite0-20260131-120000")
    tl.Predictor("model.onnx").predict("folder/")  # an exported file, without TensorFlow

`python -m transfer_learning` is the command line, `experiments/train.py` what a run does from top to bottom.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer_learning.machine.keras_settings import choose_backend

if TYPE_CHECKING:
    from transfer_learning.experiments.finished_run import FinishedRun
    from transfer_learning.exports.predictor import Predictor

__all__ = ["Predictor", "load_run", "train"]
__version__ = "0.2.0"

# TensorFlow and Keras read these once, when they are first imported. Only the backend cannot be chosen.
choose_backend()
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by itself without AVX512-VNNI; 1.3 times faster there
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else it reports a missing GPU as an error


def train(
    dataset: str | Path, *, run_dir: str | Path | None = None, epochs: int | None = None, **options: Any
) -> "FinishedRun":
    """Trains and evaluates a classifier, as the command `run` does.

    Args:
        dataset: what ``--dataset`` takes: a known name, a folder of class folders, an archive or a table.
        run_dir: directory of the run; by default a new one under ``runs/``. An unfinished run with the same options in
            it is continued, and a finished one is returned as it is.
        epochs: of the fine-tune phase, as ``fine_tune={"epochs": ...}``; the frozen phase keeps those of the recipe.
        options: fields of `config.RunConfig`, by name; those of a phase as ``fine_tune={"epochs": 3}`` or as
            ``**{"fine_tune.epochs": 3}``. Fields that are not given get their value from the dataset's recipe.

    Raises:
        UserError: an option, the dataset or the run directory cannot be used; the message says what to do.
    """
    from transfer_learning.experiments.api import train_dataset  # imports TensorFlow

    return train_dataset(os.fspath(dataset), run_dir, epochs, options)


def load_run(path: str | Path) -> "FinishedRun":
    """Opens the directory of a finished run; UserError if there is none in `path`."""
    from transfer_learning.experiments.finished_run import FinishedRun
    from transfer_learning.storage.run_directory import evaluated_run_dir

    return FinishedRun(evaluated_run_dir(path).absolute())


def __getattr__(name: str) -> Any:
    if name == "Predictor":  # imported when it is first used, with NumPy and Pillow
        from transfer_learning.exports.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
