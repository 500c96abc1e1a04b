"""Worker processes of `run` on this machine: started together, watched, and ended together."""

import atexit
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

from transfer_learning.errors import STOPS, ExitCode, UserError
from transfer_learning.machine.cluster import tf_config
from transfer_learning.machine.gpus import cuda_names
from transfer_learning.machine.resources import usable_cores

logger = logging.getLogger(__name__)

NUM_PORTS = 2000  # that are tried
ENDING_SECONDS = 60.0  # for the other workers, once one has ended by itself
CAUSE_SECONDS = 10.0  # for the worker that others have lost


def free_ports(count: int, first: int, host: str = "127.0.0.1") -> list[int]:
    """The first `count` ports from `first` on that no program listens on; UserError if there are fewer. `host`: "" for
    all addresses of this machine.

    They stay reserved until this process ends: another call, by any process of this machine, returns others.
    """
    found: list[int] = []
    for port in range(first, min(first + NUM_PORTS, 65_536)):
        if len(found) == count:
            return found
        reservation = socket.socket(socket.AF_UNIX)
        try:
            reservation.bind(f"\0transfer-learning-port-{port}")  # a name in memory, not a file
            socket.create_server((host, port)).close()
        except OSError:
            reservation.close()
            continue
        atexit.register(reservation.close)
        found.append(port)
    raise UserError(
        f"Fewer than {count} of the ports {first} to {first + NUM_PORTS - 1} are free; give another --first-port."
    )


def end_with_parent(parent: int) -> None:
    """From now on Linux kills this process once its parent, of this process id, has ended: also where no thread can run,
    as while TensorFlow waits for other workers. It stays so after `exec`.
    """
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(ExitCode.FAILED)


def describe(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class WorkerProcesses:
    """The processes of one attempt; a context manager, after which none is left.

    Args:
        words: the options of `run`.
        ports: one per worker.
    """

    def __init__(self, words: Sequence[str], ports: Sequence[int]):
        self._words, self._addresses = words, [f"127.0.0.1:{port}" for port in ports]
        self._processes: list[subprocess.Popen] = []
        self._logs: list[IO[bytes]] = []
        self._received = self._sent = 0  # the last signal, and the last that the workers got
        self.first, self.how = 0, ""  # the worker that ended first, or is silent, and in words how

    def __enter__(self) -> "WorkerProcesses":
        self._previous = {number: signal.signal(number, self._receive) for number in STOPS}
        for index in range(len(self._addresses)):
            log = tempfile.TemporaryFile()
            output: dict[str, Any] = {"stdout": log, "stderr": log} if index else {}
            command = [sys.executable, "-m", "transfer_learning", "run", *self._words]
            environment = os.environ | self._environment(index)
            # In a session of its own, so that Ctrl-C comes once.
            self._processes.append(subprocess.Popen(command, env=environment, start_new_session=True, **output))
            self._logs.append(log)
        return self

    def __exit__(self, *error) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for log in self._logs:
            log.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def wait(self) -> int:
        """Returns the exit code of the run once worker 0 has ended or another one has failed; below 0 for a signal."""
        while True:
            codes = self._codes()
            failed = {index: code for index, code in codes.items() if code}
            if set(failed.values()) == {ExitCode.WORKER_LOST}:  # the worker that they lost ends soon, too
                self._wait_for_all(CAUSE_SECONDS)
                failed |= {index: code for index, code in self._codes().items() if code}
            if failed:
                return self._of_failed(failed)
            if 0 in codes:
                self._wait_for_all()
                return ExitCode.DONE
            time.sleep(0.1)

    def _of_failed(self, failed: dict[int, int]) -> int:
        """The worker that was killed is the cause, and those that lost it are not."""
        self.first = min(failed, key=lambda index: (failed[index] == ExitCode.WORKER_LOST, failed[index]))
        code = failed[self.first]
        self.how = f"has ended ({describe(code)})"
        if number := self._received or (code - 128 if code - 128 in STOPS else 0):
            self._wait_for_all()
            own = self._codes().get(0, code)
            return 128 + number if own < 0 or own == ExitCode.WORKER_LOST else own
        silent = [index for index in range(len(self._processes)) if index not in self._codes()]
        if code == ExitCode.WORKER_LOST and silent:
            self.first, self.how = silent[0], "does not answer"
            return code
        if self.first and code > 0:
            self._logs[self.first].seek(0)
            lines = self._logs[self.first].read().decode(errors="replace").strip().splitlines()
            logger.warning(f"Worker {self.first}: {lines[-1] if lines else describe(code)}")
        return code

    def _wait_for_all(self, seconds: float = ENDING_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while len(self._codes()) < len(self._processes) and time.monotonic() < deadline:
            time.sleep(0.1)

    def _codes(self) -> dict[int, int]:
        """Exit codes of the workers that have ended; the others get a signal that came meanwhile."""
        if self._received != self._sent:
            self._sent = self._received
            for process in self._processes:
                if process.poll() is None:
                    process.send_signal(self._sent)
        return {index: code for index, one in enumerate(self._processes) if (code := one.poll()) is not None}

    def _environment(self, index: int) -> dict[str, str]:
        count = len(self._addresses)
        values = {"TF_CONFIG": tf_config(self._addresses, index)}
        values["TF_NUM_INTRAOP_THREADS"] = os.environ.get(
            "TF_NUM_INTRAOP_THREADS", str(max(1, usable_cores() // count))
        )
        if gpus := cuda_names():
            values["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[index::count])
        return values

    def _receive(self, number: int, frame) -> None:
        self._received = number  # `_codes` sends it, once all workers are started
