"""The real command, killed with SIGKILL again and again and resumed each time, ends with the same bits; signals too."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support import ROOT

LOOP, PHASES, CHECKPOINT = (f"transfer_learning.training.{name}" for name in ("loop", "phases", "checkpoint"))
EXPERIMENT = "transfer_learning.experiments.train"
PHASE_BUILDER = "transfer_learning.training.phase_builder"
CACHE = "transfer_learning.storage.array_cache:ArrayCache"

# One run, killed at each of these in turn: (function, before or after its call, which call of it in that session).
KILLS = [
    (f"{EXPERIMENT}:estimate_run", "before", 1),  # nothing but the config is there
    (f"{CACHE}._append", "after", 20),  # the images are being decoded and cached
    (f"{CACHE}.add", "before", 2),  # the images are cached, the features of their copies are computed
    (f"{CACHE}._append", "after", 90),  # the features are being cached
    (f"{CHECKPOINT}:save", "before", 1),  # all is cached, nothing is trained
    (f"{CHECKPOINT}:save", "after", 2),  # an epoch's checkpoint is there, its history may not be
    (f"{CHECKPOINT}:Writer.save", "after", 3),  # while one is written beside the training
    (f"{CHECKPOINT}:np.savez", "after", 1),  # inside a save: the arrays alone
    (f"{CHECKPOINT}:os.rename", "before", 1),  # inside a save: complete, but for its name
    (f"{CHECKPOINT}:os.rename", "after", 1),  # inside a save: named, older ones not yet removed
    (f"{LOOP}:learning_rate", "before", 2),  # in the middle of an epoch
    (f"{PHASES}:ActivePhase.restore_best", "before", 1),  # the change of phase: the best weights not yet back
    (f"{PHASES}:ActivePhase.restore_best", "after", 1),  # back, but nothing saved
    (f"{PHASE_BUILDER}:start_phase", "after", 2),  # the fine-tune phase is built, nothing saved
    (f"{LOOP}:write_history", "after", 1),  # in fine-tuning, with features and a frozen phase behind it
    (f"{CHECKPOINT}:shutil.rmtree", "before", 2),  # inside a save: the third checkpoint is there
    (f"{LOOP}:learning_rate", "before", 5),
    ("transfer_learning.experiments.evaluate:save_model", "before", 1),  # trained, nothing written
    ("transfer_learning.evaluation.predictions:written_atomically", "before", 2),  # before predictions/test.csv
]


def command(*arguments, harness=("-m", "transfer_learning.run")):
    return [sys.executable, *harness, *map(str, arguments)]


def flags(config):
    return [
        *("--dataset", config.dataset, "--backbone", config.backbone, "--weights", config.weights),
        *("--image-size", config.image_size, "--cache-dir", config.cache_dir),
        *"--head 16 --dropout 0.25 --batch-size 8 --class-weights none --checkpoint-seconds 0".split(),
        *"--frozen.epochs 3 --frozen.learning-rate 0.01 --frozen.augmentation light --frozen.copies 4".split(),
        *"--fine-tune.epochs 3 --fine-tune.learning-rate 0.001 --fine-tune.unfreeze block4".split(),
        *"--fine-tune.augmentation light --fine-tune.copies 2".split(),
    ]


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """Calls a module of a process that has TensorFlow imported, and returns its output."""
    output = tmp_path_factory.mktemp("forked") / "output.txt"
    server = command(harness=("-m", "tests.support.fork_server"))
    with subprocess.Popen(server, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def call(module, *arguments, expected=0):
            print(json.dumps([str(output), module, *map(str, arguments)]), file=process.stdin, flush=True)
            code = int(process.stdout.readline())
            assert code == expected, (code, output.read_text()[-6000:])
            return output.read_text()

        yield call
        process.stdin.close()


def results(run_dir):
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    files = ("history.csv", "predictions/val.csv", "predictions/test.csv")
    return evaluation["weights_sha256"], *((run_dir / name).read_bytes() for name in files)


@pytest.fixture(scope="module")
def unbroken(small_config, forked, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "unbroken"
    forked("transfer_learning.run", *flags(small_config), "--run-dir", run_dir)
    return results(run_dir)


def test_killed_again_and_again(small_config, unbroken, forked, tmp_path):
    run_dir = tmp_path / "killed"
    begin = [*flags(small_config), "--run-dir", run_dir, "--cache-dir", tmp_path / "cache"]
    for target, when, count in KILLS:
        arguments = ["--resume", run_dir] if (run_dir / "config.json").exists() else begin
        output = forked("tests.support.kill_at", target, when, count, *arguments, expected=-signal.SIGKILL)
        assert "Run directory" in output
    forked("transfer_learning.run", "--resume", run_dir)
    assert results(run_dir) == unbroken
    assert not [path for path in run_dir.rglob("*") if "partial" in path.name], "a kill's leavings stay for ever"


@pytest.mark.parametrize(
    "signals",
    [
        [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 3)],
        pytest.param([(signal.SIGUSR1, 138, 1)], marks=pytest.mark.long),
    ],
)
def test_stopped_by_a_signal_it_prints_the_line_that_continues(signals, small_config, unbroken, forked, tmp_path):
    """One run gets each of the signals after so many epochs."""
    run_dir = tmp_path / "stopped"
    arguments = [*flags(small_config), "--no-inference-file", "--run-dir", run_dir]
    for number, code, epochs in signals:
        process = subprocess.Popen(
            command(*arguments),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        deadline = time.monotonic() + 120
        while num_epochs(run_dir) < epochs and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == code, output + errors
        line = re.search(r"transfer.learning run (--resume .*)", output)
        assert line and "Traceback" not in output + errors
        arguments = line[1].split()
    forked("transfer_learning.run", *arguments)
    assert results(run_dir) == unbroken


def num_epochs(run_dir):
    """How many are in the history, which has a row of titles."""
    history = run_dir / "history.csv"
    return history.read_text().count("\n") - 1 if history.exists() else 0


def test_a_signal_to_what_does_not_end_ends_the_process_and_is_resumed_to_the_bit(
    small_config, unbroken, forked, tmp_path
):
    """One run: a train step that does not end, then a write during training."""
    arguments = [*flags(small_config), "--run-dir", tmp_path / "run"]
    for target, count in ((f"{LOOP}:learning_rate", 14), (f"{CHECKPOINT}:os.rename", 3)):
        output = forked("tests.support.kill_at", target, "hanging", count, *arguments, expected=143)
        line = re.search(r"Stopped by SIGTERM before .*transfer.learning run (--resume .*)", output)
        assert line and "Traceback" not in output, output
        arguments = line[1].split()
    output = forked("transfer_learning.run", *arguments)
    assert "Continuing after epoch" in output
    assert results(tmp_path / "run") == unbroken


@pytest.mark.long
@pytest.mark.parametrize("num_kills", [2, 200])
def test_killed_at_random_moments(num_kills, tmp_path):
    harness = command(tmp_path / "runs", "--kills", num_kills, harness=("-m", "tests.support.kill_randomly"))
    done = subprocess.run(harness, cwd=ROOT, capture_output=True, text=True, timeout=4 * 3600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["kills"] == num_kills


@pytest.mark.long
def test_two_runs_that_share_a_cache_at_once_are_what_each_would_be_alone(small_config, unbroken, tmp_path):
    begin = [*flags(small_config), "--no-inference-file", "--cache-dir", tmp_path / "cache"]
    processes = [
        subprocess.Popen(
            command(*begin, "--run-dir", tmp_path / str(number)),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for number in range(2)
    ]
    for number, process in enumerate(processes):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-3000:]
        assert results(tmp_path / str(number)) == unbroken
