"""One trained run, exported in every format by the command, for all tests of exports."""

from dataclasses import replace

import pytest

from tests.support.photos import draw_photos
from transfer_learning.evaluation import predictions
from transfer_learning.exports import gate
from transfer_learning.exports.formats import FORMATS

CLASSES = ('a "quoted", name', "two\nlines", "emoji 🦉 ñ |", "café")


@pytest.fixture(scope="session")
def photos_folder(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("photos"), classes=CLASSES, shape=(20, 24))


@pytest.fixture(scope="session")
def run(photos_folder, small_config, tmp_path_factory):
    """A finished run whose class names are hard to quote."""
    from tests.support.shortened import with_inference_file
    from transfer_learning.experiments.finished_run import FinishedRun
    from transfer_learning.experiments.train import run_experiment
    from transfer_learning.storage.run_directory import RunDir

    run_dir = RunDir(tmp_path_factory.mktemp("exports") / "run")
    # Enough epochs that the probabilities are not nearly equal after calibration, which would hide differences.
    phases = {"frozen": replace(small_config.frozen, epochs=20), "fine_tune": replace(small_config.fine_tune, epochs=1)}
    with with_inference_file():
        run_experiment(replace(small_config, dataset=str(photos_folder), resize="pad", **phases), run_dir)
    return FinishedRun(run_dir)


@pytest.fixture(scope="session")
def recorded(run):
    """The table of the recorded test predictions, and its probabilities."""
    table = predictions.read(run.run_dir.predictions("test"))
    return table, predictions.probabilities(table)


@pytest.fixture(scope="session")
def exported(run):
    """The folder of the export; `gate` passed for all formats."""
    from transfer_learning import export

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "SECONDS", 0.01)
        assert export.main([run.name, "--format", "all", "--int8-limit", "100"]) == 0
    return run.run_dir.export


@pytest.fixture(scope="session")
def files(exported):
    """The file of each format by its name."""
    return {name: exported / row.path for name, row in FORMATS.items()}
