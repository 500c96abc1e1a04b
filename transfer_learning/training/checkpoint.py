"""Checkpoints: the whole state of training on disk, complete or absent.

    checkpoint/000017/arrays.npz     the variables, by group and position
    checkpoint/000017/state.json     everything else
    checkpoint/000017/manifest.json  size and SHA-256 of both; written last

A thread writes a checkpoint into a folder with another name, syncs it to disk and renames it. The last two are kept.
"""

import hashlib
import io
import json
import logging
import math
import os
import shutil
import zipfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from transfer_learning.errors import UserError
from transfer_learning.storage.files import sync_to_disk

logger = logging.getLogger(__name__)

NUM_KEPT = 2
ARRAYS, STATE, MANIFEST = "arrays.npz", "state.json", "manifest.json"

Arrays = dict[str, list[np.ndarray]]


class Writer(AbstractContextManager):
    """Saves checkpoints in a thread, one after the other; a context manager that exits when the last one is on disk."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None

    def __exit__(self, *error) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def save(self, arrays: Arrays, state: dict) -> None:
        """Starts to save `arrays`, which must not change any more; returns once the checkpoint before it is on disk, or
        raises its OSError.
        """
        self.wait()
        self._writing = self._thread.submit(save, self._folder, arrays, state)

    def wait(self) -> None:
        """Returns when everything is on disk; raises the OSError of a failed write."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()


def save(folder: Path, arrays: Arrays, state: dict) -> Path:
    """Writes the next checkpoint into `folder` and removes all but the last two.

    Args:
        arrays: groups of arrays, stored by name and position.
        state: JSON values.

    Raises:
        OSError: the disk is full or fails; the older checkpoints are unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    older = _numbered(folder)
    final = folder / f"{int(older[-1].name) + 1 if older else 1:06d}"
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a session that was killed here
    try:
        partial.mkdir()
        named, text = _named(arrays, state)
        np.savez(partial / ARRAYS, **named)
        (partial / STATE).write_text(text)
        manifest = {name: _size_and_hash(partial / name) for name in (ARRAYS, STATE)}
        (partial / MANIFEST).write_text(json.dumps(manifest))
        for path in (partial / ARRAYS, partial / STATE, partial / MANIFEST, partial):
            sync_to_disk(path)
        os.rename(partial, final)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(folder)  # a failed write names no file
        raise
    sync_to_disk(folder)
    for path in older[: -NUM_KEPT + 1]:
        shutil.rmtree(path)
    return final


def to_bytes(arrays: Arrays, state: dict) -> bytes:
    """Arrays and JSON values for another worker, which `from_bytes` reads."""
    buffer, (named, text) = io.BytesIO(), _named(arrays, state)
    np.savez(buffer, **named, state=np.array(text))
    return buffer.getvalue()


def from_bytes(data: bytes) -> tuple[Arrays, dict]:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return _grouped(stored, str(stored["state"]))


def _named(arrays: Arrays, state: dict) -> tuple[dict[str, Any], str]:
    """The arrays by the name in an .npz file, and the state with their numbers as JSON."""
    named = {f"{group}/{index}": array for group in arrays for index, array in enumerate(arrays[group])}
    return named, json.dumps({**state, "groups": {group: len(arrays[group]) for group in arrays}})


def _grouped(named: Mapping[str, np.ndarray], text: str) -> tuple[Arrays, dict]:
    """What `_named` was given."""
    state = json.loads(text)
    groups = state.pop("groups").items()
    return {group: [named[f"{group}/{index}"] for index in range(count)] for group, count in groups}, state


def load(folder: Path) -> tuple[Arrays, dict] | None:
    """The newest complete checkpoint as (arrays, state), or None if none was ever written. A damaged one is logged,
    renamed to NAME.damaged, and the one before it is used; UserError if every one is damaged.
    """
    numbered = _numbered(folder)
    for path in reversed(numbered):
        if problem := _problem(path):
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
            logger.warning(f"The checkpoint {path} is damaged ({problem}); the one before it is used.")
            continue
        with np.load(path / ARRAYS, allow_pickle=False) as stored:
            return _grouped(stored, (path / STATE).read_text())
    if numbered or list(folder.glob("*.damaged")):
        raise UserError(f"Every checkpoint in {folder} is damaged; restore one from a backup, or start a new run.")
    return None


def _numbered(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))  # the millionth has one more digit


def _problem(path: Path) -> str:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name in (ARRAYS, STATE):
            if _size_and_hash(path / name) != manifest[name]:
                return f"{name} has other bytes than were written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    try:
        _check_arrays(path / ARRAYS, json.loads((path / STATE).read_text())["groups"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile) as error:
        return f"its checksums are right, but {error}"
    return ""


def _check_arrays(path: Path, groups: dict[str, int]) -> None:
    """Raises ValueError unless an .npz file holds arrays of numbers, as many as `groups` says, and all their bytes.

    The file may come from a stranger, and NumPy allocates any declared size before it reads.
    """
    with zipfile.ZipFile(path) as archive:
        members, counts = archive.infolist(), groups.values()
        if min(counts, default=0) < 0 or sum(counts) != len(members):  # before building so many names
            raise ValueError(f"{path.name} holds another number of arrays than {STATE} says")
        expected = {f"{group}/{index}.npy" for group, count in groups.items() for index in range(count)}
        if {info.filename for info in members} != expected:
            raise ValueError(f"{path.name} holds other arrays than {STATE} names")
        for info in members:
            with archive.open(info) as member:
                if np.lib.format.read_magic(member) != (1, 0):
                    raise ValueError(f"{info.filename} is not an array of numbers")
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                if dtype.hasobject or info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{info.filename} does not hold plain numbers")
                if member.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
                    raise ValueError(f"{info.filename} declares another size than it has")


def _size_and_hash(path: Path) -> dict:
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
