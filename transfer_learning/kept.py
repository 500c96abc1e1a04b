"""Arrays kept on disk by key: what one run computed, another finds, however the first one ended.

A pool is a folder with two files: `records.bin`, arrays of one shape and dtype one after the other, and
`index.sqlite`, which says where each key's array stands and what its checksum is. An array counts as kept once its
index row is committed, and its bytes reach the disk before that; so a kill leaves at most bytes that nobody refers to.
"""

import errno
import fcntl
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from transfer_learning.errors import UserError

VERSION = 1  # of the layout of a pool; another one is made anew
LOCK_SECONDS = 60  # an addition of another process is waited for so long
ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,  # most often its journal, in a folder that cannot be written
    sqlite3.SQLITE_BUSY: errno.EBUSY,
}
# AUTOINCREMENT: a number is never given twice, so what a running process maps is never overwritten by another one.
TABLE = "CREATE TABLE kept (number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE, crc32 INTEGER, note TEXT)"


class KeptArrays:
    """A pool of arrays of one shape and dtype, which several processes may share; a context manager.

    Args:
        folder: of this pool alone; made where it is missing. One that cannot be written is opened for reading.
        shape: of each array.
        dtype: of each array.
        say: takes a sentence where something kept is lost.

    Raises:
        OSError: the folder can neither be made nor read, or its index is held by another process for long.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype, say: Callable[[str], None] = print):
        self.folder, self.shape, self.dtype, self._say = folder, shape, np.dtype(dtype), say
        self._record_bytes = int(np.prod(shape)) * self.dtype.itemsize
        self._records = self._index = None
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with _alone(folder), _sqlite_errors_as_os_errors(folder):
                self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "KeptArrays":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Closes both files; an `array` that was taken stays valid."""
        for opened in (self._records, self._index):
            if opened:
                opened.close()

    @property
    def array(self) -> np.ndarray:
        """All records at this moment, (records, *shape), read-only: a memory map, or an empty array where none is."""
        records = os.fstat(self._records.fileno()).st_size // self._record_bytes
        if records:
            return np.memmap(self._records, self.dtype, "r", shape=(records, *self.shape))
        empty = np.empty((0, *self.shape), self.dtype)  # no memory map has 0 bytes
        empty.flags.writeable = False
        return empty

    def positions(self, keys: Sequence[str]) -> np.ndarray:
        """Returns int64 (len(keys),): where in `array` each key's record stands, -1 where it is missing.

        Every record that is found is read and checked; a damaged one is forgotten, counts as missing and is told.

        Raises:
            OSError: the index cannot be read.
        """
        select = "SELECT number, crc32, note FROM kept WHERE key = ?"
        with self._transaction("DEFERRED"):
            rows = [self._index.execute(select, (key,)).fetchone() for key in keys]
        positions, damaged = np.full(len(keys), -1, np.int64), []
        for index, (key, row) in enumerate(zip(keys, rows, strict=True)):
            if row and _checksum(key, row[2], self._read(row[0] - 1)) == row[1]:
                positions[index] = row[0] - 1
            elif row:
                damaged.append((key, row[0]))
        if damaged:
            if not self._read_only:
                with self._transaction("IMMEDIATE"):
                    self._index.executemany("DELETE FROM kept WHERE key = ? AND number = ?", damaged)
            self._say(f"{len(damaged):,} kept arrays in {self.folder} were damaged; they are made again.")
        return positions

    def notes(self, keys: Sequence[str]) -> list[str]:
        """Returns the notes that were given with the keys, "" for a key that is missing."""
        select = "SELECT note FROM kept WHERE key = ?"
        with self._transaction("DEFERRED"):
            rows = [self._index.execute(select, (key,)).fetchone() for key in keys]
        return [row[0] if row else "" for row in rows]

    def add(self, keys: Sequence[str], arrays: Sequence[np.ndarray], notes: Sequence[str] | None = None) -> np.ndarray:
        """Keeps all of `arrays` or, on an error, none; returns their positions, int64 (len(keys),).

        Keys that are there already, from another process or from earlier in `keys`, stay as they are.

        Args:
            arrays: each of the pool's shape and dtype.
            notes: a short text for each key, such as a fact that is not in the array.

        Raises:
            OSError: the pool cannot be written; what was in it stays.
            ValueError: an array has another shape or dtype.
        """
        if self._read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self.folder))
        positions = []
        with self._transaction("IMMEDIATE"):  # from here on no other process adds
            end = os.fstat(self._records.fileno()).st_size
            try:
                for key, array, note in zip(keys, arrays, notes or [""] * len(keys), strict=True):
                    row = self._index.execute("SELECT number FROM kept WHERE key = ?", (key,)).fetchone()
                    number = row[0] if row else self._append(key, array, note)
                    positions.append(number - 1)
                os.fsync(self._records.fileno())
            except BaseException:
                with suppress(OSError):  # gives the space back; nobody refers to it
                    self._records.truncate(end)
                raise
        return np.array(positions, np.int64)

    def _append(self, key: str, array: np.ndarray, note: str) -> int:
        array = np.ascontiguousarray(array)
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"expected {self.dtype} {self.shape}, got {array.dtype} {array.shape}")
        data = array.tobytes()
        insert = "INSERT INTO kept (key, crc32, note) VALUES (?, ?, ?)"
        number = self._index.execute(insert, (key, _checksum(key, note, data), note)).lastrowid
        rest, offset = memoryview(data), (number - 1) * self._record_bytes
        while rest:  # plain writes: on a full disk a writable memory map ends the process by SIGBUS
            written = os.pwrite(self._records.fileno(), rest, offset)
            rest, offset = rest[written:], offset + written
        return number

    def _read(self, position: int) -> bytes:
        try:
            return os.pread(self._records.fileno(), self._record_bytes, position * self._record_bytes)
        except OSError:  # a bad place on the disk, which a memory map would report by SIGBUS
            return b""

    def _open(self) -> None:
        records, index = self.folder / "records.bin", self.folder / "index.sqlite"
        layout = zlib.crc32(f"{VERSION} {self.shape} {self.dtype.str}".encode()) & 0x7FFFFFFF or 1
        self._read_only = False
        try:
            self._records = open(os.open(records, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not records.exists():
                raise
            self._records, self._read_only = open(records, "rb", buffering=0), True
        uri = f"{index.absolute().as_uri()}?mode={'ro' if self._read_only else 'rwc'}"
        self._index = sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS, isolation_level=None)
        try:
            found = self._index.execute("PRAGMA user_version").fetchone()[0]
            if found == layout and self._index.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok":
                return
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:  # no database, or a damaged one
            found = None
        num_bytes = os.fstat(self._records.fileno()).st_size
        if found != 0 or num_bytes:
            self.close()
            # New files and not the old ones emptied: another process may have these mapped.
            for path in (index, index.with_name("index.sqlite-journal"), records):
                path.unlink(missing_ok=True)
            if num_bytes:
                self._say(
                    f"The index of the arrays kept in {self.folder} is missing, damaged or of another version; they "
                    "are made again."
                )
            return self._open()
        with self._transaction("IMMEDIATE"):
            self._index.execute(TABLE)
            self._index.execute(f"PRAGMA user_version = {layout}")

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


@contextmanager
def space_told(what: str, num_bytes: int, cache_dir: str | Path) -> Iterator[None]:
    """Turns what stops a pool from being written into the UserError that says what `what` needs, and where."""
    try:
        yield
    except BrokenPipeError:  # of a sentence that was said: the reader of our output has gone
        raise
    except OSError as error:
        raise UserError(
            f"{what} need {-(-num_bytes // 10**6):,} MB in {cache_dir}, which cannot be written "
            f"({error.strerror or error}); free some space, or name another folder with --cache-dir."
        ) from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No two processes open the pool at once: they would take turns in throwing away what the other one began."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without such locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _sqlite_errors_as_os_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        number = ERRNO.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, errno.EIO)
        raise OSError(number, str(error), str(folder)) from error


def _checksum(key: str, note: str, data: bytes) -> int:
    """Over the index row as well, so that a row that points to another key's record is found out."""
    return zlib.crc32(data, zlib.crc32(f"{key}\n{note}".encode()))
