"""What a cache entry holds: its specification, and the SQLite index with one row per record."""

import ast
import errno
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

VERSION = 3  # of the format of an entry; entries of another version are deleted and filled again
# kinds of entries
PIXELS, FEATURES, ACTIVATIONS, HEADS, NETWORKS = "pixels", "features", "activations", "heads", "networks"
INDEX, JOURNAL = "index.sqlite", "index.sqlite-journal"
DAMAGED_INDEX = "its index is damaged"
LOCK_SECONDS = 60  # to wait for another process that adds records
TABLES = (
    "CREATE TABLE records "
    "(number INTEGER PRIMARY KEY, key TEXT UNIQUE, offset INTEGER, length INTEGER, crc32 INTEGER, note TEXT)",
    "CREATE TABLE entry (layout TEXT, facts TEXT)",
)
SELECT = "SELECT number, offset, length, crc32, key, note FROM records"
KEYS_PER_QUERY = 500  # SQLite takes at most 999 in every version
ERRNO = {  # of SQLite's errors; EIO for others
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,  # most often the journal, in a folder that cannot be written
    sqlite3.SQLITE_BUSY: errno.EBUSY,
}


@dataclass(frozen=True)
class EntrySpec:
    """Names a cache entry and says what its records are."""

    kind: str  # one of those above; the folder below the cache
    name: str  # folder below that; everything that decides the values must be in it, as in a hash
    shape: tuple[int, ...] | None  # of each array; None: records are `bytes` of any length
    dtype: str = ""  # of each array; "" where `shape` is None
    facts: Mapping[str, str | int] = field(default_factory=dict)  # metadata, as {"image_size": 160}

    @property
    def record_bytes(self) -> int:
        """Size of one array."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize if self.shape is not None else 0

    def describe(self) -> str:
        """``features (backbone resnet18, image size 160)``."""
        return f"{self.kind} ({facts})" if (facts := describe_facts(self.facts)) else self.kind


def describe_facts(facts: Mapping[str, str | int]) -> str:
    """``backbone resnet18, image size 160``."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())


def layout_text(shape: Sequence[int] | None, dtype) -> str:
    """The text that the index holds for a shape and a dtype."""
    return "bytes" if shape is None else f"{tuple(shape)} {np.dtype(dtype).str} {np.dtype(dtype).name}"


class IndexRow(NamedTuple):
    """One record; a damaged index may hold anything instead."""

    number: int  # 1, 2, ...
    offset: int  # in bytes, in the records file
    length: int
    crc32: int
    key: str
    note: str


class Index:
    """The opened index of one entry.

    Rows are append-only. The row of a damaged record stays, and its key is set to NULL, so that concurrent readers
    stay valid. Methods raise OSError where the index cannot be read or written.
    """

    def __init__(self, path: Path, read_only: bool):
        uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        self._connection = sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS, isolation_level=None)
        self._connection.text_factory = partial(str, encoding="utf-8", errors="replace")  # of a damaged index
        self._folder = path.parent

    def close(self) -> None:
        self._connection.close()

    def execute(self, statement: str, values: Sequence = ()) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)

    def layout(self) -> str | None:
        """The `layout_text`; "" for an empty index, None for a damaged one or one of another version."""
        with os_errors(self._folder):
            try:
                version = self.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    return ""
                tables = {sql for (sql,) in self.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")}
                # Not quick_check, which does not compare the index of the keys with the rows: 2 s per million records.
                is_whole = self.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok"
                if version == VERSION and tables == set(TABLES) and is_whole:
                    return (self.execute("SELECT layout FROM entry").fetchone() or [None])[0]
            except UnicodeDecodeError:  # of SQLite's message about a damaged table
                return None
            except sqlite3.DatabaseError as error:
                # Damaged, unless it is an OperationalError other than a missing table: then it cannot be read at all.
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
                if isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR:
                    raise
        return None

    def create(self, layout: str, facts: Mapping[str, str | int]) -> None:
        """Fills an empty index."""
        with self.transaction("IMMEDIATE"):
            for table in TABLES:
                self.execute(table)
            self.execute("INSERT INTO entry VALUES (?, ?)", (layout, json.dumps(facts)))
            self.execute(f"PRAGMA user_version = {VERSION}")

    def find(self, keys: Sequence[str]) -> list[IndexRow | None]:
        """The row of each key, None where there is none."""
        found: dict[str, IndexRow] = {}
        with self.transaction("DEFERRED"):
            for start in range(0, len(keys), KEYS_PER_QUERY):
                part = keys[start : start + KEYS_PER_QUERY]
                rows = self.execute(f"{SELECT} WHERE key IN ({', '.join('?' * len(part))})", part)
                found |= {row[4]: IndexRow(*row) for row in rows}
        return [found.get(key) for key in keys]

    def row(self, key: str) -> IndexRow | None:
        """The row of a key; call it in a transaction."""
        row = self.execute(f"{SELECT} WHERE key = ?", (key,)).fetchone()
        return IndexRow(*row) if row else None

    def append(self, key: str, length: int, crc32: int, note: str) -> tuple[int, int]:
        """Adds a row behind the last one; returns its number and offset. Call it in an IMMEDIATE transaction."""
        last = self.execute("SELECT offset, length FROM records ORDER BY number DESC LIMIT 1").fetchone() or (0, 0)
        if not all(isinstance(value, int) and value >= 0 for value in last):
            raise OSError(errno.EIO, DAMAGED_INDEX, str(self._folder))
        offset = sum(last)
        insert = "INSERT INTO records (key, offset, length, crc32, note) VALUES (?, ?, ?, ?, ?)"
        number = self.execute(insert, (key, offset, length, crc32, note)).lastrowid
        assert number is not None
        return number, offset

    def forget(self, number: int, key: str) -> None:
        """Removes the key of a damaged record; call it in an IMMEDIATE transaction."""
        self.execute("UPDATE records SET key = NULL WHERE number = ? AND key = ?", (number, key))

    def places(self) -> np.ndarray:
        """Offset and length of all records, int64 (n, 2); 0, 0 for damaged rows."""
        are_whole = "typeof(offset) = 'integer' AND typeof(length) = 'integer'"
        select = f"SELECT number, offset, length FROM records WHERE {are_whole}"
        with self.transaction("DEFERRED"):
            places = np.zeros((self.count(), 2), np.int64)
            rows = np.array(self.execute(select).fetchall(), np.int64).reshape(-1, 3)
        places[rows[:, 0] - 1] = rows[:, 1:]
        return places

    def count(self) -> int:
        """The number of rows, with those of damaged records."""
        with os_errors(self._folder):
            return self.execute("SELECT COALESCE(MAX(number), 0) FROM records").fetchone()[0]

    @contextmanager
    def transaction(self, kind: str) -> Iterator[None]:
        """kind: "DEFERRED" to read, "IMMEDIATE" to write while no other process does."""
        with os_errors(self._folder):
            self.execute(f"BEGIN {kind}")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self.execute("ROLLBACK")
                raise


@contextmanager
def os_errors(folder: Path) -> Iterator[None]:
    """Turns SQLite's errors into an OSError that names the folder."""
    try:
        yield
    except sqlite3.Error as error:
        if not hasattr(error, "sqlite_errorcode"):  # a mistake in this package, such as a use after `close`
            raise
        raise OSError(ERRNO.get(error.sqlite_errorcode & 0xFF, errno.EIO), str(error), str(folder)) from error


def cached_fraction(folder: Path, shape: Sequence[int] | None, dtype, keys: Sequence[str]) -> float:
    """Share of `keys`, 0 to 1, that the entry in `folder` holds, by its index alone."""
    queries = "PRAGMA user_version", "SELECT layout FROM entry"
    with suppress(sqlite3.Error, TypeError), _open_existing(folder) as index:  # missing or damaged
        version, layout = (index.execute(query).fetchone()[0] for query in queries)
        if (version, layout) == (VERSION, layout_text(shape, dtype)):
            select = "SELECT COUNT(*) FROM records WHERE key = ?"
            return sum(index.execute(select, (key,)).fetchone()[0] for key in keys) / max(1, len(keys))
    return 0.0


def read_spec(folder: Path) -> tuple[EntrySpec | None, str, int]:
    """The spec of the entry in `folder`, or the problem with it, and its number of records."""
    try:
        with _open_existing(folder) as index:
            if index.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                return None, "of another version", 0
            select = "SELECT layout, facts, (SELECT COUNT(key) FROM records) FROM entry"
            layout, facts, num_records = index.execute(select).fetchone()
        shape, dtype = None, ""
        if layout != "bytes":
            text, _, dtypes = layout.rpartition(") ")
            shape, dtype = ast.literal_eval(f"{text})"), dtypes.split()[1]
        return EntrySpec(folder.parent.name, folder.name, shape, dtype, dict(json.loads(facts))), "", num_records
    except sqlite3.OperationalError as error:
        return None, f"cannot be read ({error})", 0
    except (sqlite3.DatabaseError, TypeError, ValueError, SyntaxError, IndexError):
        return None, "damaged", 0


def _open_existing(folder: Path) -> closing[sqlite3.Connection]:
    """Opens for writing, because SQLite has to roll back what a killed process left."""
    return closing(sqlite3.connect(f"{(folder / INDEX).absolute().as_uri()}?mode=rw", uri=True, timeout=5))
