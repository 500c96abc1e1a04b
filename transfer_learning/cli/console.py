"""The terminal and the log: every message goes through the logging module, tables and bars through one rich console."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from transfer_learning.cli.formatting import printable
from transfer_learning.cli.streams import closed_at_start, lose_stream, prepare_streams
from transfer_learning.errors import UserError

PACKAGE = "transfer_learning"
WIDTH = 120  # of tables in files and pipes
# Environment variable: loggers whose names begin with its value print warnings only.
UNPRINTED = "TRANSFER_LEARNING_UNPRINTED"
Handler = TypeVar("Handler", bound=logging.Handler)
FILE_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _Console(Console):
    """A command goes on without its output if that cannot be written, unless the output is its result."""

    output_is_result = False

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError:  # a full disk, or a network folder that does not answer
            if self.output_is_result and not self.stderr:
                raise
            self._go_on_without_output()

    def on_broken_pipe(self) -> None:
        """The reader of our output, such as `head`, has left."""
        if self.output_is_result and not self.stderr:
            raise BrokenPipeError
        self._go_on_without_output()

    def _go_on_without_output(self) -> None:
        lose_stream(self.file)
        self.quiet = True


_is_terminal = sys.stdout is not None and sys.stdout.isatty()
console = _Console(highlight=False, soft_wrap=True, width=None if _is_terminal else WIDTH)


def print_line(text: str = "") -> None:
    """Prints the result of a command to standard output, each of its lines `printable`."""
    console.print("\n".join(map(printable, text.split("\n"))), markup=False)


def new_table(*columns: str) -> Table:
    """A table with these columns, all but the first one aligned to the right."""
    table = Table(columns[0], box=None, pad_edge=False, header_style="bold")
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def print_table(table: Table) -> None:
    """Prints a table unless --quiet was given."""
    if not is_quiet():
        console.print(table)


class ConsoleHandler(logging.Handler):
    """Prints messages to standard output; warnings and errors begin with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print_line(level + record.getMessage())


class _EarlyMessages(MemoryHandler):
    """Holds the messages of a command until there is a log file to write them to."""

    def __init__(self) -> None:
        super().__init__(capacity=1000, flushLevel=sys.maxsize)
        self.setLevel(logging.INFO)

    def shouldFlush(self, record: logging.LogRecord) -> bool:
        return False


def set_up_logging(level: int = logging.INFO) -> None:
    """Sends the messages of this package from `level` on to the terminal; a second call only changes the level."""
    prepare_streams()
    logger = logging.getLogger(PACKAGE)
    console_handler = _handler_of(ConsoleHandler)
    if console_handler is None:
        console_handler = ConsoleHandler()
        unprinted = os.environ.get(UNPRINTED) or "-"  # as no name begins
        console_handler.addFilter(
            lambda record: not record.name.startswith(unprinted) or record.levelno >= logging.WARNING
        )
        logger.addHandler(console_handler)
    console_handler.setLevel(level)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False


def is_quiet() -> bool:
    """Whether only warnings and errors are printed, as with --quiet."""
    handler = _handler_of(ConsoleHandler)
    return handler is not None and handler.level > logging.INFO


@contextmanager
def early_messages() -> Iterator[None]:
    """Holds the messages of this block, a whole command, until `log_file` opens the log that they belong to."""
    logger, handler = logging.getLogger(PACKAGE), _EarlyMessages()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def logged_to(*handlers: logging.Handler) -> Iterator[None]:
    """Sends the messages of this package to `handlers` as well, from INFO on; log files also get a UserError."""
    logger, level = logging.getLogger(PACKAGE), logging.getLogger(PACKAGE).level
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    except UserError as error:
        for handler in handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(logging.makeLogRecord({"name": PACKAGE, "levelname": "ERROR", "msg": str(error)}))
        raise
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)


def log_file(path: Path) -> logging.Handler:
    """A handler that appends messages to the file `path`, each with its time and level, after the early ones."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="surrogateescape")
    handler.setFormatter(logging.Formatter(FILE_FORMAT))
    early = _handler_of(_EarlyMessages)
    if early is not None:
        early.setTarget(handler)
        early.flush()
        early.setTarget(None)
        logging.getLogger(PACKAGE).removeHandler(early)
        for once in early.filters:  # of `each_message_once`
            handler.addFilter(once)
    return handler


def _handler_of(kind: type[Handler]) -> Handler | None:
    handlers = logging.getLogger(PACKAGE).handlers
    return next((handler for handler in handlers if isinstance(handler, kind)), None)


class _NewOnly(logging.Filter):
    """Drops messages of a logger and those below it that its handler had before."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            return True
        message = record.getMessage()
        is_new = message not in self._seen
        self._seen.add(message)
        return is_new


@contextmanager
def each_message_once(name: str = PACKAGE) -> Iterator[None]:
    """Drops messages that were logged before in this block, as when the same dataset is loaded twice.

    Args:
        name: of the logger that they come from, or that is above it.
    """
    filters = [(handler, _NewOnly(name)) for handler in logging.getLogger(PACKAGE).handlers]
    for handler, new_only in filters:
        handler.addFilter(new_only)
    try:
        yield
    finally:
        for handler, new_only in filters:
            handler.removeFilter(new_only)


@contextmanager
def output_is_result() -> Iterator[None]:
    """Marks a command whose result is its standard output: it ends when that cannot be written.

    Raises:
        UserError: standard output is closed.
    """
    if "stdout" in closed_at_start:
        raise UserError("Standard output is closed, and the result would go there; redirect it with > FILE.")
    console.output_is_result = True
    try:
        yield
    finally:
        console.output_is_result = False


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Sends messages to standard error, for a command whose standard output is data."""
    console.stderr = True
    try:
        yield
    finally:
        console.stderr = False


@contextmanager
def muted(name: str = PACKAGE, level: int = logging.WARNING) -> Iterator[None]:
    """Drops messages of a logger below a level, as those of a device that is set up again for a finished run."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
