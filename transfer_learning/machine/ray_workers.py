"""Workers of `run` on a Ray cluster: Ray Train places them, and starts all again if one is lost.

Each Ray worker starts the process that `launch` starts on one machine, with TF_CONFIG. Ray knows nothing of training:
checkpoints are those of the run directory, from which a new start continues.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from transfer_learning.errors import STOPS, ExitCode, WorkerLost
from transfer_learning.machine.cluster import tf_config
from transfer_learning.machine.ray_cluster import PerWorker
from transfer_learning.machine.worker_processes import CAUSE_SECONDS, describe, free_ports
from transfer_learning.storage.run_directory import RunDir

ANSWER_SECONDS = 60.0  # to wait for the mailbox
START_SECONDS = 600  # to wait for free processors, over all starts
# Starts Python with the other arguments, to be killed with the parent, whose process id is the first one (Linux).
WITH_PARENT = """import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.getppid() == int(sys.argv[1]) and os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"""


class RayJob(NamedTuple):
    """What the workers run, and what each of them gets."""

    words: Sequence[str]  # the options of `run`
    is_new: bool  # whether these begin a run; once it has begun, it is continued
    run_dir: str  # in a folder that all nodes see
    folder: str  # in which the workers start
    num_workers: int
    per_worker: PerWorker
    restarts: int
    first_port: int


class Mailbox:
    """An actor beside the driver: what workers print goes one way, and signals the other."""

    def __init__(self) -> None:
        self._text, self._signal, self._code = b"", 0, 0

    def exchange(self, text: bytes) -> int:
        """A worker sends what it has printed, and gets the number of a signal, or 0."""
        self._text += text
        return self._signal

    def collect(self, number: int) -> bytes:
        """The driver sends the number of a signal, or 0, and gets what was printed."""
        self._signal = number or self._signal
        text, self._text = self._text, b""
        return text

    def set_final(self, code: int) -> None:
        """A worker has ended with a code with which it would end again."""
        self._code = code

    def final(self) -> int:
        """That code, or 0."""
        return self._code


@dataclass
class TfConfig(BackendConfig):
    """Sets TF_CONFIG on each worker, with ports from a range, and nothing else."""

    first_port: int

    @property
    def backend_cls(self) -> type[Backend]:
        return _SetTfConfig


class _SetTfConfig(Backend):
    def on_start(self, worker_group, backend_config) -> None:
        hosts = worker_group.execute(ray.util.get_node_ip_address)
        ports = {}
        for host in dict.fromkeys(hosts):  # by one worker of each machine, so that no two choose the same
            arguments = hosts.count(host), backend_config.first_port, ""
            ports[host] = worker_group.execute_single(hosts.index(host), free_ports, *arguments)
        addresses = [f"{host}:{ports[host].pop(0)}" for host in hosts]
        for index in range(len(hosts)):
            worker_group.execute_single(index, _set_tf_config, addresses, index)


def _set_tf_config(addresses: list[str], index: int) -> None:
    os.environ["TF_CONFIG"] = tf_config(addresses, index)


class _EndForGood(UserCallback):
    """An error in Ray Train's controller ends the run, where one in a worker starts it again."""

    def __init__(self, mailbox: Any):
        self._mailbox = mailbox

    def after_exception(self, run_context, worker_exceptions) -> None:
        if code := _answer(self._mailbox.final.remote()):
            raise RuntimeError(f"a worker has ended with exit code {code}, which another start would not change")
        workers = ", ".join(map(str, sorted(worker_exceptions)))
        text = (
            f"Worker {workers} has ended; all start again from the last checkpoint, unless it was the last restart.\n"
        )
        _answer(self._mailbox.exchange.remote(text.encode()))


def train_on_ray(job: RayJob) -> ExitCode:
    """Trains until all workers have ended; the cluster has been joined. A signal stops all after the same train step.

    Returns:
        The exit code of the run: that of the worker that ended first, if it would end so again.

    Raises:
        WorkerLost: workers were lost more often than `job.restarts` allows, or did not start.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START_SECONDS // (job.restarts + 1))
    ended: list[Any] = []  # Ray Train's result or error

    def fit() -> None:
        try:
            ended.append(_trainer(job, mailbox, folder).fit())
        except Exception as error:
            ended.append(error)

    with tempfile.TemporaryDirectory() as folder, _received() as numbers:
        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            _print(_answer(mailbox.collect.remote(numbers[-1] if numbers else 0)))
        _print(_answer(mailbox.collect.remote(0)))
        code, [result] = _answer(mailbox.final.remote()), ended
    if isinstance(result, Exception) and not code:
        reason = " ".join(str(result).split())[-300:]
        raise WorkerLost(
            f"The workers were lost, or did not start within {START_SECONDS} s, as often as --restarts {job.restarts} "
            f"allows ({reason}); see `ray status`, then continue with --resume {job.run_dir}."
        )
    return ExitCode(code or result.return_value)


def _trainer(job: RayJob, mailbox: Any, folder: str) -> DataParallelTrainer:
    cpus, gpus = job.per_worker
    run_config: Any = RunConfig(
        storage_path=folder,  # Ray's own files, on the machine of the driver
        failure_config=FailureConfig(max_failures=job.restarts, controller_failure_limit=job.restarts),
        callbacks=[_EndForGood(mailbox)],
        logging_config=LoggingConfig("CRITICAL"),
    )
    return DataParallelTrainer(
        _work,
        train_loop_config={"job": job, "mailbox": mailbox},
        backend_config=TfConfig(job.first_port),
        scaling_config=ScalingConfig(
            num_workers=job.num_workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus},
            placement_strategy="SPREAD",
        ),
        run_config=run_config,
    )


def _work(config: dict[str, Any]) -> int:
    """Runs in each Ray worker: returns the exit code of its process if that is done or was stopped."""
    job, mailbox = config["job"], config["mailbox"]
    index, run_dir = ray.train.get_context().get_world_rank(), RunDir(job.run_dir)
    words = ["--resume", job.run_dir] if job.is_new and run_dir.config.exists() else job.words
    command = [sys.executable, "-c", WITH_PARENT, str(os.getpid()), "-m", "transfer_learning", "run", *words]
    environment = os.environ | {"TF_NUM_INTRAOP_THREADS": str(job.per_worker.cpus)}
    sent, number = 0, 0
    with tempfile.TemporaryFile() as log:
        output: dict[str, Any] = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(command, cwd=job.folder, env=environment, start_new_session=True, **output)
        try:
            code = None
            while code is None:
                time.sleep(0.2)
                code = process.poll()
                printed = os.pread(log.fileno(), 1 << 24, sent)
                sent += len(printed)
                received = _answer(mailbox.exchange.remote(b"" if index else printed))
                if received != number:
                    number = received
                    process.send_signal(number)
        finally:
            process.kill()
            process.wait()
        if number and (code < 0 or code == ExitCode.WORKER_LOST):  # it was still starting, or another one was
            code = 128 + number
        if code == ExitCode.DONE or code - 128 in STOPS:
            return code
        lines = os.pread(log.fileno(), 1 << 24, 0).decode(errors="replace").strip().splitlines()
    what = f"Worker {index}: {lines[-1] if lines and index and code > 0 else describe(code)}\n"
    _answer(mailbox.exchange.remote(what.encode()))
    if code > 0 and code != ExitCode.WORKER_LOST:
        _answer(mailbox.set_final.remote(code))
    elif code > 0:
        time.sleep(CAUSE_SECONDS)  # the worker that this one has lost fails first, if it can
    raise RuntimeError(what)


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference, timeout=ANSWER_SECONDS)
    except ray.exceptions.RayError as error:  # also of a timeout
        reason = " ".join(str(error).split())[:300]
        raise WorkerLost(f"The Ray cluster does not answer ({reason}); see `ray status`, then use --resume.") from None


def _print(text: bytes) -> None:
    with suppress(OSError):  # nobody reads it
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()


@contextmanager
def _received() -> Iterator[list[int]]:
    """The numbers of the signals that come within the block."""
    numbers: list[int] = []
    previous = {number: signal.signal(number, lambda number, _: numbers.append(number)) for number in STOPS}
    try:
        yield numbers
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
