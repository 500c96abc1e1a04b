"""Signals that stop a run: in the loop after the train step and a checkpoint, elsewhere at once."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transfer_learning.errors import STOPS, Stopped, WorkerLost

AGAIN_SECONDS = 0.1  # until a signal that came while an object was deleted takes effect


class StopRequest:
    """Handles SIGINT, SIGTERM and SIGUSR1 while it is used as a context manager, by raising Stopped."""

    def __init__(self):
        self.signal_number: int | None = None  # of the last signal
        self._deferred = False

    def __enter__(self) -> "StopRequest":
        self._previous: dict[int, Any] = {}
        self._report, sys.unraisablehook = sys.unraisablehook, self._ignored
        self.take_signals()
        return self

    def take_signals(self) -> None:
        """Takes the signals again after another library, as TensorFlow's coordination of workers does SIGTERM."""
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only here
            for number in STOPS:
                previous = signal.signal(number, self._receive)
                self._previous.setdefault(number, previous)

    def __exit__(self, kind, error, traceback) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if sys.unraisablehook == self._ignored:
            sys.unraisablehook = self._report
        if isinstance(error, WorkerLost):  # the signal has ended that worker, too
            self.raise_if_received()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block a signal takes effect only at `raise_if_received`, and at the end of the block."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.raise_if_received()

    @property
    def is_received(self) -> bool:
        return self.signal_number is not None

    def raise_if_received(self) -> None:
        if self.signal_number is not None:
            raise Stopped(self.signal_number)

    def receive(self) -> None:
        """Takes notice of a signal that another worker got."""
        self.signal_number = self.signal_number or signal.SIGTERM

    def _receive(self, number: int, frame) -> None:
        self.signal_number = number
        if not self._deferred:
            raise Stopped(number)

    def _ignored(self, found: Any) -> None:
        """Python ignores what is raised while an object is deleted: the signal comes once more."""
        if isinstance(found.exc_value, Stopped):
            threading.Timer(AGAIN_SECONDS, self._come_again).start()
        else:
            self._report(found)

    def _come_again(self) -> None:
        if self._previous and self.signal_number:
            os.kill(os.getpid(), self.signal_number)


class Watchdog:
    """Ends a process that has not stopped in time after SIGTERM or SIGUSR1; a context manager.

    Python's handlers wait until TensorFlow returns from a train step, which may take longer than a batch system waits;
    the run then continues from the checkpoint before. Ctrl-C is not watched.

    Args:
        end: called with the signal's number, in a thread; it has to end the process.
        seconds: time to stop after a signal.
    """

    def __init__(self, end: Callable[[int], None], seconds: float = 15.0):
        self._end, self._seconds = end, seconds
        self._is_over = threading.Event()

    def __enter__(self) -> "Watchdog":
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        # Python writes the number of each signal to it at once, even while TensorFlow is busy.
        self._previous = signal.set_wakeup_fd(self._writer.fileno())
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._is_over.set()
        signal.set_wakeup_fd(self._previous)
        self._writer.close()

    def _watch(self) -> None:
        with self._reader:
            while number := self._reader.recv(1):
                if number[0] in STOPS and number[0] != signal.SIGINT and not self._is_over.wait(self._seconds):
                    self._end(number[0])
