"""The command line: flags made out of the fields of RunConfig, and errors made into a sentence and an exit code."""

import argparse
import dataclasses
import errno
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_type_hints

from transfer_learning.cli.console import set_up_logging
from transfer_learning.cli.formatting import printable
from transfer_learning.config import PHASES, Phase, RunConfig, flag_name
from transfer_learning.errors import ExitCode, UserError

# What the machine refuses for reasons that the user can mend; any other OSError is a fault of the program.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)

REMARKS = ("I0000 ", "WARNING: All log messages before absl::InitializeLog()", "To enable the following instructions")


def run_main(
    main: Callable[[Sequence[str] | None], ExitCode | None], arguments: Sequence[str] | None = None
) -> ExitCode:
    """Calls a verb's `main`; what a user can mend becomes one line on standard error and exit code 2."""
    try:
        code = main(arguments) or ExitCode.DONE
        sys.stdout.flush()
        return code
    except UserError as error:
        problem = str(error)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at its end
        return ExitCode.DONE
    except OSError as error:
        if error.errno in FULL_DISK:
            problem = (
                f"The disk is full ({error.filename or error.strerror}); nothing that was complete is lost, "
                "so free some space and continue the run with --resume."
            )
        elif error.errno in REFUSED:
            problem = (
                f"The system refuses {error.filename or 'a file'} ({error.strerror}); name another one, or change its "
                "permissions."
            )
        else:
            raise
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return ExitCode.INTERRUPTED
    print(f"error: {printable(' '.join(problem.splitlines()))}", file=sys.stderr)
    return ExitCode.USER_ERROR


@contextmanager
def quiet_start() -> Iterator[None]:
    """Keeps TensorFlow's remarks about itself, which its libraries write while they are loaded, from the terminal.

    No setting reaches them that early, so standard error is held back meanwhile; every other line is passed on.
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
    """An argument parser whose complaints are UserErrors, like every other complaint."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

        group = self.add_mutually_exclusive_group()
        group.add_argument("--quiet", action="store_true", help="print warnings and errors only")
        group.add_argument("--verbose", action="store_true", help="print details, too")

    def parse_args(self, arguments=None, namespace=None):
        flags = super().parse_args(arguments, namespace)
        level = logging.WARNING if flags.quiet else logging.DEBUG if flags.verbose else logging.INFO
        set_up_logging(level)
        return flags

    def error(self, message: str) -> None:
        raise UserError(f"{message}; see {self.prog} --help.")


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every field of RunConfig and of its two phases; a flag that is not given leaves no trace."""
    add_flags(parser.add_argument_group("config"), RunConfig)
    for phase in PHASES:
        add_flags(parser.add_argument_group(f"phase {phase}"), Phase, f"{phase}.")


def given_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, by the names that `config.with_values` takes."""
    names = [item.name for item in dataclasses.fields(RunConfig) if item.name not in PHASES]
    names += [f"{phase}.{item.name}" for phase in PHASES for item in dataclasses.fields(Phase)]
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def as_flags(values: dict[str, Any]) -> list[str]:
    """The flags that give what `given_values` returned."""
    flags = []
    for name, value in values.items():
        flag = flag_name(name)
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            text = ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
            flags += [f"--{flag}={text}"] if text.startswith("-") else [f"--{flag}", text]
    return flags


def add_flags(group: argparse._ArgumentGroup, cls: type, prefix: str = "") -> None:
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if hint is Phase or (prefix == "frozen." and item.name == "open"):
            continue
        options: dict[str, Any] = {"dest": prefix + item.name, "default": argparse.SUPPRESS}
        choices = item.metadata["choices"]
        help = item.metadata["help"] + (f": {', '.join(choices)}" if choices else "")
        if hint is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = widths if hint == tuple[int, ...] else hint
            options["metavar"] = "WIDTHS" if hint == tuple[int, ...] else hint.__name__.upper()
        group.add_argument(f"--{flag_name(prefix + item.name)}", help=help.replace("%", "%%"), **options)


def widths(text: str) -> tuple[int, ...]:
    """``"512,256"`` -> ``(512, 256)``; ``"none"`` or nothing -> ``()``."""
    return () if text in ("", "none") else tuple(int(part) for part in text.split(","))
