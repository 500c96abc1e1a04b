"""The cache: a folder of entries, each a folder ``KIND/NAME`` of two files, shared by all runs.

`Cache` opens entries as `ArrayCache`, keeps the cache within its size, lists and clears it. The time of last use of an
entry is the modification time of its `records.bin`.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from transfer_learning.cli.formatting import megabytes
from transfer_learning.config import RunConfig
from transfer_learning.errors import UserError, did_you_mean
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.cache_index import INDEX, JOURNAL, EntrySpec, cached_fraction, describe_facts, read_spec
from transfer_learning.storage.files import existing_part
from transfer_learning.storage.locks import exclusive_lock, is_used
from transfer_learning.storage.records import RECORDS

logger = logging.getLogger(__name__)


class NoSpace(UserError):
    """Neither the disk nor the memory has room for what was to be cached."""


@dataclass(frozen=True)
class CacheEntry:
    """What is known of an entry without opening it."""

    path: Path
    spec: EntrySpec | None  # None: damaged, or written by another version
    problem: str  # why there is no spec, or ""
    num_records: int
    num_bytes: int  # on disk
    last_used: datetime  # local time
    in_use: bool  # by any process, this one included

    @property
    def kind(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        """``KIND/NAME``, as `Cache.clear` takes it."""
        return f"{self.kind}/{self.path.name}"

    @property
    def contents(self) -> str:
        """``backbone resnet18, image size 160``, or the problem."""
        return describe_facts(self.spec.facts) if self.spec else self.problem

    def describe(self) -> str:
        """``features/3f2a (backbone resnet18, image size 160, 12 MB, last used 2026-01-31 12:00)``."""
        parts = self.contents, megabytes(self.num_bytes), f"last used {self.last_used:%Y-%m-%d %H:%M}"
        return f"{self.name} ({', '.join(filter(None, parts))})"


@dataclass(frozen=True)
class Cache:
    """The cache of all runs: a folder, and the most that it may hold."""

    folder: Path  # created when the first entry is opened
    limit_gb: float = RunConfig.cache_gb  # 10^9 bytes; what does not fit is held in memory
    store: str = ""  # of features that several machines share, see `FeatureStore`; "": none

    @classmethod
    def of(cls, config: RunConfig) -> "Cache":
        """The cache that `config` names."""
        return cls(Path(config.cache_dir), config.cache_gb, config.feature_store)

    def open(self, spec: EntrySpec) -> ArrayCache:
        """Opens an entry, and creates it where it is missing; see `ArrayCache`."""
        return ArrayCache(self.entry_folder(spec), spec.shape, spec.dtype, spec.facts)

    def entry_folder(self, spec: EntrySpec) -> Path:
        """Where the entry is, or would be."""
        return self.folder / spec.kind / spec.name

    def cached_fraction(self, spec: EntrySpec, keys: Sequence[str]) -> float:
        """Share of `keys`, 0 to 1, that the entry holds; changes nothing."""
        return cached_fraction(self.entry_folder(spec), spec.shape, spec.dtype, keys)

    def reserve(self, arrays: ArrayCache, num_bytes: int) -> bool:
        """Makes room for `num_bytes` more in an opened entry, and returns whether they fit on disk; where the limit
        forbids it, `arrays` go to memory.
        """
        fits = self.make_room(num_bytes)
        if not fits:
            arrays.spill_to_memory(f"--cache-gb {self.limit_gb:g} allows no more")
        return fits

    def make_room(self, num_bytes: int) -> bool:
        """Deletes entries, least recently used first, until `num_bytes` more fit; returns whether they do.

        Entries in use stay: open the one that is to grow first. Where `num_bytes` cannot fit whatever is deleted, only
        as much is deleted as brings the cache itself within its limit.
        """
        try:
            entries = self.entries()
        except OSError:  # unreadable and so unwritable, which opening an entry reports
            return True
        limit_bytes = self.limit_gb * 1e9
        total = sum(entry.num_bytes for entry in entries)
        in_use = sum(entry.num_bytes for entry in entries if entry.in_use)
        target = limit_bytes - num_bytes if in_use + num_bytes <= limit_bytes else limit_bytes
        deleted = []
        for entry in sorted(entries, key=lambda entry: entry.last_used):
            with suppress(OSError):  # of another user
                if total > target and _delete(entry.path):
                    deleted.append(entry.describe())
                    total -= entry.num_bytes
        if deleted:
            logger.info(
                f"Deleted from {self.folder}, least recently used first, to stay below {megabytes(limit_bytes)}: "
                f"{', '.join(deleted)}."
            )
        return total + num_bytes <= limit_bytes

    def entries(self) -> list[CacheEntry]:
        """All entries by name, with damaged ones and those of other versions; [] where the folder is missing. OSError
        if it cannot be read.
        """
        if not self.folder.exists():
            return []
        os.listdir(self.folder)  # raises for a file or a folder without permission, where glob finds nothing
        entries = []
        for records in sorted(self.folder.glob(f"*/*/{RECORDS}")):
            if records.with_name(INDEX).is_file():
                with suppress(FileNotFoundError):  # deleted at this moment
                    entries.append(_inspect(records.parent))
        return entries

    def clear(self, chosen: str) -> tuple[list[CacheEntry], list[CacheEntry]]:
        """Deletes entries.

        Args:
            chosen: "all", a kind, or the name of an entry with or without its kind.

        Returns:
            The entries that were deleted, and those that stay because a process uses them.

        Raises:
            UserError: nothing in the cache has that name.
        """
        entries = self.entries()
        names = [{"all", entry.kind, entry.path.name, entry.name} for entry in entries]
        if chosen not in {"all"}.union(*names):
            known = {"all", *(entry.kind for entry in entries), *(entry.name for entry in entries)}
            raise UserError(f"{self.folder} has no entry {chosen}.{did_you_mean(chosen, known)}")
        matching = [entry for entry, own in zip(entries, names, strict=True) if chosen in own]
        deleted = [entry for entry in matching if _delete(entry.path)]
        return deleted, [entry for entry in matching if entry not in deleted]

    def num_bytes(self) -> int:
        """Size of all records on disk."""
        total = 0
        for records in self.folder.glob(f"*/*/{RECORDS}"):
            with suppress(OSError):  # deleted at this moment
                total += records.stat().st_size
        return total

    def free_bytes(self) -> int:
        """Free space on the disk of the cache."""
        return shutil.disk_usage(existing_part(self.folder)).free

    @contextmanager
    def disk_full_as_user_error(self, what: str, num_bytes: int) -> Iterator[None]:
        """Turns an OSError into a NoSpace that says how much `what` needs, and where."""
        try:
            yield
        except BrokenPipeError:  # of the console, not of the cache
            raise
        except OSError as error:
            raise NoSpace(
                f"The {what} need {megabytes(num_bytes)} in {self.folder}, which cannot be written "
                f"({error.strerror or error}); free some space, raise --cache-gb, or pass another --cache-dir."
            ) from None


def _inspect(folder: Path) -> CacheEntry:
    with exclusive_lock(folder):
        records = (folder / RECORDS).stat()
        num_bytes = records.st_size + (folder / INDEX).stat().st_size
        last_used = datetime.fromtimestamp(records.st_mtime).astimezone()
        return CacheEntry(folder, *read_spec(folder), num_bytes, last_used, is_used(folder / RECORDS))


def _delete(folder: Path) -> bool:
    """Deletes an entry unless it is in use; returns whether it is gone. Other files in its folder stay."""
    with suppress(FileNotFoundError), exclusive_lock(folder):  # missing: another process was faster
        if is_used(folder / RECORDS):
            return False
        for name in (RECORDS, INDEX, JOURNAL):  # the large one first: a kill in between leaves little behind
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            folder.rmdir()
    return True
