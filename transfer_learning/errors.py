"""Errors that a user can fix, each one sentence and an exit code instead of a traceback."""

import difflib
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C; kill; a batch system's warning of its time limit


class ExitCode(IntEnum):
    """Exit codes of every command; from 130 on they are what shells report for SIGINT, SIGUSR1, SIGPIPE and SIGTERM."""

    DONE = 0
    FAILED = 1  # a bug: a traceback is printed
    USER_ERROR = 2
    LIMIT_EXCEEDED = 3  # a file or a model is worse than a limit allows
    DIVERGED = 4  # training diverged, and would again
    WORKER_LOST = 5  # another worker of the run has ended or does not answer; the run can be continued
    INTERRUPTED = 130
    NO_READER = 141  # the reader of a result on standard output has left, as `head` does
    PREEMPTED = 138  # by a batch system that warns before a time limit, such as SLURM
    TERMINATED = 143


class UserError(Exception):
    """An error that the user can fix.

    The message is one sentence: what was given, what was expected, what to do next.
    """

    exit_code = ExitCode.USER_ERROR


class Diverged(UserError):
    """The loss, a weight or a predicted probability is NaN or infinite."""

    exit_code = ExitCode.DIVERGED


class WorkerLost(UserError):
    """Another worker of the run has ended or does not answer."""

    exit_code = ExitCode.WORKER_LOST


class Stopped(BaseException):
    """A signal ended the run; everything that a resumed run needs is on disk.

    Like KeyboardInterrupt it is no Exception: Keras and other libraries would catch that and raise one of their own.
    """

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = ExitCode(128 + signal_number)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``" Did you mean a or b?"`` for the names nearest to `name` in any case, or all known names if none is."""
    known = sorted(known)
    by_lower = {one.lower(): one for one in known}
    near = [by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, n=2, cutoff=0.6)]
    return f" Did you mean {' or '.join(near)}?" if near else f" Known: {', '.join(known)}."


class MissingExtra(UserError):
    """An optional package is not installed."""


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Wraps the import of an optional package; a missing one is an error with the pip command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or extra).partition(".")[0]
        raise MissingExtra(
            f"The package {name} is not installed; install it with: pip install 'transfer-learning[{extra}]'."
        ) from None
