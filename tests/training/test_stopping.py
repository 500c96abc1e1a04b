"""Signals: deferred during a train step, immediate elsewhere; a process that does not stop in time is ended."""

import os
import signal
import threading
import time

import keras
import numpy as np
import pytest

from transfer_learning.errors import ExitCode, Stopped, UserError, WorkerLost
from transfer_learning.training.stopping import STOPS, StopRequest, Watchdog


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_waits_for_the_end_of_a_step(number):
    with StopRequest() as stop:
        with pytest.raises(Stopped) as stopped, stop.deferred():
            os.kill(os.getpid(), number)
            done = "the step"
            assert stop.is_received
        assert done and stopped.value.exit_code == ExitCode(128 + number)


@pytest.mark.parametrize("number", STOPS)
def test_outside_of_steps_it_acts_at_once(number):
    with StopRequest(), pytest.raises(Stopped):
        os.kill(os.getpid(), number)
        pytest.fail("it went on")


@pytest.mark.parametrize("inputs", [np.zeros((1, 2), np.float32), keras.Input((2,))], ids=["eager", "symbolic"])
def test_while_a_network_is_made_it_is_no_failure_of_the_network(inputs):
    class Signalled(keras.layers.Layer):
        def call(self, inputs):
            os.kill(os.getpid(), signal.SIGTERM)
            return inputs

    with StopRequest(), pytest.raises(Stopped):
        Signalled()(inputs)


@pytest.mark.parametrize("number", STOPS)
def test_while_an_object_is_deleted_it_acts_a_moment_later(number, capfd):
    class Signalled:
        def __del__(self):
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped) as stopped, StopRequest():
        Signalled()  # Python ignores what is raised in __del__
        time.sleep(60)
    assert stopped.value.exit_code == 128 + number and capfd.readouterr().err == ""


@pytest.mark.parametrize(("error", "expected"), [(WorkerLost, Stopped), (UserError, UserError)])
def test_a_worker_that_the_signal_ended_first_is_not_the_reason(error, expected):
    with pytest.raises(expected), StopRequest() as stop:
        stop.receive()
        raise error("it ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_process_that_does_not_stop_is_ended(number):
    ended, numbers = threading.Event(), []

    def end(number):
        numbers.append(number)
        ended.set()

    with StopRequest() as stop, pytest.raises(Stopped), Watchdog(end, seconds=0.0), stop.deferred():
        os.kill(os.getpid(), number)
        assert ended.wait(60), "the step never ends"
    assert numbers == [number]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_stops_is_not(number):
    numbers = []
    with StopRequest() as stop, pytest.raises(Stopped), Watchdog(numbers.append, seconds=60.0), stop.deferred():
        os.kill(os.getpid(), number)
    [watchdog] = [thread for thread in threading.enumerate() if thread.name == "watchdog"] or [None]
    if watchdog:
        watchdog.join(60)
    assert numbers == []


def test_the_wakeup_of_others_is_put_back():
    with Watchdog(lambda number: None):
        pass
    assert signal.set_wakeup_fd(-1) == -1
