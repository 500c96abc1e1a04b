"""The cache: its pools, each a folder ``cache/kind/name`` of two files; looking at them, deleting them, locking them.

`records.bin` holds a pool's records, `index.sqlite` says where each stands (`kept.py` writes and reads both). Who uses a
pool holds a shared lock on its `records.bin`, which ends with the process however that ends; who makes a pool anew or
deletes it holds its folder alone. The time of last use is the modification time of `records.bin`.
"""

import errno
import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from transfer_learning.cli.formatting import megabytes
from transfer_learning.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

VERSION = 2  # of the layout of a pool; another one is made anew
RECORDS, INDEX, JOURNAL = "records.bin", "index.sqlite", "index.sqlite-journal"
TRIES = 100  # to lock a folder that others delete meanwhile


@dataclass(frozen=True)
class CacheEntry:
    """What is known of a pool without using it."""

    path: Path
    kind: str  # its folder's folder, as "pixels" or "features"
    about: str  # what it holds, or what is wrong with it
    num_records: int
    num_bytes: int  # on disk
    last_used: datetime  # local time
    in_use: bool  # by any process, this one included

    @property
    def name(self) -> str:
        """How `clear` and its user name it: "kind/name"."""
        return f"{self.kind}/{self.path.name}"


def list_entries(cache_dir: str | Path) -> list[CacheEntry]:
    """Returns the pools of a cache by their names, damaged ones and those of other versions too; [] where none is.

    Raises:
        OSError: the folder cannot be read.
    """
    if not Path(cache_dir).exists():
        return []
    os.listdir(cache_dir)  # a file, or a folder without permission, is an error; a glob finds nothing in it
    pools = []
    for records in sorted(Path(cache_dir).glob(f"*/*/{RECORDS}")):
        if records.with_name(INDEX).is_file():
            with suppress(FileNotFoundError):  # deleted at this moment
                pools.append(_inspect(records.parent))
    return pools


def make_room(cache_dir: str | Path, num_bytes: int, limit_bytes: float) -> bool:
    """Deletes pools, least recently used first, until `num_bytes` more fit; returns whether they do.

    Pools in use stay: open the pool that is to grow first. Where `num_bytes` cannot fit whatever is deleted, no more
    goes than brings the cache itself within its limit.

    Args:
        limit_bytes: most that the cache may hold.
    """
    try:
        pools = list_entries(cache_dir)
    except OSError:  # who cannot read it cannot write into it either, and is told so then
        return True
    total, in_use = (sum(pool.num_bytes for pool in some) for some in (pools, [pool for pool in pools if pool.in_use]))
    target = limit_bytes - num_bytes if in_use + num_bytes <= limit_bytes else limit_bytes
    deleted = []
    for pool in sorted(pools, key=lambda pool: pool.last_used):
        with suppress(OSError):  # of another user
            if total > target and _delete(pool.path):
                deleted.append(f"{pool.name} ({described(pool)})")
                total -= pool.num_bytes
    if deleted:
        more = f", and {megabytes(num_bytes)} are to be added" if num_bytes else ""
        logger.info(
            f"Deleted {', '.join(deleted)}, not used for longest: {cache_dir} may hold {megabytes(limit_bytes)}{more}."
        )
    return total + num_bytes <= limit_bytes


def clear(cache_dir: str | Path, chosen: str) -> tuple[list[CacheEntry], list[CacheEntry]]:
    """Deletes pools; returns those that were deleted, and those that stay because they are in use.

    Args:
        chosen: "all", a kind, or the name of a pool, with its kind before it or not.

    Raises:
        UserError: nothing in the cache has that name.
    """
    pools = list_entries(cache_dir)
    names = {pool: {"all", pool.kind, pool.path.name, pool.name} for pool in pools}
    if chosen not in set().union({"all"}, *names.values()):
        known = {"all", *(pool.kind for pool in pools), *(pool.name for pool in pools)}
        raise UserError(f"{cache_dir} holds nothing of the name {chosen}.{did_you_mean(chosen, known)}")
    matching = [pool for pool in pools if chosen in names[pool]]
    deleted = [pool for pool in matching if _delete(pool.path)]
    return deleted, [pool for pool in matching if pool not in deleted]


def described(pool: CacheEntry) -> str:
    """In words: what it holds, its size, its last use."""
    return ", ".join(
        filter(None, (pool.about, megabytes(pool.num_bytes), f"last used {pool.last_used:%Y-%m-%d %H:%M}"))
    )


@contextmanager
def alone(folder: Path, make: bool = False) -> Iterator[None]:
    """No two processes open the pool at once: they would take turns in throwing away what the other one began.

    Who waited may find the folder deleted, or replaced by another one, and then takes the one that is there; `make`
    says whether a missing one is made or a FileNotFoundError.
    """
    for _ in range(TRIES):
        try:
            if make:
                folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        except (FileNotFoundError, FileExistsError):
            if make and os.path.isdir(folder.parent) and not os.path.lexists(folder):
                continue  # deleted between two of these lines
            raise
        try:
            with suppress(OSError):  # a file system without such locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, folder):
                yield
                return
        finally:
            os.close(descriptor)
    raise OSError(errno.EBUSY, "deleted again and again by other processes", str(folder))


def _is_at(descriptor: int, folder: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    return False


def open_index(index: Path) -> closing[sqlite3.Connection]:
    """An index that is not made; for writing, since what a killed process left is rolled back before it can be read."""
    return closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=rw", uri=True, timeout=5))


def _inspect(folder: Path) -> CacheEntry:
    with alone(folder):
        records = (folder / RECORDS).stat()
        num_bytes = records.st_size + (folder / INDEX).stat().st_size
        about, num_records = _read_description(folder / INDEX)
        last_used = datetime.fromtimestamp(records.st_mtime).astimezone()
        return CacheEntry(folder, folder.parent.name, about, num_records, num_bytes, last_used, _is_used(folder))


def _read_description(index: Path) -> tuple[str, int]:
    try:
        with open_index(index) as opened:
            version = opened.execute("PRAGMA user_version").fetchone()[0]
            if version != VERSION:
                return "of another version, made anew when it is needed", 0
            return opened.execute("SELECT about, (SELECT COUNT(key) FROM kept) FROM pool").fetchone()
    except sqlite3.OperationalError as error:
        return f"cannot be read ({error})", 0
    except (sqlite3.DatabaseError, TypeError):
        return "damaged, made anew when it is needed", 0


def _delete(folder: Path) -> bool:
    """Deletes a pool unless it is in use; returns whether it has gone. Other files in its folder stay."""
    with suppress(FileNotFoundError), alone(folder):  # not there any more: somebody else was faster
        if _is_used(folder):
            return False
        for name in (RECORDS, INDEX, JOURNAL):  # the large one first: a kill in between leaves little behind
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            folder.rmdir()
    return True


def _is_used(folder: Path) -> bool:
    """Whether anybody holds the pool's shared lock; to be asked by who is `alone`, so that the answer stays true."""
    try:
        descriptor = os.open(folder / RECORDS, os.O_RDONLY)
    except OSError:  # not there, or of another user
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without such locks: what is open stays readable after its deletion
        return False
    finally:
        os.close(descriptor)
