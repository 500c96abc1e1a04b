"""Atomic writes: a reader sees the old file or the new one, never a part; reading JSON with clear errors."""

import glob
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from transfer_learning.errors import UserError


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary sibling to write to, which replaces `path` at the end of the block.

    On an exception the sibling is removed and `path` stays unchanged. The sibling has the suffix of `path`, because
    Keras and NumPy choose their format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{path.stem}.{socket.gethostname()}-"
    for left_over in path.parent.glob(f"{glob.escape(mark)}*.partial{path.suffix}"):
        process = left_over.name.removeprefix(mark).partition(".")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):  # its process was killed
            left_over.unlink(missing_ok=True)
    temporary = path.with_name(f"{mark}{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        sync_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)  # the name that was asked for
        raise
    finally:
        with suppress(OSError):  # as on a read-only disk, where another error is being raised
            temporary.unlink(missing_ok=True)
    sync_to_disk(path.parent)  # the rename itself


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8; file names that are not UTF-8 keep their bytes."""
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def write_json(path: Path, values: Any) -> None:
    """Writes plain values as JSON; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, **fields: type) -> Any:
    """Reads a JSON file.

    Args:
        fields: required fields and their types.

    Raises:
        UserError: the file is missing or damaged, or lacks a field.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        for name, kind in fields.items():
            if not isinstance(values, dict) or not isinstance(values.get(name), kind):
                raise ValueError(f"it has no field {name} of the type {kind.__name__}")
        return values
    except FileNotFoundError:
        raise UserError(f"{path} is missing; restore it, or start a new run.") from None
    except (ValueError, RecursionError) as error:  # JSON's and UTF-8's errors are ValueErrors
        raise UserError(f"{path} is damaged ({error}); restore it, or start a new run.") from None


def renamed(values: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """`values` of a file of an earlier version with its keys renamed: `names` maps earlier to current names."""
    return {names.get(name, name): value for name, value in values.items()}


def existing_part(path: Path) -> Path:
    """Returns `path` or the nearest parent that exists, which is on the same disk."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def check_writable(path: Path, flag: str) -> None:
    """Raises UserError if a new folder cannot be written at `path`, before the work whose results go there."""
    there = existing_part(path)
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{flag} {path} cannot be written: {there} is read-only or of another user; choose another folder."
        )


def sync_to_disk(path: Path) -> None:
    """Returns when the contents of a file, or the entries of a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
