"""Ctrl-C and SIGTERM: inside the loop they wait for the end of the update and a checkpoint, elsewhere they act at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from transfer_learning.errors import Stopped


class StopRequest:
    """Takes SIGINT and SIGTERM while it is used as a context manager."""

    def __init__(self):
        self._received: int | None = None
        self._deferred = False

    def __enter__(self) -> "StopRequest":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
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

    def raise_if_received(self) -> None:
        if self._received is not None:
            raise Stopped(self._received)

    def _receive(self, number: int, frame) -> None:
        self._received = number
        if not self._deferred:
            raise Stopped(number)
