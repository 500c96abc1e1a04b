"""The terminal and the log: every message goes through the logging module, tables and bars through one rich console."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from transfer_learning.cli.formatting import printable

PACKAGE = "transfer_learning"
WIDTH = 120  # of tables in files and pipes
FILE_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The reader of our output, such as `head`, has left: a run goes on without it."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console = _Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)


def print_line(text: str = "") -> None:
    """Prints the result of a command to standard output, each of its lines `printable`."""
    console.print("\n".join(map(printable, text.split("\n"))), markup=False)


class ConsoleHandler(logging.Handler):
    """Prints messages to standard output; warnings and errors begin with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print_line(level + record.getMessage())


def set_up_logging(level: int = logging.INFO) -> None:
    """Sends the messages of this package from `level` on to the terminal; a second call only changes the level."""
    logger = logging.getLogger(PACKAGE)
    handler = next((handler for handler in logger.handlers if isinstance(handler, ConsoleHandler)), None)
    if handler is None:
        handler = ConsoleHandler()
        logger.addHandler(handler)
    handler.setLevel(level)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False


@contextmanager
def logged_to(*handlers: logging.Handler) -> Iterator[None]:
    """Sends the messages of this package to `handlers` as well, from INFO on."""
    logger, level = logging.getLogger(PACKAGE), logging.getLogger(PACKAGE).level
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)


def log_file(path: Path) -> logging.Handler:
    """A handler that appends messages to the file `path`, each with its time and level."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="surrogateescape")
    handler.setFormatter(logging.Formatter(FILE_FORMAT))
    return handler


@contextmanager
def each_message_once() -> Iterator[None]:
    """Drops messages that were logged before in this block, as when several runs load the same dataset."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not (message in seen or seen.add(message))

    handlers = list(logging.getLogger(PACKAGE).handlers)
    for handler in handlers:
        handler.addFilter(is_new)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_new)


@contextmanager
def muted() -> Iterator[None]:
    """Drops messages below WARNING, as those of a device that is set up again for a finished run."""
    logger = logging.getLogger(PACKAGE)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
