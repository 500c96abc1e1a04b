"""Arrays cached on disk by key: the results of one run, which another run finds, however the first one ended.

A cache entry is a folder ``cache/KIND/NAME`` of two files: `records.bin`, one record after the other, and
`index.sqlite`, with the place and the checksum of each key's record. The bytes of a record reach the disk before its
index row is committed, so a kill leaves at most bytes that nobody refers to.
"""

import errno
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np

from transfer_learning.cli.formatting import counted, megabytes
from transfer_learning.machine.resources import available_bytes, usable_cores
from transfer_learning.storage.cache_index import DAMAGED_INDEX, INDEX, JOURNAL, Index, IndexRow, layout_text, os_errors
from transfer_learning.storage.locks import exclusive_lock
from transfer_learning.storage.records import RECORDS, CachedBytes, CachedRows, MemoryRecords, RecordsFile, num_bytes_of

logger = logging.getLogger(__name__)

KEYS_AT_ONCE, RECORDS_AT_ONCE, BYTES_AT_ONCE = 4096, 64, 1 << 20  # per query, per task of a thread, per read
# Errors that mean: no space or no permission. SQLite reports a quota as EIO.
DISK_REFUSED = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
)


class ArrayCache(AbstractContextManager):
    """One cache entry: arrays of one shape and dtype, or `bytes`; a context manager, safe for several processes.

    Where the disk refuses (full, quota, no permission, read-only), records are held in the memory of this process
    instead, for this run only; a warning says so once.

    Args:
        folder: of this entry alone; created where it is missing. One that cannot be written is opened for reading.
        shape: of each array; None: records are `bytes` of any length.
        dtype: of each array; ignored where `shape` is None.
        facts: metadata for the list of entries, see `EntrySpec`; written when the entry is created.

    Raises:
        OSError: the folder is a file, or another process locks its index for long.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, ...] | None, dtype, facts: Mapping[str, str | int] | None = None
    ):
        self.folder, self.facts = folder, dict(facts or {})
        self.shape = None if shape is None else tuple(shape)
        self.dtype = np.dtype(object if shape is None else dtype)
        self._file: RecordsFile | None = None
        self._index: Index | None = None
        self._damaged: set[int] = set()  # numbers of index rows
        self._memory = MemoryRecords()
        self._refused: OSError | None = None  # why new records go to memory
        self._has_warned = False
        try:
            with exclusive_lock(folder, make=True), os_errors(folder):
                self._open()
        except OSError as error:
            self.close()
            if error.errno not in DISK_REFUSED:
                raise
            self._refused = error
        except BaseException:
            self.close()
            raise

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Closes the entry; `rows` that were taken stay valid, and mark it as in use for as long as they live."""
        if self._index:
            self._index.close()
        self._file = self._index = None

    @property
    def num_bytes(self) -> int:
        """Size of the records on disk."""
        return os.fstat(self._file.descriptor).st_size if self._file else 0

    @property
    def rows(self) -> CachedRows:
        """The arrays of this moment."""
        assert self.shape is not None
        count = self._index.count() if self._index else 0
        return CachedRows(self._file, count, self._memory.records, self.shape, self.dtype)

    @property
    def byte_rows(self) -> CachedBytes:
        """The `bytes` of this moment."""
        places = self._index.places() if self._index else np.zeros((0, 2), np.int64)
        return CachedBytes(self._file, places, self._memory.records)

    def positions(self, keys: Sequence[str]) -> np.ndarray:
        """Returns the positions of the keys in `rows`, int64 (len(keys),); -1 where a record is missing.

        Every record is read and checked. A damaged one counts as missing and loses its key; a log line counts them.
        OSError if the index cannot be read.
        """
        positions, damaged = np.full(len(keys), -1, np.int64), {}
        with ThreadPoolExecutor(max(4, usable_cores())) as threads:  # reading and zlib release Python's lock
            for start in range(0, len(keys), KEYS_AT_ONCE):
                rows = self._find(keys[start : start + KEYS_AT_ONCE])
                # In the order of the file, which is what a disk reads fastest.
                found = sorted((row, start + index) for index, row in enumerate(rows) if row)
                tasks = [found[first : first + RECORDS_AT_ONCE] for first in range(0, len(found), RECORDS_AT_ONCE)]
                for task, are_intact in zip(tasks, threads.map(self._are_intact, tasks), strict=True):
                    for (row, index), is_intact in zip(task, are_intact, strict=True):
                        if is_intact:
                            positions[index] = row.number - 1
                        elif row.number not in self._damaged:
                            damaged[row.number] = keys[index]
        in_memory = self._memory.index
        for index, key in enumerate(keys):
            if key in in_memory:
                positions[index] = in_memory[key][0]
        if damaged:
            self._forget(damaged)
            logger.warning(f"{self.folder}: {counted(len(damaged), 'record')} damaged; computing again.")
        return positions

    def notes(self, keys: Sequence[str]) -> list[str]:
        """Returns the notes that were added with the keys, "" for a missing key."""
        rows, in_memory = zip(keys, self._find(keys), strict=True), self._memory.index
        return [in_memory[key][1] if key in in_memory else row.note if row else "" for key, row in rows]

    def forget(self, keys: Sequence[str]) -> None:
        """Takes the records of these keys for missing from now on, so that others can be added."""
        self._forget({row.number: row.key for row in self._find(keys) if row})

    def add(
        self,
        keys: Sequence[str],
        arrays: Sequence[np.ndarray] | Sequence[bytes],
        notes: Sequence[str] | None = None,
        needed_bytes: int = 0,
    ) -> np.ndarray:
        """Adds all of `arrays` or, on an error, none; returns their positions, int64 (len(keys),).

        Keys that exist already, from another process or from earlier in `keys`, stay as they are. Once the disk has
        refused, all records go to memory (positions from `IN_MEMORY` on).

        Args:
            arrays: each of the entry's shape and dtype; `bytes` where its shape is None.
            notes: a short text per key, such as a fact that is not in the array.
            needed_bytes: of these and all further arrays of this run; decides whether memory is large enough.

        Raises:
            OSError: the disk refuses and half of the available memory is too small as well, or another error.
            ValueError: an array has another shape or dtype.
        """
        notes = [""] * len(keys) if notes is None else notes
        if self._refused is None:
            try:
                return self._add_on_disk(keys, arrays, notes)
            except OSError as error:
                if error.errno not in DISK_REFUSED:
                    raise
                self._refused = error
        return self._add_in_memory(keys, arrays, notes, needed_bytes)

    def spill_to_memory(self, reason: str) -> None:
        """From now on nothing is written, as if the disk refused; for a cache that has reached its limit."""
        self._refused = self._refused or OSError(errno.ENOSPC, reason, str(self.folder))

    def _open(self) -> None:
        self._refused = None
        try:
            self._file = RecordsFile(self.folder / RECORDS, read_only=False)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not (self.folder / RECORDS).exists():
                raise
            self._file, self._refused = RecordsFile(self.folder / RECORDS, read_only=True), error
        self._index = Index(self.folder / INDEX, read_only=self._refused is not None)
        layout, num_bytes = self._index.layout(), os.fstat(self._file.descriptor).st_size
        if layout == layout_text(self.shape, self.dtype):
            return
        if layout == "" and not num_bytes:
            self._index.create(layout_text(self.shape, self.dtype), self.facts)
        else:
            self.close()
            # Deleted and not emptied, because another process may be reading them.
            for name in (INDEX, JOURNAL, RECORDS):
                (self.folder / name).unlink(missing_ok=True)
            if num_bytes:
                logger.info(f"{self.folder}: the index is missing, damaged or of another version; starting empty.")
            self._open()

    def _find(self, keys: Sequence[str]) -> Sequence[IndexRow | None]:
        return self._index.find(keys) if self._index else [None] * len(keys)

    def _are_intact(self, task: list[tuple[IndexRow, int]]) -> list[bool]:
        buffer = memoryview(bytearray(BYTES_AT_ONCE))
        return [self._is_intact(row, buffer) for row, _ in task]

    def _is_intact(self, row: IndexRow, buffer: memoryview) -> bool:
        assert self._file is not None
        if self.shape is not None:
            record_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
            if (row.offset, row.length) != ((row.number - 1) * record_bytes, record_bytes):
                return False  # `rows` would read another place
        try:
            start = _crc32_of_key(row.key, row.note)
            return row.length >= 0 and self._file.crc32(row.offset, row.length, start, buffer) == row.crc32
        except (OSError, TypeError, OverflowError):  # unreadable, or not a number in the index
            return False

    def _forget(self, damaged: dict[int, str]) -> None:
        self._damaged |= set(damaged)
        if self._index and not self._refused:
            with suppress(OSError), self._index.transaction("IMMEDIATE"):  # on a full disk only this process knows
                for number, key in damaged.items():
                    self._index.forget(number, key)

    def _add_on_disk(self, keys: Sequence[str], arrays: Sequence, notes: Sequence[str]) -> np.ndarray:
        assert self._index is not None and self._file is not None
        numbers = []
        with self._index.transaction("IMMEDIATE"):
            end = os.fstat(self._file.descriptor).st_size
            try:
                for key, array, note in zip(keys, arrays, notes, strict=True):
                    row = self._index.row(key)
                    if row and row.number in self._damaged:
                        self._index.forget(row.number, key)
                        row = None
                    numbers.append(row.number if row else self._append(key, array, note))
                os.fsync(self._file.descriptor)
            except BaseException:
                with suppress(OSError):  # nobody refers to what was written
                    os.ftruncate(self._file.descriptor, end)
                raise
        return np.array(numbers, np.int64) - 1

    def _append(self, key: str, array: np.ndarray | bytes, note: str) -> int:
        assert self._index is not None and self._file is not None
        record = self._checked(array)
        data = record if isinstance(record, bytes) else record.tobytes()
        number, offset = self._index.append(key, len(data), zlib.crc32(data, _crc32_of_key(key, note)), note)
        if self.shape is not None and offset != (number - 1) * len(data):  # `rows` would read another place
            raise OSError(errno.EIO, DAMAGED_INDEX, str(self.folder))
        self._file.write(data, offset)
        return number

    def _add_in_memory(
        self, keys: Sequence[str], arrays: Sequence, notes: Sequence[str], needed_bytes: int
    ) -> np.ndarray:
        rows, in_memory = zip(keys, self._find(keys), strict=True), self._memory.index
        on_disk = {key: row.number - 1 for key, row in rows if row and row.number not in self._damaged}
        new: dict[str, tuple[np.ndarray | bytes, str]] = {}
        for key, array, note in zip(keys, arrays, notes, strict=True):
            if key not in on_disk and key not in in_memory:
                new.setdefault(key, (self._checked(array), note))
        if new:
            self._check_memory(max(needed_bytes, sum(num_bytes_of(record) for record, _ in new.values())))
        for key, (record, note) in new.items():
            self._memory.add(key, record, note)
        return np.array([in_memory[key][0] if key in in_memory else on_disk[key] for key in keys], np.int64)

    def _check_memory(self, needed_bytes: int) -> None:
        assert self._refused is not None
        available = available_bytes() + self._memory.num_bytes  # to this entry
        reason = self._refused.strerror or str(self._refused)
        if self._memory.num_bytes + needed_bytes > available / 2:
            reason += f", and they would take more than half of the {megabytes(available)} of memory that are available"
            raise OSError(self._refused.errno, reason, str(self.folder))
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                f"Cannot write {megabytes(needed_bytes)} to {self.folder} ({reason}); the run holds this data in "
                "memory instead, and later runs compute it again."
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


def _crc32_of_key(key: str, note: str) -> int:
    """Start of a record's checksum, so that a row that points to another key's record is damaged."""
    return zlib.crc32(f"{key}\n{note}".encode())
