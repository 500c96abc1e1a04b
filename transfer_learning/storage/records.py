"""The records of a cache entry: the file that holds them, those held in memory, and reading both by position."""

import errno
import os
import weakref
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from transfer_learning.storage.locks import lock_shared

RECORDS = "records.bin"
IN_MEMORY = 1 << 40  # positions from here on are of records in this process's memory


class RecordsFile:
    """An opened records file, marked as in use until nobody refers to it any more.

    It has no memory map: mapped pages would count as this process's memory, and a truncated file, a bad sector or a full
    disk would end the process by SIGBUS.
    """

    def __init__(self, path: Path, read_only: bool):
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
        self.descriptor = os.open(path, flags, 0o666)
        weakref.finalize(self, os.close, self.descriptor)
        lock_shared(self.descriptor)
        with suppress(OSError):  # of another user
            os.utime(self.descriptor)  # the time of last use

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills the buffer; OSError if the bytes cannot be read, or the file ends before."""
        while buffer:
            num_read = os.preadv(self.descriptor, [buffer], offset)
            if not num_read:
                raise OSError(errno.EIO, f"a cached record at byte {offset:,} was cut off while in use")
            buffer, offset = buffer[num_read:], offset + num_read

    def write(self, data: bytes, offset: int) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self.descriptor, rest, offset)
            rest, offset = rest[written:], offset + written

    def crc32(self, offset: int, length: int, start: int, buffer: memoryview) -> int:
        """Continues the checksum `start` over bytes of the file, read in parts of the size of `buffer`."""
        while length > 0:
            part = buffer[: min(length, len(buffer))]
            self.read_into(part, offset)
            start = zlib.crc32(part, start)
            offset, length = offset + len(part), length - len(part)
        return start


class MemoryRecords:
    """Records that are held in the memory of this process, for one run."""

    def __init__(self) -> None:
        self.records: list = []  # arrays or bytes
        self.num_bytes = 0
        self.index: dict[str, tuple[int, str]] = {}  # key -> position, note

    def add(self, key: str, record: np.ndarray | bytes, note: str) -> None:
        self.index[key] = IN_MEMORY + len(self.records), note
        # A copy, because the array may be part of a larger one, or be overwritten by its owner.
        self.records.append(record if isinstance(record, bytes) else record.copy())
        self.num_bytes += num_bytes_of(record)


def num_bytes_of(record: np.ndarray | bytes) -> int:
    """Size of a record."""
    return len(record) if isinstance(record, bytes) else record.nbytes


class CachedRows:
    """The arrays of an entry at one moment, read-only, by position; see `Rows`.

    Stays valid after the entry is closed, deleted or replaced, and marks it as in use.
    """

    def __init__(
        self, file: RecordsFile | None, num_on_disk: int, in_memory: list, shape: tuple[int, ...], dtype: np.dtype
    ):
        self._file, self._num_on_disk = file, num_on_disk
        self._in_memory, self._num_in_memory = in_memory, len(in_memory)
        self._record_shape, self.dtype = shape, dtype
        self._record_bytes = int(np.prod(shape)) * dtype.itemsize

    def __len__(self) -> int:
        return self._num_on_disk + self._num_in_memory

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self._record_shape

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """Returns a new array (k, ...) for integers (k,). IndexError for a position that `positions` or `add` did not
        return, such as -1 for a missing record; OSError if a record cannot be read.
        """
        positions = _checked(positions, self._num_on_disk, self._num_in_memory)
        arrays = np.empty((len(positions), *self._record_shape), self.dtype)
        buffer = arrays.reshape(-1).view(np.uint8).data
        starts = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist()] if len(positions) else []
        for start, stop in zip(starts, [*starts[1:], len(positions)], strict=False):  # one read for consecutive records
            first = int(positions[start])
            if first >= IN_MEMORY:
                for index in range(start, stop):
                    arrays[index] = self._in_memory[first - IN_MEMORY + index - start]
            else:
                assert self._file is not None
                part = slice(start * self._record_bytes, stop * self._record_bytes)
                self._file.read_into(buffer[part], first * self._record_bytes)
        return arrays


class CachedBytes:
    """The `bytes` records of an entry at one moment, by position; otherwise as `CachedRows`."""

    def __init__(self, file: RecordsFile | None, places: np.ndarray, in_memory: list):
        self._file, self._places, self._in_memory, self._num_in_memory = file, places, in_memory, len(in_memory)

    def __len__(self) -> int:
        return len(self._places) + self._num_in_memory

    def __getitem__(self, positions: np.ndarray) -> list[bytes]:
        """Returns k `bytes` for integers (k,); raises what `CachedRows` does."""
        result = []
        for position in _checked(positions, len(self._places), self._num_in_memory).tolist():
            if position >= IN_MEMORY:
                result.append(self._in_memory[position - IN_MEMORY])
            else:
                assert self._file is not None
                offset, length = self._places[position].tolist()
                data = bytearray(length)
                self._file.read_into(memoryview(data), offset)
                result.append(bytes(data))
        return result


def _checked(positions: np.ndarray, num_on_disk: int, num_in_memory: int) -> np.ndarray:
    positions = np.asarray(positions) if np.size(positions) else np.empty(0, np.int64)
    if positions.ndim != 1 or positions.dtype.kind not in "iu":
        raise IndexError(f"expected integers (k,), got {positions.dtype} {positions.shape}")
    end = np.where(positions >= IN_MEMORY, IN_MEMORY + num_in_memory, num_on_disk)
    if ((positions < 0) | (positions >= end)).any():
        raise IndexError(
            f"expected positions of {num_on_disk + num_in_memory:,} records, got {positions.min()} to {positions.max()}"
        )
    return positions
