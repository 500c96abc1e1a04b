"""Steps that devices or processes share equal those of one device; workers that differ or end are noticed."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import tensorflow as tf

from tests.support import ROOT
from tests.support.logs import log_messages
from tests.support.ports import free_ports
from transfer_learning.errors import UserError
from transfer_learning.machine import strategy
from transfer_learning.machine.cluster import Cluster


def started(*arguments):
    command = [sys.executable, "-m", "tests.support.shared_steps", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.long)])
def test_shared_steps_equal_those_of_one_device(count):
    """With accumulation, a short last batch, class weights, mixed_float16 and several steps per call."""
    places = ",".join(f"127.0.0.1:{port}" for port in free_ports(count))
    processes = [started(places, str(index)) for index in range(count)] + ([started("mirrored")] if count == 2 else [])
    chief, *others = [process.communicate(timeout=200) for process in processes]
    for (output, errors), process in zip(others, processes[1:], strict=True):
        assert "equal" in output and process.returncode == 0, errors
    different = ", ".join(str(index) for index in range(1, count))
    assert f"Worker {different} has another dataset than worker 0" in chief[0], chief[1]
    assert "WorkerLost: " in chief[1] and "has ended or does not answer, so this one ends too" in chief[1]


def test_mirrored_needs_several_devices():
    with pytest.raises(UserError, match="--strategy mirrored needs several GPUs"):
        strategy.form_workers("mirrored", None, 1.0)


def test_a_port_that_was_taken_meanwhile_is_named(monkeypatch):
    def fail(resolver):
        raise tf.errors.UnknownError(None, None, "Could not start gRPC server")  # as TensorFlow 2.21 says

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", fail)
    monkeypatch.setattr(strategy, "ignore_errors_of_deletion", lambda: None)
    with pytest.raises(UserError, match="Worker 1 cannot listen on 127.0.0.1:2; another program may have the port"):
        strategy.form_workers("auto", Cluster(("127.0.0.1:1", "127.0.0.1:2"), 1, "TF_CONFIG"), 60.0)


@pytest.mark.parametrize(
    ("chosen", "num_gpus", "num_devices", "reason"),
    [
        ("auto", 0, 1, "Strategy one (one device, and no other workers)."),
        ("auto", 1, 1, "Strategy one (one device, and no other workers)."),
        ("one", 2, 1, "Strategy one (--strategy)."),
        ("auto", 2, 2, "Strategy mirrored (several GPUs; --strategy one uses the first alone): 2 devices share the"),
        ("mirrored", 3, 3, "Strategy mirrored (--strategy): 3 devices share the images of a batch."),
    ],
)
def test_the_strategy_is_chosen_and_logged_with_its_reason(chosen, num_gpus, num_devices, reason, monkeypatch):
    gpus = [SimpleNamespace(name=f"GPU:{number}") for number in range(num_gpus)]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: gpus)
    monkeypatch.setattr(strategy, "_mirrored", lambda names: names)
    messages = log_messages()
    workers = strategy.form_workers(chosen, None, 1.0)
    assert (workers.num_devices, workers.count) == (num_devices, 1) and workers.is_chief
    assert workers.strategy == (tuple(gpu.name for gpu in gpus) if num_devices > 1 else None)
    [message] = messages
    assert message.startswith(reason)


@pytest.mark.parametrize(
    ("error", "is_printed"),
    [(tf.errors.UnavailableError(None, None, "worker 1 has ended"), False), (RuntimeError("of ours"), True)],
)
def test_a_function_deleted_after_another_worker_has_ended_prints_nothing(error, is_printed, monkeypatch):
    class Function:
        def __del__(self):
            raise error

    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    strategy.ignore_errors_of_deletion()
    function = Function()
    del function
    assert bool(printed) == is_printed
