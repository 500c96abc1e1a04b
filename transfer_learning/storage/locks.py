"""Locks on cache entries, by `flock`: they end with their process, however it ends.

A process that uses an entry holds a shared lock on its records file. A process that opens, recreates or deletes an
entry holds an exclusive lock on its folder meanwhile. On a file system without such locks everything counts as free.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ATTEMPTS = 100  # to lock a folder that other processes delete meanwhile


@contextmanager
def exclusive_lock(folder: Path, make: bool = False) -> Iterator[None]:
    """Holds the exclusive lock on the entry in `folder`.

    After a wait the folder may be deleted or replaced; then the one that is there now is locked.

    Args:
        make: create a missing folder.

    Raises:
        FileNotFoundError: the folder is missing and `make` is not set.
    """
    for _ in range(ATTEMPTS):
        try:
            if make:
                folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        except (FileNotFoundError, FileExistsError):
            if make and os.path.isdir(folder.parent) and not os.path.lexists(folder):
                continue  # deleted between `mkdir` and `open`
            raise
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, folder):
                yield
                return
        finally:
            os.close(descriptor)
    raise OSError(errno.EBUSY, "deleted again and again by other processes", str(folder))


def lock_shared(descriptor: int) -> None:
    """Marks an opened records file as in use until it is closed; call it with the exclusive lock held."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def is_used(records: Path) -> bool:
    """Whether any process uses this records file; the answer stays true while the exclusive lock is held."""
    try:
        with open(records, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # others: missing, of another user, or without locks, where it stays readable when deleted
        return isinstance(error, BlockingIOError)
    return False


def _is_at(descriptor: int, folder: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    return False
