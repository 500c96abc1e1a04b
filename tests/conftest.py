"""Small images, a small pretrained network and a small config, made once for all tests."""

import gc
import logging
import os
import sys

gc.set_threshold(50_000)  # as the commands do
os.environ["TF_NUM_INTRAOP_THREADS"] = "2"

import pytest  # noqa: E402

import transfer_learning  # noqa: E402, F401  (sets Keras' backend ahead of every import of Keras)
from tests.support.photos import SIZE, draw_photos  # noqa: E402
from transfer_learning.config import Phase, RunConfig  # noqa: E402

# `make test` begins with these files and this folder: a long one that came last would leave a core idle. Of the others,
# those of tests/training come last.
LONGEST = (
    "exports",
    "test_kills.py",
    "test_resume.py",
    "test_backbones.py",
    "test_loop.py",
    "test_compare.py",
    "test_run.py",
    "test_train_step.py",
    "test_phase_inputs.py",
    "test_rate_search.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file of tests stays in one process, and so does the folder of exports, whose files share an exported run."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "tests/exports" if nodeid.startswith("tests/exports/") else super()._split_scope(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: min(places.get(item.path.parent.name, 99), places.get(item.path.name, 99)))


@pytest.fixture(scope="session", autouse=True)
def no_graph_optimizer(pytestconfig):
    """TensorFlow's optimizer of graphs takes a fifth of the time; long tests and child processes have it."""
    if "not long" in pytestconfig.option.markexpr:
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.fixture(scope="module", autouse=True)
def no_search_among_what_stays():
    """A command that reads a model looks for garbage, which took 2 s among all that is imported for the tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def the_precision_of_before():
    """A run in the process of the tests may set Keras' precision, which is no business of the next test."""
    keras = sys.modules.get("keras")
    before = keras.config.dtype_policy() if keras else "float32"
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy(before)


@pytest.fixture(autouse=True)
def no_console_handler():
    """A command that ran in the process of the tests, as in a fixture, does not make later tests print messages."""
    from transfer_learning.cli.console import ConsoleHandler

    logger = logging.getLogger("transfer_learning")
    for handler in [handler for handler in logger.handlers if isinstance(handler, ConsoleHandler)]:
        logger.removeHandler(handler)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory of its own, so that `runs/` and `data/` are seen to stay empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys):
    """Calls the `main` of a command, which has to end with one line and exit code 2; returns the line."""
    from transfer_learning.cli.parser import run_main

    def refuse(main, *arguments):
        capsys.readouterr()
        assert run_main(main, [str(argument) for argument in arguments]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return refuse


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory):
    """Weights of small_cnn that stand for pretrained ones."""
    from transfer_learning.models.backbones import build_backbone

    path = tmp_path_factory.mktemp("weights") / "small_cnn.weights.h5"
    build_backbone("small_cnn", SIZE, "none", seed=7).save_weights(path)
    return path


@pytest.fixture(scope="session")
def short_runs():
    """Runs leave out figures and inference file, which take longer than training on the photos, but in `with_files`."""
    from tests.support.shortened import without_files

    with without_files():
        yield


@pytest.fixture(scope="session")
def small_config(photos, weights_file, short_runs, tmp_path_factory):
    """Both phases on the photos, a second or two in all."""
    return RunConfig(
        dataset=str(photos),
        backbone="small_cnn",
        weights=str(weights_file),
        image_size=SIZE,
        head=(16,),
        dropout=0.25,
        batch_size=8,
        cache_dir=str(tmp_path_factory.getbasetemp() / "cache"),
        frozen=Phase(epochs=2, learning_rate=1e-2),
        fine_tune=Phase(epochs=2, learning_rate=1e-3, unfreeze="block4", augmentation="light"),
    )


@pytest.fixture(scope="module")
def s3_address():
    """A local S3 server."""
    from tests.support.s3 import s3_server  # imports moto

    with s3_server() as address:
        yield address
