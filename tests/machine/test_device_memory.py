"""What is held in the memory of a GPU; the copies to a device are tested on two simulated ones, see test_strategy.py."""

import numpy as np
import pytest
import tensorflow as tf

from tests.machine.test_gpus import GPU, NOT_SUPPORTED, make_machine
from transfer_learning.machine import device_memory
from transfer_learning.machine.device_memory import STEPS_AHEAD, gpu_bytes, results


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["first", "second"])
    gpu_bytes.cache_clear()
    yield
    gpu_bytes.cache_clear()


def test_without_a_gpu_there_is_no_memory_of_one():
    gpu_bytes.cache_clear()
    assert gpu_bytes() == 0


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ([GPU, GPU | {"uuid": "GPU-bb22", "memory": (0, 2e9)}], 2_000_000_000),
        ([GPU, GPU | {"uuid": "GPU-bb22", "memory": NOT_SUPPORTED}], 0),
    ],
    ids=["the smaller one", "not reported"],
)
def test_the_memory_of_all_gpus_is_that_of_the_smallest(machine, expected, two_gpus, monkeypatch):
    make_machine(monkeypatch, *machine)
    assert gpu_bytes() == expected


def test_a_driver_that_fails_reports_no_memory(two_gpus, monkeypatch):
    monkeypatch.setattr(device_memory.gpus, "visible_gpus", lambda number: (_ for _ in ()).throw(NOT_SUPPORTED))
    assert gpu_bytes() == 0


@pytest.mark.parametrize("ahead", [0, STEPS_AHEAD], ids=["processor", "GPU"])
def test_results_of_a_gpu_are_read_when_later_steps_are_under_way(ahead, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"] * ahead)
    events = []

    class Tensor:
        def __init__(self, number):
            self.number = number

        def __array__(self, dtype=None, copy=None):
            events.append(f"read {self.number}")
            return np.array(self.number)

    def steps():
        for number in range(5):
            events.append(f"step {number}")
            yield (Tensor(number),)

    assert [int(number) for (number,) in results(steps())] == [0, 1, 2, 3, 4]
    expected = [f"step {number}" for number in range(ahead)]
    for number in range(5):
        expected += [f"step {number + ahead}"] * (number + ahead < 5) + [f"read {number}"]
    assert events == expected
