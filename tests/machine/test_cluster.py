"""Workers named by TF_CONFIG or SLURM, and their meeting: each contradiction is one sentence, and nothing hangs."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.ports import free_ports
from transfer_learning.errors import UserError, WorkerLost
from transfer_learning.machine import cluster
from transfer_learning.machine.cluster import Cluster, Meeting, expanded, find_cluster


def tf_config(jobs, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})}


TWO = ["a:1", "b:2"]
SLURM = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "n[1-2],m", "SLURM_PROCID": "2", "SLURM_JOB_ID": "70007"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (tf_config({"worker": ["a:1"]}), None),  # one worker is no cluster
        (tf_config({"worker": TWO}, index=1), Cluster(("a:1", "b:2"), 1, "TF_CONFIG")),
        (tf_config({"chief": ["c:3"], "worker": TWO}, index=1), Cluster(("c:3", "a:1", "b:2"), 2, "TF_CONFIG")),
        (tf_config({"chief": ["c:3"], "worker": TWO}, "chief"), Cluster(("c:3", "a:1", "b:2"), 0, "TF_CONFIG")),
        (SLURM, Cluster(("n1:20007", "n2:20007", "m:20007"), 2, "SLURM")),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
    ],
)
def test_the_environment_names_the_workers(environment, expected):
    assert find_cluster("auto", environment) == expected
    assert find_cluster("one", environment) is None


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TF_CONFIG": "{"}, "TF_CONFIG cannot be read as JSON"),
        ({"TF_CONFIG": '{"cluster": {"worker": 3}, "task": []}'}, "TF_CONFIG cannot be read"),
        (tf_config({"worker": TWO}, index=2), "has the task worker 2, and its cluster has 2 worker"),
        (tf_config({"worker": TWO}, "chief"), "has the task chief 0, and its cluster has 2 worker"),
        (tf_config({"worker": TWO, "ps": ["c:1"]}), "names ps, and only chief and worker are used"),
        (tf_config({"worker": ["a:1", "a:1"]}), "gives a:1 to several workers"),
        (tf_config({"worker": ["a:1", "b"]}), "has the address 'b'; HOST:PORT was expected"),
        (tf_config({"worker": ["a:1", "b:65536"]}), "has the address 'b:65536'; HOST:PORT was expected"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "6"}, "6 tasks on 3 nodes .*--ntasks-per-node=1"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "x"}, "SLURM's variables cannot be read"),
        (SLURM | {"SLURM_PROCID": "x"}, "SLURM's variables cannot be read"),
    ],
)
def test_contradictions_are_one_sentence(environment, words):
    with pytest.raises(UserError, match=words):
        find_cluster("auto", environment)


def test_several_workers_that_nobody_names_are_an_error():
    with pytest.raises(UserError, match="--strategy multi-worker needs workers"):
        find_cluster("multi-worker", {})


def test_node_lists_of_slurm():
    assert expanded("gpu[01-03,7],login") == ["gpu01", "gpu02", "gpu03", "gpu7", "login"]


def meeting(index, addresses, seconds=10.0, **changes):
    made = Meeting(Cluster(tuple(addresses), index, "TF_CONFIG"), {"seed": index}, seconds)
    made._own |= changes
    return made


def meet(*meetings, problem_of=lambda other: ""):
    """What each of the workers gets: the config, or its error."""

    def take_part(index, one):
        try:
            with one:
                return one.follow() if index else one.lead(problem_of, "the config")
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(meetings)) as threads:
        return list(threads.map(take_part, range(len(meetings)), meetings))


def addresses(count):
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


def test_all_workers_get_the_config_of_worker_0():
    places, seen = addresses(3), []
    meetings = [meeting(index, places) for index in range(3)]
    results = meet(*meetings, problem_of=lambda other: seen.append(other["given"]["seed"]) or "")
    assert results == [None, "the config", "the config"] and sorted(seen) == [1, 2]


@pytest.mark.parametrize(
    ("changes", "problem", "words"),
    [
        ({"versions": {"transfer-learning": "0"}}, "", "Worker 1 has transfer-learning 0, and worker 0 has"),
        ({"workers": ["x:1", "y:2"]}, "", "Worker 1 knows the workers x:1, y:2, and worker 0 knows 127.0.0.1"),
        ({}, "Worker 1 has other flags", "Worker 1 has other flags"),
    ],
)
def test_workers_that_differ_all_end_with_the_same_sentence(changes, problem, words):
    places = addresses(2)
    errors = meet(meeting(0, places), meeting(1, places, **changes), problem_of=lambda other: problem)
    assert len({str(error) for error in errors}) == 1 and words in str(errors[0])


def test_a_worker_that_does_not_come_is_named():
    places = addresses(3)
    chief, other = meet(meeting(0, places, 0.6), meeting(1, places))
    assert str(chief) == str(other) and f"Worker 2 ({places[2]}) did not connect within 0.6 s" in str(chief)


def test_a_program_that_connects_and_sends_nothing_keeps_no_worker_out(monkeypatch):
    monkeypatch.setattr(cluster, "SENDING_SECONDS", 0.1)
    places = addresses(2)
    host, port = places[0].split(":")
    with ThreadPoolExecutor(2) as threads, meeting(0, places, 2.0) as chief, meeting(1, places) as one:
        with socket.create_connection((host, int(port))):
            led = threads.submit(chief.lead, lambda other: "", "the config")
            assert one.follow() == "the config" and led.result() is None


def test_a_worker_0_that_does_not_come_is_named():
    places = addresses(2)
    with meeting(1, places, 0.3) as one, pytest.raises(UserError, match=r"Worker 0 \(127.0.0.1:\d+\) did not connect"):
        one.follow()


def test_a_worker_0_that_ends_before_the_run_is_noticed():
    places = addresses(2)
    with ThreadPoolExecutor(1) as thread, meeting(1, places) as one:
        with meeting(0, places) as chief:
            answer = thread.submit(one.follow)
            chief._stack.enter_context(chief._listener.accept()[0])
        with pytest.raises(WorkerLost, match="Worker 0 has ended before the run began"):
            answer.result()


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Worker 0 cannot use port {port} .*another program"):
            meeting(0, [f"127.0.0.1:{port}", "127.0.0.1:1"]).__enter__()
