"""What a Ray worker does, and the addresses of the workers in its TF_CONFIG; a real cluster is in tests/test_launch.py."""

import json
import os
import socket
from types import SimpleNamespace

import pytest

from tests.support import ROOT
from tests.support.ports import free_ports
from transfer_learning.errors import ExitCode
from transfer_learning.machine import ray_workers
from transfer_learning.machine.ray_cluster import PerWorker


class Group:
    """Workers on machines with these addresses; what is executed on worker `here` is executed in this process."""

    def __init__(self, hosts, here):
        self.hosts, self.here = hosts, here

    def execute(self, function):
        return self.hosts

    def execute_single(self, index, function, *arguments):
        if function is not ray_workers._set_tf_config or index == self.here:
            return function(*arguments)


def test_tf_config_names_all_workers_with_ports_that_are_free(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "")
    [first] = free_ports(1)
    with socket.create_server(("", first)):
        config = ray_workers.TfConfig(first)
        config.backend_cls().on_start(Group(["a", "b", "a"], here=2), config)
    found = json.loads(os.environ["TF_CONFIG"])
    hosts, ports = zip(*(address.split(":") for address in found["cluster"]["worker"]), strict=True)
    assert hosts == ("a", "b", "a") and found["task"] == {"type": "worker", "index": 2}
    assert ports[0] != ports[2] and all(first < int(port) < first + 1000 for port in ports)


@pytest.fixture
def worked(monkeypatch, tmp_path):
    """Does what a Ray worker does, with these options of `run`; returns exit code or error, and the mailbox."""
    monkeypatch.setattr(ray_workers, "_answer", lambda answer: answer)
    mailbox = ray_workers.Mailbox()
    remote = SimpleNamespace(
        **{name: SimpleNamespace(remote=getattr(mailbox, name)) for name in ("exchange", "set_final")}
    )

    def work(index, *words):
        context = SimpleNamespace(get_world_rank=lambda: index)
        monkeypatch.setattr(ray_workers.ray.train, "get_context", lambda: context)
        job = ray_workers.RayJob(words, True, str(tmp_path / "run"), str(ROOT), 2, PerWorker(1, 0), 3, 23_000)
        try:
            return ray_workers._work({"job": job, "mailbox": remote}), mailbox
        except RuntimeError as error:
            return str(error), mailbox

    return work


def test_worker_0_sends_what_it_prints(worked):
    code, mailbox = worked(0, "--help")
    assert code == ExitCode.DONE and b"usage: transfer-learning run" in mailbox.collect(0) and not mailbox.final()


def test_an_error_that_would_come_again_is_final_and_named(worked):
    error, mailbox = worked(1, "--nonsense", "1")
    assert mailbox.final() == ExitCode.USER_ERROR and error.startswith("Worker 1: error: ") and "nonsense" in error
    assert mailbox.collect(0).decode() == error
