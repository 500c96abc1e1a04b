"""What a user can do wrong, and how a command says so: one sentence and an exit code, never a traceback."""

import difflib
import signal
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every verb; 130, 138 and 143 are what shells report for SIGINT, SIGUSR1 and SIGTERM."""

    DONE = 0
    FAILED = 1  # a fault of the program: a traceback is printed
    USER_ERROR = 2
    INTERRUPTED = 130
    PREEMPTED = 138  # by a batch system that warns ahead of a time limit, as SLURM does
    TERMINATED = 143


class UserError(Exception):
    """Something the user can mend.

    The message is one sentence (or two) that says what was given, what was expected and what to do next.
    """


class Stopped(BaseException):
    """A signal ended the run; everything that a resumed run needs is on disk.

    No Exception, as KeyboardInterrupt is none: it comes wherever the program is, also inside a library that takes every
    Exception for its own failure. Keras would raise another one in its place.
    """

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = ExitCode(128 + signal_number)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``" Did you mean a or b?"`` for the names nearest to `name`, or all known names where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else f" Known: {', '.join(known)}."
