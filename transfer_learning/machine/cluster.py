"""The worker processes of a run: found in TF_CONFIG or SLURM's variables, and their meeting before the run begins.

The meeting is over plain TCP at the address of worker 0, which TensorFlow uses afterwards: so a missing worker has a name,
and workers that differ end with a sentence instead of wrong numbers.
"""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from transfer_learning import __version__
from transfer_learning.errors import UserError, WorkerLost

SLURM_PORT = 20_000  # the first of 10,000 from which the number of a job chooses
PACKAGES = ("tensorflow", "keras", "numpy", "pillow")
LOOPBACK = ("127.0.0.1", "localhost")
SENDING_SECONDS = 5.0  # a worker sends as soon as it is connected; the others wait for it
CHOOSING_SECONDS = 3600.0  # worker 0 may measure images before it has chosen all settings
ADVICE = "set it to none, or give --strategy one to train alone"


@dataclass(frozen=True)
class Cluster:
    """The worker processes of a run, as one of them sees them."""

    addresses: tuple[str, ...]  # HOST:PORT of each, worker 0 first
    index: int  # of this process
    found_in: str  # "TF_CONFIG" or "SLURM"

    @property
    def is_chief(self) -> bool:
        return self.index == 0


def find_cluster(strategy: str = "auto", environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """Returns the workers that TF_CONFIG or a SLURM step of several tasks names; None for one worker, or if `strategy` does
    not ask for several.

    Raises:
        UserError: the variables contradict themselves, or `strategy` is "multi-worker" and there are none.
    """
    if strategy in ("one", "mirrored"):
        return None
    if text := environment.get("TF_CONFIG"):
        cluster = _from_tf_config(text)
    elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        cluster = _from_slurm(environment)
    elif strategy == "multi-worker":
        raise UserError(
            "--strategy multi-worker needs workers, and neither TF_CONFIG nor a SLURM step names any; start the run with "
            "`transfer-learning launch` or `srun`, or leave the flag out."
        )
    else:
        return None
    if repeated := {address for address in cluster.addresses if cluster.addresses.count(address) > 1}:
        raise UserError(
            f"{cluster.found_in} gives {repeated.pop()} to several workers; give each a HOST:PORT of its own."
        )
    return cluster if len(cluster.addresses) > 1 else None


def tf_config(addresses: Sequence[str], index: int) -> str:
    """The value of TF_CONFIG for one of the workers at these addresses, which `find_cluster` reads."""
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}})


def _from_tf_config(text: str) -> Cluster:
    try:
        values = json.loads(text)
        jobs, task = values.get("cluster", {}), values.get("task", {})
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
        addresses = {name: tuple(map(str, jobs.get(name, ()))) for name in ("chief", "worker")}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"TF_CONFIG cannot be read as JSON with cluster and task ({error}); {ADVICE}.") from None
    if others := set(jobs) - set(addresses):
        raise UserError(f"TF_CONFIG names {', '.join(sorted(others))}, and only chief and worker are used; remove it.")
    if kind not in addresses or not 0 <= index < len(addresses[kind]):
        listed = ", ".join(f"{len(names)} {name}" for name, names in addresses.items() if names) or "none"
        raise UserError(f"TF_CONFIG has the task {kind} {index}, and its cluster has {listed}; correct one of them.")
    every = addresses["chief"] + addresses["worker"]
    if wrong := [address for address in every if not _is_address(address)]:
        raise UserError(f"TF_CONFIG has the address {wrong[0]!r}; HOST:PORT was expected, such as 10.0.0.5:2222.")
    return Cluster(every, index + (len(addresses["chief"]) if kind == "worker" else 0), "TF_CONFIG")


def _is_address(text: str) -> bool:
    found = re.fullmatch(r"[^:/\s]+:([0-9]{1,5})", text)
    return found is not None and 0 < int(found[1]) < 65536


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    try:
        hosts = expanded(environment["SLURM_STEP_NODELIST"])
        index, num_tasks = int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"])
        port = SLURM_PORT + int(environment["SLURM_JOB_ID"]) % 10_000
    except (KeyError, ValueError) as error:
        raise UserError(
            f"SLURM's variables cannot be read ({error}); start the run with srun, or set TF_CONFIG."
        ) from None
    if len(hosts) != num_tasks:
        raise UserError(
            f"The SLURM step has {num_tasks} tasks on {len(hosts)} nodes ({', '.join(hosts)}); give --ntasks-per-node=1, "
            "because one worker uses all GPUs of its node."
        )
    return Cluster(tuple(f"{host}:{port}" for host in hosts), index, "SLURM")


def expanded(nodes: str) -> list[str]:
    """``gpu[01-03,7],login`` -> ``[gpu01, gpu02, gpu03, gpu7, login]``; ValueError for other forms."""
    hosts = []
    for name, numbers, rest in re.findall(r"([^,\[]+)(?:\[([^\]]*)\])?([^,]*),?", nodes):
        if rest:
            raise ValueError(f"node list {nodes}")
        for part in numbers.split(",") if numbers else [""]:
            first, _, last = part.partition("-")
            every = range(int(first), int(last) + 1) if last else [first]
            hosts += [f"{name}{number:0{len(first)}}" if last else f"{name}{number}" for number in every]
    return hosts


class Meeting:
    """Worker 0 waits for the others, compares what they have with its own, and sends them its config; a context manager.

    Args:
        given: the settings that this worker was given.
        seconds: to wait for a worker that does not come.
    """

    def __init__(self, cluster: Cluster, given: Mapping[str, Any], seconds: float):
        self._cluster, self._seconds = cluster, seconds
        self._own: dict[str, Any] = {
            "index": cluster.index,
            "workers": list(cluster.addresses),
            "versions": {"transfer-learning": __version__, **{name: version(name) for name in PACKAGES}},
            "given": dict(given),
        }
        self._stack = ExitStack()

    def __enter__(self) -> "Meeting":
        self._listener = self._listen()
        if not self._cluster.is_chief:
            self._listener.close()  # it was free: TensorFlow opens it later
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()  # workers that still wait see it
        self._listener.close()

    def _listen(self) -> socket.socket:
        host, _, port = self._cluster.addresses[self._cluster.index].partition(":")
        try:
            return socket.create_server((host if host in LOOPBACK else "", int(port)), backlog=128)
        except OSError as error:
            raise UserError(
                f"Worker {self._cluster.index} cannot use port {port} ({error.strerror}); another program may have it: end "
                f"that one, or give another port in {self._cluster.found_in}."
            ) from None

    def lead(self, problem_of: Callable[[Mapping[str, Any]], str], config: str) -> None:
        """Worker 0: waits for all others, and sends them `config`.

        Args:
            problem_of: what is wrong with the settings ("given") of another worker (its "index"), or "".

        Raises:
            UserError: a worker has not come, or has other versions, workers or settings.
        """
        workers: dict[int, socket.socket] = {}
        count, problem = len(self._cluster.addresses), ""
        deadline = time.monotonic() + self._seconds
        while len(workers) < count - 1 and not problem:
            self._listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection = self._stack.enter_context(self._listener.accept()[0])
            except TimeoutError:
                missing = [index for index in range(1, count) if index not in workers]
                named = ", ".join(f"{index} ({self._cluster.addresses[index]})" for index in missing)
                problem = (
                    f"Worker {named} did not connect within {self._seconds:g} s (--worker-timeout); start {count} "
                    f"workers, and see whether they reach {self._cluster.addresses[0]}."
                )
                break
            connection.settimeout(SENDING_SECONDS)
            try:
                other = json.loads(_read(connection))
                workers[other["index"]] = connection
                problem = self._compare(other) or problem_of(other)
            except (OSError, ValueError, KeyError, TypeError):  # not one of ours
                continue
        for connection in workers.values():
            with suppress(OSError):
                connection.sendall(json.dumps({"problem": problem, "config": config}).encode() + b"\n")
        if problem:
            raise UserError(problem)

    def _compare(self, other: Mapping[str, Any]) -> str:
        for name, own in self._own["versions"].items():
            if other["versions"].get(name) != own:
                found = other["versions"].get(name)
                return f"Worker {other['index']} has {name} {found}, and worker 0 has {own}; install the same version."
        if other["workers"] != self._own["workers"]:
            return (
                f"Worker {other['index']} knows the workers {', '.join(other['workers'])}, and worker 0 knows "
                f"{', '.join(self._own['workers'])}; give all the same {self._cluster.found_in}."
            )
        return ""

    def follow(self) -> str:
        """Another worker: returns the config that worker 0 sends once all have come.

        Raises:
            UserError: worker 0 has not come, or has found a difference.
            WorkerLost: it has ended.
        """
        host, _, port = self._cluster.addresses[0].partition(":")
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                connection = self._stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"Worker 0 ({host}:{port}) did not connect within {self._seconds:g} s (--worker-timeout; "
                        f"{error.strerror or error}); start it, or correct its address in {self._cluster.found_in}."
                    ) from None
                time.sleep(0.2)
        try:
            connection.settimeout(CHOOSING_SECONDS)
            connection.sendall(json.dumps(self._own).encode() + b"\n")
            answer = json.loads(_read(connection))
        except (OSError, ValueError) as error:
            raise WorkerLost(f"Worker 0 has ended before the run began ({error}); see its messages.") from None
        if answer["problem"]:
            raise UserError(answer["problem"])
        return answer["config"]


def _read(connection: socket.socket) -> bytes:
    """One line of at most a megabyte."""
    with connection.makefile("rb") as file:
        line = file.readline(1 << 20)
    if not line.endswith(b"\n"):
        raise ValueError("the connection was closed")
    return line
