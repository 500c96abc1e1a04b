"""Records kept on disk by key: what one run computed, another finds, however the first one ended.

A pool is a folder ``cache/kind/name`` with two files: `records.bin`, records one after the other, and `index.sqlite`,
which says where each key's record stands and what its checksum is. A record counts as kept once its index row is
committed, and its bytes reach the disk before that; so a kill leaves at most bytes that nobody refers to.

* `ArrayCache` opens one pool: `positions` finds and checks, `add` keeps, `rows` reads what is kept, in any number and
  from any thread. A disk that refuses costs the keeping and not the run: records are then held in memory.
* `cached_fraction` looks how much of something a pool holds.

`pools.py` locks, lists and deletes pools.
"""

import errno
import json
import logging
import os
import sqlite3
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from transfer_learning.cli.formatting import megabytes
from transfer_learning.machine.resources import available_bytes, usable_cores
from transfer_learning.storage.cache_index import INDEX, JOURNAL, VERSION, layout_text, open_index, parse_facts
from transfer_learning.storage.locks import exclusive_lock, lock_shared

logger = logging.getLogger(__name__)

RECORDS = "records.bin"
LOCK_SECONDS = 60  # an addition of another process is waited for so long
HELD = 1 << 40  # positions from here on are of records in this process's memory
KEYS_AT_ONCE, RECORDS_AT_ONCE, BYTES_AT_ONCE = 4096, 64, 1 << 20  # of index rows, of a thread's task, of a read

# What the machine refuses for want of space or permission; EIO is what SQLite makes of a quota.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,  # most often its journal, in a folder that cannot be written
    sqlite3.SQLITE_BUSY: errno.EBUSY,
}  # else EIO
# No row is ever deleted, a damaged one only loses its key: what a running process reads is never written over.
TABLES = (
    "CREATE TABLE kept "
    "(number INTEGER PRIMARY KEY, key TEXT UNIQUE, offset INTEGER, length INTEGER, crc32 INTEGER, note TEXT)",
    "CREATE TABLE pool (layout TEXT, about TEXT)",
)


class ArrayCache:
    """A pool of arrays of one shape and dtype, or of `bytes`, which several processes may share; a context manager.

    Where the disk refuses (no space, a quota, no permission, a read-only file system), what is added is held in the
    memory of this process instead, for this run alone, which is logged once.

    Args:
        folder: of this pool alone; made where it is missing. One that cannot be written is opened for reading.
        shape: of each array; None: records are `bytes` of any length.
        dtype: of each array; ignored where `shape` is None.
        facts: metadata for the list of entries, see `EntrySpec`; none leaves earlier ones.

    Raises:
        OSError: the folder is a file, or its index is held by another process for long.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, ...] | None, dtype, facts: Mapping[str, str | int] | None = None
    ):
        self.folder, self.facts = folder, dict(facts or {})
        self.shape = None if shape is None else tuple(shape)
        self.dtype = np.dtype(object if shape is None else dtype)
        self._record_bytes = None if shape is None else int(np.prod(shape)) * self.dtype.itemsize
        self._layout = layout_text(shape, dtype)
        self._records: _Opened | None = None
        self._index: sqlite3.Connection | None = None
        self._damaged: set[int] = set()  # numbers
        self._held: dict[str, tuple[int, str]] = {}  # position and note
        self._held_records: list[np.ndarray | bytes] = []
        self._held_bytes = 0
        self._refused: OSError | None = None  # why records go to memory
        self._is_told = False
        try:
            with exclusive_lock(folder, make=True), _sqlite_errors_as_os_errors(folder):
                self._open()
        except OSError as error:
            self.close()
            if error.errno not in REFUSED:
                raise
            self._refused = error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "ArrayCache":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Closes the pool; `rows` that were taken stay valid, and mark it as used for as long as they live."""
        if self._index:
            self._index.close()
        self._records = self._index = None

    @property
    def rows(self) -> "CachedRows":
        """What is kept at this moment."""
        places, num_on_disk = None, 0
        if self._index:
            with self._transaction("DEFERRED"):
                num_on_disk = self._index.execute("SELECT COALESCE(MAX(number), 0) FROM kept").fetchone()[0]
                if self.shape is None:
                    select = "SELECT number, offset, length FROM kept WHERE typeof(offset) || typeof(length) = ?"
                    found = np.fromiter(self._index.execute(select, ("integerinteger",)), "i8,i8,i8")
                    places = np.zeros((num_on_disk, 2), np.int64)  # 0, 0 for damaged ones, which nobody is given
                    places[found["f0"] - 1] = np.stack((found["f1"], found["f2"]), axis=1)
        return CachedRows(self._records, self.shape, self.dtype, num_on_disk, places, self._held_records)

    def positions(self, keys: Sequence[str]) -> np.ndarray:
        """Returns int64 (len(keys),): where in `rows` each key's record stands, -1 where it is missing.

        Every record that is found is read and checked; a damaged one is forgotten, counts as missing and is told.

        Raises:
            OSError: the index cannot be read.
        """
        positions, damaged = np.full(len(keys), -1, np.int64), {}
        with ThreadPoolExecutor(max(4, usable_cores())) as threads:  # reading and zlib are outside of Python's lock
            for start in range(0, len(keys), KEYS_AT_ONCE):
                rows = self._find(keys[start : start + KEYS_AT_ONCE], "number, offset, length, crc32, key, note")
                # In the order of the file, which is what a disk reads fastest.
                found = sorted((row, start + index) for index, row in enumerate(rows) if row)
                tasks = [found[first : first + RECORDS_AT_ONCE] for first in range(0, len(found), RECORDS_AT_ONCE)]
                for task, are_intact in zip(tasks, threads.map(self._are_intact, tasks), strict=True):
                    for (row, index), is_intact in zip(task, are_intact, strict=True):
                        if is_intact:
                            positions[index] = row[0] - 1
                        elif row[0] not in self._damaged:
                            damaged[row[0]] = keys[index]
        for index, key in enumerate(keys):
            if key in self._held:
                positions[index] = self._held[key][0]
        if damaged:
            self._forget(damaged)
            logger.info(f"{len(damaged):,} kept arrays in {self.folder} were damaged; they are made again.")
        return positions

    def notes(self, keys: Sequence[str]) -> list[str]:
        """Returns the notes that were given with the keys, "" for a key that is missing."""
        notes = [row[0] if row else "" for row in self._find(keys, "note")]
        return [self._held[key][1] if key in self._held else note for key, note in zip(keys, notes, strict=True)]

    def add(
        self,
        keys: Sequence[str],
        arrays: Sequence[np.ndarray] | Sequence[bytes],
        notes: Sequence[str] | None = None,
        needed_bytes: int = 0,
    ) -> np.ndarray:
        """Keeps all of `arrays` or, on an error, none; returns their positions, int64 (len(keys),).

        Keys that are there already, from another process or from earlier in `keys`, stay as they are. Once the disk
        has refused, this and all that follows is held in memory (positions from `HELD` on).

        Args:
            arrays: each of the pool's shape and dtype; `bytes` where its shape is None.
            notes: a short text for each key, such as a fact that is not in the array.
            needed_bytes: of these arrays and of all that this run is still to add: decides, where the disk refuses,
                whether memory is large enough, and is told.

        Raises:
            OSError: the disk refuses and half of the available memory is too small as well, or reading and writing
                fails for another reason; what was in the pool stays.
            ValueError: an array has another shape or dtype.
        """
        notes = [""] * len(keys) if notes is None else notes
        if self._refused is None:
            try:
                return self._add_on_disk(keys, arrays, notes)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                self._refused = error
        return self._add_in_memory(keys, arrays, notes, needed_bytes)

    def spill_to_memory(self, reason: str) -> None:
        """From now on nothing is written, as if the disk refused: for a cache that may not grow."""
        self._refused = self._refused or OSError(errno.ENOSPC, reason, str(self.folder))

    def _add_on_disk(self, keys, arrays, notes) -> np.ndarray:
        positions = []
        with self._transaction("IMMEDIATE"):  # from here on no other process adds
            end = os.fstat(self._records.descriptor).st_size
            try:
                for key, array, note in zip(keys, arrays, notes, strict=True):
                    row = self._index.execute("SELECT number FROM kept WHERE key = ?", (key,)).fetchone()
                    if row and row[0] in self._damaged:
                        self._index.execute("UPDATE kept SET key = NULL WHERE number = ?", row)
                        row = None
                    number = row[0] if row else self._append(key, array, note)
                    positions.append(number - 1)
                os.fsync(self._records.descriptor)
            except BaseException:
                with suppress(OSError):  # gives the space back; nobody refers to it
                    os.ftruncate(self._records.descriptor, end)
                raise
        return np.array(positions, np.int64)

    def _add_in_memory(self, keys, arrays, notes, needed_bytes: int) -> np.ndarray:
        rows = self._find(keys, "number")
        positions = {
            key: row[0] - 1 for key, row in zip(keys, rows, strict=True) if row and row[0] not in self._damaged
        }
        positions |= {key: self._held[key][0] for key in keys if key in self._held}
        fresh = {}
        for key, array, note in zip(keys, arrays, notes, strict=True):
            if key not in positions:
                fresh.setdefault(key, (self._checked(array), note))
        if fresh:
            num_bytes = sum(map(_num_bytes, (record for record, _ in fresh.values())))
            self._check_memory(max(needed_bytes, num_bytes))
            self._held_bytes += num_bytes
        for key, (record, note) in fresh.items():
            positions[key] = HELD + len(self._held_records)
            # A copy: the array may be a part of a larger one, or be filled anew by its owner.
            self._held_records.append(record if self.shape is None else record.copy())
            self._held[key] = positions[key], note
        return np.array([positions[key] for key in keys], np.int64)

    def _check_memory(self, needed_bytes: int) -> None:
        available = available_bytes() + self._held_bytes  # to this pool
        reason = self._refused.strerror or str(self._refused)
        if self._held_bytes + needed_bytes > available / 2:
            reason += f", and they would take more than half of the {megabytes(available)} of memory that are available"
            raise OSError(self._refused.errno, reason, str(self.folder))
        if not self._is_told:
            self._is_told = True
            logger.warning(
                f"Cannot write {megabytes(needed_bytes)} to {self.folder} ({reason}); the run holds them in memory "
                "instead, and later runs compute them again."
            )

    def _checked(self, array: np.ndarray | bytes) -> np.ndarray | bytes:
        if self.shape is None:
            if not isinstance(array, bytes):
                raise ValueError(f"expected bytes, got {type(array).__name__}")
            return array
        array = np.asarray(array, order="C")
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"expected {self.dtype} {self.shape}, got {array.dtype} {array.shape}")
        return array

    def _append(self, key: str, array: np.ndarray | bytes, note: str) -> int:
        record = self._checked(array)
        data = record if self.shape is None else record.tobytes()
        end = self._index.execute("SELECT offset + length FROM kept ORDER BY number DESC LIMIT 1").fetchone()
        offset = end[0] if end else 0
        insert = "INSERT INTO kept (key, offset, length, crc32, note) VALUES (?, ?, ?, ?, ?)"
        row = key, offset, len(data), _checksum(data, _checksum_of_row(key, note)), note
        number = self._index.execute(insert, row).lastrowid
        rest = memoryview(data)
        while rest:  # plain writes: on a full disk a writable memory map ends the process by SIGBUS
            written = os.pwrite(self._records.descriptor, rest, offset)
            rest, offset = rest[written:], offset + written
        return number

    def _find(self, keys: Sequence[str], columns: str) -> list[tuple | None]:
        """The index row of each key, None where there is none."""
        if not self._index:
            return [None] * len(keys)
        select = f"SELECT {columns} FROM kept WHERE key = ?"
        with self._transaction("DEFERRED"):  # a statement a key: larger ones measure no faster
            return [self._index.execute(select, (key,)).fetchone() for key in keys]

    def _are_intact(self, task: list[tuple[tuple, int]]) -> list[bool]:
        buffer = memoryview(bytearray(BYTES_AT_ONCE))
        return [self._is_intact(row, buffer) for row, _ in task]

    def _is_intact(self, row: tuple, buffer: memoryview) -> bool:
        number, offset, length, crc32, key, note = row
        try:
            if self.shape is not None and (offset, length) != ((number - 1) * self._record_bytes, self._record_bytes):
                return False  # `rows` would read another place
            checksum = _checksum_of_row(key, note)
            while length > 0:
                part = buffer[: min(length, len(buffer))]
                num_read = os.preadv(self._records.descriptor, [part], offset)
                if not num_read:
                    return False
                checksum = _checksum(part[:num_read], checksum)
                offset, length = offset + num_read, length - num_read
            return length == 0 and checksum == crc32
        except (OSError, TypeError, OverflowError):  # a bad place on the disk; no number where one should be
            return False

    def _forget(self, damaged: dict[int, str]) -> None:
        self._damaged |= set(damaged)
        if not self._refused:
            with suppress(OSError), self._transaction("IMMEDIATE"):  # on a full disk this process alone knows
                self._index.executemany("UPDATE kept SET key = NULL WHERE number = ? AND key = ?", damaged.items())

    def _open(self) -> None:
        records, index = self.folder / RECORDS, self.folder / INDEX
        self._refused = None
        try:
            self._records = _Opened(os.open(records, os.O_RDWR | os.O_CREAT, 0o666))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not records.exists():
                raise
            self._records, self._refused = _Opened(os.open(records, os.O_RDONLY)), error
        lock_shared(self._records.descriptor)
        with suppress(OSError):  # of another user
            os.utime(self._records.descriptor)
        uri = f"{index.absolute().as_uri()}?mode={'ro' if self._refused else 'rwc'}"
        self._index = sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS, isolation_level=None)
        try:
            version = self._index.execute("PRAGMA user_version").fetchone()[0]
            if version == VERSION and self._index.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok":
                layout, facts = self._index.execute("SELECT layout, about FROM pool").fetchone() or (None, None)
                if layout == self._layout:
                    if self.facts and self.facts != parse_facts(facts) and not self._refused:
                        with suppress(OSError), self._transaction("IMMEDIATE"):  # metadata only
                            self._index.execute("UPDATE pool SET about = ?", (json.dumps(self.facts),))
                    return
        except sqlite3.DatabaseError as error:  # no database or a damaged one, unless it cannot be read at all
            if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                raise
            version = None
        num_bytes = os.fstat(self._records.descriptor).st_size
        if version != 0 or num_bytes:
            self.close()
            # New files and not the old ones emptied: another process may be reading these.
            for name in (INDEX, JOURNAL, RECORDS):
                (self.folder / name).unlink(missing_ok=True)
            if num_bytes:
                logger.info(
                    f"The index of the arrays kept in {self.folder} is missing, damaged or of another version; they "
                    "are made again."
                )
            return self._open()
        with self._transaction("IMMEDIATE"):
            for table in TABLES:
                self._index.execute(table)
            self._index.execute("INSERT INTO pool VALUES (?, ?)", (self._layout, json.dumps(self.facts)))
            self._index.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        with _sqlite_errors_as_os_errors(self.folder):
            self._index.execute(f"BEGIN {kind}")
            try:
                yield
                self._index.execute("COMMIT")
            except BaseException:
                if self._index.in_transaction:
                    self._index.execute("ROLLBACK")
                raise


def cached_fraction(folder: Path, shape: tuple[int, ...] | None, dtype, keys: Sequence[str]) -> float:
    """Which share of `keys` a pool holds, 0 to 1, by its index alone: nothing is made, changed, checked or told."""
    with suppress(sqlite3.Error, TypeError), open_index(folder / INDEX) as index:  # missing, damaged
        version, layout = (index.execute(of).fetchone()[0] for of in ("PRAGMA user_version", "SELECT layout FROM pool"))
        if (version, layout) == (VERSION, layout_text(shape, dtype)):
            select = "SELECT COUNT(*) FROM kept WHERE key = ?"
            return sum(index.execute(select, (key,)).fetchone()[0] for key in keys) / max(1, len(keys))
    return 0.0


class CachedRows:
    """The records of a pool at one moment, read-only, by position; any number of threads may read at once.

    Plain reads and no memory map: mapped pages would count as this process's memory, and a file that somebody cuts off
    or a bad place on the disk would end the process by SIGBUS. Stays valid after the pool is closed, or its files are
    deleted or replaced; marks the pool as used for as long as it lives.

    Attributes:
        shape: (records, *shape of a record); (records,) where they are `bytes`.
        dtype: of the arrays; object where records are `bytes`.
    """

    def __init__(self, records: "_Opened | None", shape: tuple[int, ...] | None, dtype, num_on_disk: int, places, held):
        self._records, self._record_shape, self.dtype = records, shape, dtype
        self._num_on_disk, self._places, self._held, self._num_held = num_on_disk, places, held, len(held)

    def __len__(self) -> int:
        return self._num_on_disk + self._num_held

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *(self._record_shape or ())

    def __getitem__(self, positions: int | np.ndarray) -> np.ndarray | bytes | list[bytes]:
        """Returns a new array (k, *shape), or k `bytes`, for integers (k,); one record for one integer.

        Raises:
            IndexError: a position is not one that `positions` or `add` gave, such as -1 for a missing record.
            OSError: a record cannot be read.
        """
        if isinstance(positions, int | np.integer):
            return self[np.array([positions], np.int64)][0]
        positions = np.asarray(positions) if len(positions) else np.empty(0, np.int64)
        if positions.ndim != 1 or positions.dtype.kind not in "iu":
            raise IndexError(f"expected integers (k,), got {positions.dtype} {positions.shape}")
        is_held = positions >= HELD
        if ((positions < 0) | (positions >= np.where(is_held, HELD + self._num_held, self._num_on_disk))).any():
            raise IndexError(f"expected positions of {len(self):,} records, got {positions.min()} to {positions.max()}")
        return self._bytes(positions) if self._record_shape is None else self._arrays(positions)

    def _bytes(self, positions: np.ndarray) -> list[bytes]:
        result = []
        for position in positions.tolist():
            if position >= HELD:
                result.append(self._held[position - HELD])
            else:
                offset, length = self._places[position].tolist()
                data = bytearray(length)
                self._read(memoryview(data), offset)
                result.append(bytes(data))
        return result

    def _arrays(self, positions: np.ndarray) -> np.ndarray:
        arrays = np.empty((len(positions), *self._record_shape), self.dtype)
        record_bytes = int(np.prod(self._record_shape)) * self.dtype.itemsize
        buffer = memoryview(arrays.reshape(-1).view(np.uint8))
        starts = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist()] if len(positions) else []
        for start, stop in zip(starts, [*starts[1:], len(positions)], strict=False):  # neighbours are read at once
            first = int(positions[start])
            if first >= HELD:
                for index in range(start, stop):
                    arrays[index] = self._held[first - HELD + index - start]
            else:
                self._read(buffer[start * record_bytes : stop * record_bytes], first * record_bytes)
        return arrays

    def _read(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            num_read = os.preadv(self._records.descriptor, [buffer], offset)
            if not num_read:
                raise OSError(errno.EIO, f"a kept record at byte {offset:,} was cut off while it was in use")
            buffer, offset = buffer[num_read:], offset + num_read


class _Opened:
    """A file that is open, with the locks on it, until nobody refers to it any more."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)


@contextmanager
def _sqlite_errors_as_os_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if not hasattr(error, "sqlite_errorcode"):  # a mistake of ours, such as a use after `close`
            raise
        number = ERRNO.get(error.sqlite_errorcode & 0xFF, errno.EIO)
        raise OSError(number, str(error), str(folder)) from error


def _checksum_of_row(key: str, note: str) -> int:
    """So that a row that points to another key's record is found out."""
    return zlib.crc32(f"{key}\n{note}".encode())


def _checksum(data, before: int) -> int:
    return zlib.crc32(data, before)


def _num_bytes(record: np.ndarray | bytes) -> int:
    return len(record) if isinstance(record, bytes) else record.nbytes
