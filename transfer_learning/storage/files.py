"""Writing a file so that a reader, or the next session, sees the old one or the new one and never a part of one."""

import glob
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from transfer_learning.errors import UserError


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary sibling to write to; it takes the place of `path` when the block ends well.

    On any exception the sibling is removed and `path` is as it was. The sibling keeps the suffix of `path`, because
    Keras and NumPy choose their format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{path.stem}.{socket.gethostname()}-"
    for left_over in path.parent.glob(f"{glob.escape(mark)}*.partial{path.suffix}"):
        process = left_over.name.removeprefix(mark).partition(".")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):  # killed in here, or the power went
            left_over.unlink(missing_ok=True)
    temporary = path.with_name(f"{mark}{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        sync_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_to_disk(path.parent)  # the rename itself


def write_text(path: Path, text: str) -> None:
    with written_atomically(path) as temporary:
        # Names of files that are no UTF-8 go out as they came in.
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def write_json(path: Path, values: Any) -> None:
    """Writes plain values as JSON; not-a-number is no JSON, and raises ValueError."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, **fields: type) -> Any:
    """Reads what `write_json` wrote.

    Args:
        fields: what it has to hold, each of this type.

    Raises:
        UserError: the file is missing or damaged, or does not hold the `fields`.
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
    """`values` of a file of an earlier version, with today's names of its keys; `names` maps the earlier ones to them."""
    return {names.get(name, name): value for name, value in values.items()}


def existing_part(path: Path) -> Path:
    """Returns `path`, or the nearest folder above it that exists: the disk that it is going to lie on."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def sync_to_disk(path: Path) -> None:
    """Returns when the file's contents, or the folder's entries, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
