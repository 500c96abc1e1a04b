"""Signals that stop a run: in the loop they wait for the end of the update and a checkpoint, elsewhere they act at once."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transfer_learning.errors import Stopped

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C; an end that is wanted; a batch system's warning


class StopRequest:
    """Takes SIGINT, SIGTERM and SIGUSR1 while it is used as a context manager."""

    def __init__(self):
        self._received: int | None = None
        self._deferred = False

    def __enter__(self) -> "StopRequest":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            for number in STOPS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block a signal is only noted; it takes effect at `raise_if_received`, and at the block's end."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.raise_if_received()

    @property
    def is_received(self) -> bool:
        return self._received is not None

    @property
    def signal_number(self) -> int | None:
        return self._received

    def raise_if_received(self) -> None:
        if self._received is not None:
            raise Stopped(self._received)

    def _receive(self, number: int, frame) -> None:
        self._received = number
        if not self._deferred:
            raise Stopped(number)


class Watchdog:
    """Ends a process that a signal asked to stop, and that has not done so in time; a context manager.

    Python's handlers wait until TensorFlow returns from an update, which may take longer than a batch system waits. What
    then counts is the checkpoint before it. Ctrl-C is left to the person at the keyboard.

    Args:
        end: called with the signal's number, in a thread; it is to end the process.
        seconds: that the process has after a signal.
    """

    def __init__(self, end: Callable[[int], None], seconds: float = 15.0):
        self._end, self._seconds = end, seconds
        self._is_over = threading.Event()

    def __enter__(self) -> "Watchdog":
        self._heard, self._told = socket.socketpair()
        self._told.setblocking(False)
        self._previous = signal.set_wakeup_fd(
            self._told.fileno()
        )  # gets the number of each signal, whatever Python does
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._is_over.set()
        signal.set_wakeup_fd(self._previous)
        self._told.close()

    def _watch(self) -> None:
        with self._heard:
            while number := self._heard.recv(1):
                if number[0] in STOPS and number[0] != signal.SIGINT and not self._is_over.wait(self._seconds):
                    self._end(number[0])
