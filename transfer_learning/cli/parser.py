"""What the commands share: their parser, and errors turned into one sentence and an exit code."""

import argparse
import errno
import logging
import os
import shlex
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from transfer_learning.cli.console import set_up_logging
from transfer_learning.cli.formatting import printable
from transfer_learning.errors import ExitCode, UserError

PROGRAM = "transfer-learning"

# Errors of the system that the user can fix; any other OSError is a bug.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)

# Lines that TensorFlow's libraries write to standard error while they are loaded.
REMARKS = ("I0000 ", "WARNING: All log messages before absl::InitializeLog()", "To enable the following instructions")


def run_main(
    main: Callable[[Sequence[str] | None], ExitCode | None], arguments: Sequence[str] | None = None
) -> ExitCode:
    """Calls the `main` of a command; a UserError becomes one line on standard error and its exit code."""
    try:
        code = main(arguments) or ExitCode.DONE
        sys.stdout.flush()
        return code
    except UserError as error:
        problem, code = str(error), error.exit_code
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python reports it again at exit
        return ExitCode.DONE
    except OSError as error:
        code = ExitCode.USER_ERROR
        if error.errno in FULL_DISK:
            problem = (
                f"The disk is full ({error.filename or error.strerror}); free some space, then continue the run with "
                "--resume."
            )
        elif error.errno in REFUSED:
            problem = (
                f"{error.filename or 'A file'} cannot be used ({error.strerror}); name another one, or change its "
                "permissions."
            )
        else:
            raise
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return ExitCode.INTERRUPTED
    print(f"error: {printable(' '.join(problem.splitlines()))}", file=sys.stderr)
    return code


def command_line(*words: str) -> str:
    """A command to paste into the shell: the program's name where the shell finds the one of this Python."""
    found = shutil.which(PROGRAM)
    if found and Path(found).parent == Path(sys.executable).parent:
        program = [PROGRAM]
    else:
        program = [sys.executable, "-m", "transfer_learning"]
    return shlex.join([*program, *words])


@contextmanager
def quiet_start() -> Iterator[None]:
    """Drops the REMARKS of TensorFlow's libraries while they are imported.

    No setting silences them that early, so standard error is held back and its other lines are passed on at the end.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            lines = held.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.writelines(line for line in lines if not line.startswith(REMARKS))


class Parser(argparse.ArgumentParser):
    """The parser of a command: errors are UserErrors, and --quiet and --verbose set up logging."""

    def __init__(self, command: str, **options: Any):
        super().__init__(
            prog=f"{PROGRAM} {command}".rstrip(), allow_abbrev=False, formatter_class=_HelpFormatter, **options
        )
        group = self.add_mutually_exclusive_group()
        group.add_argument("--quiet", action="store_true", help="print warnings and errors only")
        group.add_argument("--verbose", action="store_true", help="print details, too")

    def parse_args(self, arguments=None, namespace=None):
        if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions; ends the process
            import argcomplete

            argcomplete.autocomplete(self)
        set_up_logging()  # parsing itself warns of earlier names of flags
        flags = super().parse_args(arguments, namespace)
        set_up_logging(logging.WARNING if flags.quiet else logging.DEBUG if flags.verbose else logging.INFO)
        return flags

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help.")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help text as wide as the terminal, between 80 and 100 columns."""

    def __init__(self, prog: str):
        width = min(max(shutil.get_terminal_size().columns, 80), 100)
        super().__init__(prog, max_help_position=30, width=width - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wraps paragraphs; one with indented lines, such as examples, stays as it is."""
        paragraphs = text.replace("``", "`").strip().split("\n\n")
        return "\n\n".join(
            paragraph if "\n  " in paragraph else textwrap.fill(" ".join(paragraph.split()), width)
            for paragraph in paragraphs
        )
