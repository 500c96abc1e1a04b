"""Workers that `launch` starts train what one process trains, even if one is killed and the run is continued by one."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest

from tests.support import ROOT
from tests.support.logs import log_messages
from tests.support.ray import local_cluster, processes
from transfer_learning import launch
from transfer_learning.cli.flags import as_flags
from transfer_learning.cli.parser import run_main
from transfer_learning.config import Phase, difference, flat
from transfer_learning.errors import ExitCode, UserError
from transfer_learning.experiments import train
from transfer_learning.experiments.train import oom_as_user_error, run_experiment
from transfer_learning.machine import worker_processes
from transfer_learning.machine.strategy import Workers
from transfer_learning.machine.worker_processes import WorkerProcesses, free_ports
from transfer_learning.run import contradiction
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training import checkpoint


@pytest.fixture(scope="module")
def config(small_config, tmp_path_factory):
    """Both phases with accumulation, on cached features of augmented copies and on augmented images; a short last batch."""
    return dataclasses.replace(
        small_config,
        dropout=0.0,  # has other masks on each worker
        gradient_accumulation_steps=2,
        checkpoint_seconds=0.0,
        worker_timeout=120.0,
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        frozen=Phase(epochs=4, learning_rate=1e-2, optimizer="sgd", augmentation="light", copies=2),
        fine_tune=Phase(epochs=8, learning_rate=1e-4, optimizer="sgd", unfreeze="block4", augmentation="light"),
    )


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    run_dir = RunDir(tmp_path_factory.mktemp("runs") / "alone")
    run_experiment(config, run_dir)
    return run_dir


def launched(num_workers, config, run_dir, *options, **environment):
    values = {name: value for name, value in flat(config).items() if value != "" and name != "frozen.unfreeze"}
    words = ["--resume", str(run_dir.path)] if run_dir.config.exists() else ["--run-dir", str(run_dir.path)]
    words += [] if run_dir.config.exists() else as_flags(values)
    command = [sys.executable, "-m", "transfer_learning.launch", "--workers", str(num_workers), *options, "run", *words]
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, text=True, **outputs)


def wait_for_step(process, run_dir, number):
    """Returns once the checkpoint of this number is there."""
    deadline = time.monotonic() + 200
    while not any(path.name >= f"{number:06}" for path in run_dir.checkpoint.glob("[0-9]*[0-9]")):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.02)


def last_worker_of(process):
    """The process id of the worker that was started last."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return max(map(int, children))


def assert_equal_to_rounding(run_dir, other):
    one, two = pd.read_csv(run_dir.history), pd.read_csv(other.history)
    assert one["phase"].tolist() == two["phase"].tolist() and one["updates"].tolist() == two["updates"].tolist()
    for name in ("learning_rate", "loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(one[name], two[name], atol=1e-5, rtol=1e-5, err_msg=name)
    (arrays, _), (expected, _) = (checkpoint.load(directory.checkpoint) for directory in (run_dir, other))
    for group in ("weights", "best", "optimizer"):
        for array, values in zip(arrays[group], expected[group], strict=True):
            np.testing.assert_allclose(array, values, atol=1e-5, rtol=1e-5)


OTHER_CLOCK = """
import json, os, pathlib, time
original = time.time
if json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"] == 1:
    time.time = lambda: original() + 3e7  # a year
    pathlib.Path(__file__).with_name("was shifted").touch()
"""


@pytest.mark.parametrize("num_workers", [2, pytest.param(3, marks=pytest.mark.long)])
def test_a_worker_killed_then_all_stopped_then_continued_by_fewer(num_workers, config, alone, tmp_path):
    """The run of one process and that of several with other clocks, interrupted in every way, are equal to rounding."""
    run_dir = RunDir(tmp_path / "run")
    (tmp_path / "sitecustomize.py").write_text(OTHER_CLOCK)
    process = launched(num_workers, config, run_dir, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    wait_for_step(process, run_dir, 4)
    subprocess.run(["kill", "-KILL", str(last_worker_of(process))], check=True)
    wait_for_step(process, run_dir, 26)  # in the second phase
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == ExitCode.TERMINATED, output
    assert f"Strategy multi-worker (TF_CONFIG): this is worker 0 of {num_workers}" in output
    assert f"Worker {num_workers - 1} has ended (SIGKILL); all start again from the last checkpoint" in output
    assert "Continuing after epoch" in output and "Stopped by SIGTERM; continue with:" in output
    assert "Traceback" not in output and "WARNING" not in output  # as of TensorFlow, about its functions
    if num_workers == 3:
        process = launched(2, config, run_dir)
        wait_for_step(process, run_dir, 34)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == ExitCode.TERMINATED and "workers was 3, is 2" in output, output
    messages = log_messages()
    run_experiment(run_dir.read_config(), run_dir)
    assert any("workers was 2, is 1" in message for message in messages), messages
    assert difference(run_dir.read_config(), config) == {}
    assert_equal_to_rounding(run_dir, alone)
    assert (tmp_path / "was shifted").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ""),
        ({"dataset": "elsewhere/photos", "cache_dir": "elsewhere/cache"}, ""),  # may be at other places
        (
            {"seed": 5, "fine_tune.epochs": 9},
            "Worker 1 has other flags than worker 0 (seed is 0, not 5, fine_tune.epochs is 8",
        ),
    ],
)
def test_other_flags_of_a_worker_are_named(given, words, config):
    problem = contradiction(config, {"index": 1, "given": given})
    assert problem.startswith(words) and bool(problem) == bool(words)


def test_workers_compare_their_images_and_initial_weights(config, tmp_path, monkeypatch):
    class Other(Workers):
        def check_equal(self, digests):
            raise UserError(f"other {' and '.join(digests)}")

    monkeypatch.setattr(train, "form_workers", lambda *_: Other())
    with pytest.raises(UserError, match="other dataset and start of the weights"):
        run_experiment(config, RunDir(tmp_path / "run"))


@pytest.mark.parametrize(
    ("codes", "received", "expected"),
    [
        ([5, 143], 15, 143),  # worker 1 was between two phases, and worker 0 lost it
        ([5, 143], 0, 143),  # the batch system sent the signal to the worker
        ([-15, -15], 15, 143),  # both were still importing TensorFlow
        ([143, 143], 15, 143),
        ([0, 143], 15, 0),
        ([2, 143], 15, 2),
        ([5, -9], 0, -9),  # start again
        ([5, 5], 0, 5),
        ([5, 2], 0, 2),
    ],
)
def test_which_exit_code_a_run_has_whose_workers_ended(codes, received, expected):
    workers = WorkerProcesses([], [23_000, 23_001])
    workers._processes = [SimpleNamespace(poll=lambda code=code: code) for code in codes]
    workers._logs, workers._received = [BytesIO(), BytesIO()], received
    assert workers.wait() == expected


def test_launches_at_the_same_time_get_different_ports():
    """Workers listen on their ports only seconds after these were chosen."""
    code = "from transfer_learning.machine.worker_processes import free_ports; print(*free_ports(3, 24_000))"
    mine = free_ports(3, 24_000)
    others = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {*mine} & {*map(int, others.split()), *free_ports(3, 24_000)}


def test_a_signal_while_workers_are_started_reaches_all(monkeypatch):
    """One that came while the second process was made: it had not been known yet."""
    sent: list[int] = []

    def start(*words, **options):
        signal.raise_signal(signal.SIGUSR1)
        return SimpleNamespace(
            poll=lambda: 138 if len(sent) == 2 else None, send_signal=sent.append, kill=int, wait=int
        )

    monkeypatch.setattr(worker_processes.subprocess, "Popen", start)
    with WorkerProcesses([], [23_000, 23_001]) as workers:
        assert workers.wait() == ExitCode.PREEMPTED
    assert sent == [signal.SIGUSR1, signal.SIGUSR1]


def test_the_process_that_chooses_settings_ends_with_worker_0():
    code = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from transfer_learning.machine.worker_processes import end_with_parent
pool = ProcessPoolExecutor(1, get_context("fork"), end_with_parent, (os.getpid(),))
pool.submit(os.getpid).result()
pool.submit(time.sleep, 600)
os.kill(os.getpid(), 15)
"""
    # The other process holds the pipe, too, so the call returns only once both have ended.
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, timeout=120)
    assert ended.returncode == -signal.SIGTERM


@pytest.mark.long
def test_workers_solve_the_head_after_fine_tuning_as_one_process_does(config, tmp_path):
    config = dataclasses.replace(
        config,
        head=(),
        head_features="all",
        head_init="lda",
        refit=True,
        frozen=dataclasses.replace(config.frozen, epochs=1),
        fine_tune=dataclasses.replace(config.fine_tune, epochs=2),
    )
    one, two = RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    run_experiment(config, one)
    process = launched(2, config, two)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    rows, expected = (json.loads(run_dir.evaluation.read_text())["final_weights"] for run_dir in (two, one))
    assert any(row["is_solved"] for row in rows)
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-3)
    tables = [pd.read_csv(run_dir.predictions("test"), index_col="id") for run_dir in (one, two)]
    probabilities = [table.drop(columns=["label", "predicted"]) for table in tables]
    np.testing.assert_allclose(*probabilities, atol=1e-3)


@pytest.mark.long
def test_as_many_workers_give_the_same_bits_after_a_kill(config, tmp_path):
    # Of each batch, the workers have 3 and 4 images, and masks for each.
    config = dataclasses.replace(config, dropout=0.5, batch_size=7, gradient_accumulation_steps=7)
    directories = []
    for name in ("unbroken", "killed"):
        directories.append(run_dir := RunDir(tmp_path / name))
        process = launched(2, config, run_dir)
        if name == "killed":
            wait_for_step(process, run_dir, 20)
            subprocess.run(["kill", "-KILL", str(last_worker_of(process))], check=True)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert directories[0].history.read_bytes() == directories[1].history.read_bytes()
    one, two = (checkpoint.load(directory.checkpoint)[0] for directory in directories)
    assert all(np.array_equal(a, b) for group in one for a, b in zip(one[group], two[group], strict=True))


@pytest.fixture
def ray_cluster(tmp_path):
    with local_cluster(tmp_path) as cluster:
        yield cluster


def ray_workers():
    """The processes of `run` on the nodes, by the number of their worker."""
    found = processes(["-m", "transfer_learning", "run"], start=1)
    parents = [one for one in found if one.parent().name().startswith("ray")]
    return {json.loads(one.environ()["TF_CONFIG"])["task"]["index"]: one for one in parents}


@pytest.mark.long
def test_workers_of_ray_give_the_same_bits_after_losing_a_worker_a_node_and_the_driver(
    config, alone, ray_cluster, tmp_path
):
    options = ["--ray", ray_cluster.address]
    unbroken, run_dir = RunDir(tmp_path / "unbroken"), RunDir(tmp_path / "run")
    output, _ = (process := launched(2, config, unbroken, *options)).communicate(timeout=300)
    assert process.returncode == 0 and "worker 0 of 2" in output and "Traceback" not in output, output
    process = launched(2, config, run_dir, *options)
    wait_for_step(process, run_dir, 4)
    ray_workers()[1].kill()
    wait_for_step(process, run_dir, 10)
    lost = ray_workers()[1].pid
    ray_cluster.remove_node(list(ray_cluster.worker_nodes)[0], allow_graceful=False)
    while ray_workers().get(1) in (None, lost):
        time.sleep(0.2)
    output = ""  # printed later than the checkpoints are written
    while output.count("Continuing after epoch") < 2:
        output += (line := process.stdout.readline())
        assert line, output
    wait_for_step(process, run_dir, 16)
    process.kill()
    output += process.communicate(timeout=60)[0]
    assert "Worker 1: SIGKILL\n" in output and "Traceback" not in output, output
    assert output.count("all start again from the last checkpoint") == output.count("Continuing after epoch") == 2, (
        output
    )
    psutil.wait_procs(ray_workers().values(), timeout=60)
    process = launched(2, config, run_dir, *options)
    wait_for_step(process, run_dir, 26)  # in the second phase
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == ExitCode.TERMINATED and "Stopped by SIGTERM; continue with:" in output, output
    output, _ = (process := launched(2, config, run_dir, *options)).communicate(timeout=300)
    assert process.returncode == 0, output
    assert run_dir.history.read_bytes() == unbroken.history.read_bytes()
    one, two = (checkpoint.load(directory.checkpoint)[0] for directory in (run_dir, unbroken))
    assert all(np.array_equal(a, b) for group in one for a, b in zip(one[group], two[group], strict=True))
    assert_equal_to_rounding(run_dir, alone)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2", "predict"], "launch starts workers of `run`"),
        (["--workers", "0", "run"], "--workers 0 --restarts 3 is out of range"),
        (["--workers", "2", "--ray", "nowhere", "run"], "--ray nowhere cannot be joined .HOST:PORT was expected"),
        (["--workers", "2", "--ray", "127.0.0.1:1", "run"], "127.0.0.1:1 cannot be joined .*refused.*`ray start`"),
        (["--workers", "2", "--first-port", "65536", "run"], "Fewer than 2 of the ports 65536 to .* are free"),
    ],
)
def test_wrong_arguments_are_one_sentence(words, message):
    with pytest.raises(UserError, match=message):
        launch.main(words)


@pytest.fixture
def ends(monkeypatch):
    """Workers that are short programs: worker N ends with the Nth code, or is killed by itself for a negative one."""

    def set_codes(*codes):
        program = (
            f"import os, json, time; codes = {codes}; code = codes[json.loads(os.environ['TF_CONFIG'])['task']['index']]\n"
            "print('error: why')\nos.kill(os.getpid(), -code) if code < 0 else time.sleep(60) if code == 99 else exit(code)"
        )
        original = subprocess.Popen
        monkeypatch.setattr(worker_processes, "CAUSE_SECONDS", 0.2)
        monkeypatch.setattr(
            worker_processes.subprocess,
            "Popen",
            lambda command, **rest: original([sys.executable, "-c", program], **rest),
        )

    return set_codes


@pytest.mark.parametrize(
    ("codes", "expected", "words"),
    [
        ((0, 0), ExitCode.DONE, ""),
        ((99, 2), ExitCode.USER_ERROR, "Worker 1: error: why"),  # another start would end alike
        ((99, -9), ExitCode.WORKER_LOST, "Worker 1 has ended (SIGKILL), and --restarts 1 allows no more restarts."),
        ((5, 99), ExitCode.WORKER_LOST, "Worker 1 does not answer, and --restarts 1 allows no more restarts."),
        ((143, 143), ExitCode.TERMINATED, ""),
    ],
)
def test_how_workers_end_decides(codes, expected, words, ends, tmp_path):
    messages = log_messages()
    ends(*codes)
    arguments = ["--workers", "2", "--restarts", "1", "run", "--run-dir", str(tmp_path / "run")]
    assert run_main(launch.main, arguments) == expected
    assert words in "\n".join(messages)


def test_a_worker_without_memory_ends_all_with_what_to_do(config):
    with pytest.raises(UserError, match="of a worker is not enough .* continue with one worker"):
        with oom_as_user_error(config, 2):
            raise MemoryError


@pytest.mark.long
def test_a_worker_that_is_silent_is_replaced_after_the_time_limit(config, alone, tmp_path):
    run_dir = RunDir(tmp_path / "run")
    process = launched(2, dataclasses.replace(config, worker_timeout=20.0), run_dir, "--restarts", "1")
    wait_for_step(process, run_dir, 4)
    subprocess.run(["kill", "-STOP", str(last_worker_of(process))], check=True)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and "Worker 1 does not answer; all start again from the last" in output, output
    assert_equal_to_rounding(run_dir, alone)
