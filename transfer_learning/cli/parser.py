"""What the commands share: their parser, and errors turned into one sentence and an exit code."""

import argparse
import atexit
import errno
import gc
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from transfer_learning.cli.console import set_up_logging
from transfer_learning.cli.formatting import printable
from transfer_learning.cli.streams import lose_stream, prepare_streams, print_error
from transfer_learning.errors import ExitCode, UserError

logger = logging.getLogger(__name__)

PROGRAM = "transfer-learning"

# Errors of the system that the user can fix, by the names in `errno`, of which a system may lack some; any other is a bug.
SYSTEM_ERRORS = (
    ("ENOSPC EDQUOT", "The disk is full ({place}); free some space, then continue the run with --resume."),
    (
        "EFBIG",
        "{place} would be larger than the file-size limit ({reason}); raise the limit with `ulimit -f unlimited`, then "
        "continue the run with --resume.",
    ),
    (
        "EACCES EPERM EROFS ENAMETOOLONG ENOTDIR EISDIR ELOOP EEXIST ETXTBSY",
        "{place} cannot be used ({reason}); name another one, or change its permissions.",
    ),
    (
        "ENOENT",
        "{place} is missing ({reason}), although it was expected; it may have been moved or deleted, so restore it, then "
        "try again or continue the run with --resume.",
    ),
    (
        "EIO ESTALE ETIMEDOUT ENOTCONN EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ECONNRESET ECONNABORTED ECONNREFUSED "
        "EREMOTEIO ENOLINK ENODEV ENXIO ENOMEDIUM EBUSY EUCLEAN EBADMSG ESHUTDOWN EPROTO ECOMM ENOLCK",
        "{place} cannot be read or written ({reason}): a disk or a network folder does not answer; check it, then try "
        "again or continue the run with --resume.",
    ),
    (
        "EMFILE ENFILE EAGAIN ENOMEM",
        "The system refuses another file, process or part of memory ({reason}); raise the limits that `ulimit -a` shows, "
        "or end other programs, then try again or continue the run with --resume.",
    ),
)
SENTENCES = {
    getattr(errno, name): sentence
    for names, sentence in SYSTEM_ERRORS
    for name in names.split()
    if hasattr(errno, name)
}

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

# Lines that TensorFlow's libraries, and LiteRT's, write to standard error while they are loaded or convert a network.
REMARKS = (
    "I0000 ",
    "WARNING: All log messages before absl::InitializeLog()",
    "To enable the following instructions",
    "INFO: Created TensorFlow Lite XNNPACK delegate",
    "fully_quantize: ",
)


def run_main(
    main: Callable[[Sequence[str] | None], ExitCode | None], arguments: Sequence[str] | None = None
) -> ExitCode:
    """Calls the `main` of a command; a UserError becomes one line on standard error and its exit code."""
    gc.set_threshold(50_000)  # looking for garbage among all objects of TensorFlow took a tenth of a short run with 700
    atexit.register(gc.freeze)  # else Python looks once more at the end, for a second
    prepare_streams()
    _drop_warnings_as_errors()
    try:
        code = main(arguments) or ExitCode.DONE
        sys.stdout.flush()
        return code
    except UserError as error:
        problem, code = str(error), error.exit_code
    except BrokenPipeError:  # the reader of our result, such as `head`, has left
        lose_stream(sys.stdout)  # else Python reports it again at exit
        return ExitCode.NO_READER
    except (OSError, RuntimeError) as error:
        code, problem = ExitCode.USER_ERROR, describe_system_error(error)
        if not problem:
            raise
        logger.debug("Where it happened:", exc_info=True)
    except KeyboardInterrupt:
        print_error("stopped.")
        return ExitCode.INTERRUPTED
    print_error(f"error: {printable(' '.join(problem.splitlines()))}")
    return code


def command_line(*words: str) -> str:
    """A command to paste into the shell: the program's name where the shell finds the one of this Python."""
    found = shutil.which(PROGRAM)
    if found and Path(found).parent == Path(sys.executable).parent:
        program = [PROGRAM]
    else:
        program = [sys.executable, "-m", "transfer_learning"]
    return shlex.join([*program, *words])


def describe_system_error(error: Exception) -> str:
    """A sentence for an error of the system that the user can fix; "" for any other."""
    found = re.search(r"errno = (\d+)", str(error))  # of HDF5
    number: int = getattr(error, "errno", None) or (int(found[1]) if found else 0)
    if number not in SENTENCES:
        return ""
    place, reason = getattr(error, "filename", None), getattr(error, "strerror", None) or os.strerror(number)
    place = os.fsdecode(place) if isinstance(place, str | bytes) else "A file" if number not in FULL_DISK else reason
    return SENTENCES[number].format(place=place, reason=reason)


def _drop_warnings_as_errors() -> None:
    """Without -W error and PYTHONWARNINGS=error, which are meant for the user's own programs: libraries do warn."""
    if sys.warnoptions:
        builtin = [entry for entry in warnings.filters if entry[0] == "error" and entry[2].__module__ == "builtins"]
        for entry in builtin:
            warnings.filters.remove(entry)  # type: ignore[attr-defined]
        warnings._filters_mutated()  # type: ignore[attr-defined]


@contextmanager
def quiet_start(in_command: bool = False) -> Iterator[None]:
    """Drops the REMARKS of TensorFlow's libraries while they are imported.

    No setting silences them that early, so standard error is held back and its other lines are passed on at the end.

    Args:
        in_command: hide scikit-learn from Keras, which imports it for wrappers that no command needs, and takes a third
            longer with it; and never look for garbage among what is imported.
    """
    prepare_streams()
    with suppress(OSError):
        sys.stderr.flush()
    terminal = os.dup(2)
    is_first = in_command and "tensorflow" not in sys.modules
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        if is_first:
            gc.disable()
        if in_command:
            sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]  # as import wants it
        try:
            yield
        except (ValueError, AttributeError) as error:
            if Path(traceback.extract_tb(error.__traceback__)[-1].filename).match("keras/src/backend/config.py"):
                raise UserError(
                    f"Keras refuses the settings in your keras.json ({error}); correct or delete the file, which is in "
                    "~/.keras or KERAS_HOME."
                ) from None
            raise
        finally:
            if sys.modules.get("sklearn", True) is None:
                del sys.modules["sklearn"]
            if is_first:
                gc.freeze()
                gc.enable()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            lines = held.read().decode(errors="replace").splitlines(keepends=True)
            with suppress(OSError):  # nobody reads it
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
        words = sys.argv[1:] if arguments is None else arguments
        flags = super().parse_args([self._as_path(word) for word in words], namespace)
        set_up_logging(logging.WARNING if flags.quiet else logging.DEBUG if flags.verbose else logging.INFO)
        return flags

    def _as_path(self, word: str) -> str:
        """``~/x`` and ``--flag=~/x`` with the home directory, which shells do not always fill in; a file named ``-x`` as
        ``./-x``.
        """
        if word.startswith("-") and word.partition("=")[0] not in self._option_string_actions:
            return f"./{word}" if word not in ("-", "--") and os.path.lexists(word) else word
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        scheme, colon, place = value.partition(":")
        if place.startswith("~/"):
            return f"{flag}{equals}{scheme}{colon}{os.path.expanduser(place)}"
        return f"{flag}{equals}{os.path.expanduser(value)}" if value.startswith("~/") or value == "~" else word

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
            paragraph if "\n  " in paragraph else "\n".join(self._split_lines(paragraph, width))
            for paragraph in paragraphs
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Without breaks after hyphens: a command or a flag stays in one piece."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)
