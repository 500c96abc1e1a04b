"""An archive of class folders (.zip, .tar, .tar.gz ...), unpacked once into the data folder, if nothing in it is hostile.

All entries are checked before the first is written: a path that leads out of the folder, a link, a device, two names
that some systems take for one, or sizes that no archive of images has, refuse the whole archive. Nothing in it is
believed before it was checked, its list of entries neither: that could be made to fill the memory by itself.
"""

import bz2
import gzip
import hashlib
import itertools
import lzma
import shutil
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from transfer_learning.cli.formatting import size
from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.sources import folder
from transfer_learning.errors import UserError

OPENERS = {".tar": open, ".tar.gz": gzip.open, ".tgz": gzip.open, ".tar.bz2": bz2.open, ".tar.xz": lzma.open}
SUFFIXES = (".zip", *OPENERS)
MOST_ENTRIES = 500_000  # each takes memory while the archive is read, and a place in a folder
MOST_EXPANSION = 100  # times the archive; JPEGs and PNGs do not shrink, uncompressed drawings shrink by some tens
ALWAYS_ALLOWED = 100e6  # bytes
MOST_LISTED_BYTES = 300 * MOST_ENTRIES  # of the list of entries in a .zip
MOST_HEADER_BYTES = 1 << 20  # of what stands ahead of an entry in a .tar, names and all
LONGEST_PATH, DEEPEST_PATH = 1000, 30  # in bytes, and in folders
BLOCK = 4096  # bytes of disk that a file takes at least

DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
)


class Entry(NamedTuple):
    """One file in an archive."""

    name: str
    num_bytes: int
    problem: str  # why it cannot be taken, or nothing
    open: Callable[[], BinaryIO]


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def read(path: Path, data_dir: Path) -> Dataset:
    """Unpacks the archive into ``data_dir/archives``, unless that was done, and reads it as `folder.read` does.

    Raises:
        UserError: it is damaged, hostile or encrypted, does not fit on the disk, or holds no classes.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    place = data_dir / "archives" / f"{path.name.split('.')[0][:100]}-{digest[:16]}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        print(f"Unpacking {path} ({size(path.stat().st_size)}) into {place}.", flush=True)
        with tempfile.TemporaryDirectory(prefix="unpacking-", dir=place.parent) as unfinished:
            _unpack(path, Path(unfinished) / "images")
            try:
                (Path(unfinished) / "images").rename(place)
            except OSError:
                if not place.is_dir():  # another process was first
                    raise
    dataset = folder.read(place)
    return replace(dataset, name=str(path))


def _unpack(path: Path, target: Path) -> None:
    """Goes through the archive twice, to check it and to write it: a list of all entries is never in memory."""
    try:
        needed = sum(-(-entry.num_bytes // BLOCK) * BLOCK for entry in _checked(path))
        free = shutil.disk_usage(target.parent).free
        if needed > free:
            raise UserError(
                f"{path} unpacks to {size(needed)}, and {target.parent.parent} has {size(free)} left; free some space, or "
                "name another --data-dir."
            )
        target.mkdir()
        for entry in _checked(path):
            file = target / entry.name
            file.parent.mkdir(parents=True, exist_ok=True)
            with entry.open() as source, open(file, "xb") as copy:
                shutil.copyfileobj(source, copy, MOST_HEADER_BYTES)
    except DAMAGED as error:
        if getattr(error, "errno", None):  # the system's complaint, and no decoder's
            raise
        raise UserError(f"{path} cannot be unpacked ({error}); fetch it again, or unpack it yourself.") from None


class _Guarded:
    """An archive opened for reading that does not let its reader fill the memory.

    The modules `zipfile` and `tarfile` read the list of entries, or what stands ahead of one, in one piece, as long as the
    archive says that it is.
    """

    def __init__(self, path: Path, file: BinaryIO, most: int):
        self._path, self._file, self._most, self.last_read = path, file, most, b""
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, num_bytes: int = -1) -> bytes:
        """Reads up to `num_bytes`, or the rest.

        Raises:
            UserError: that is more than there are good reasons for.
        """
        self.last_read = self._file.read(num_bytes if 0 <= num_bytes <= self._most else self._most + 1)
        if len(self.last_read) > self._most:
            raise _refusal(self._path, f"a list of its files takes more than {size(self._most)}")
        if self.last_read.count(b"PK\x01\x02") > MOST_ENTRIES:
            raise _refusal(self._path, f"it lists more than {MOST_ENTRIES:,} files")
        return self.last_read


@contextmanager
def entries(path: Path) -> Iterator[Iterator[Entry]]:
    """Opens an archive and goes through the files in it, unchecked; each can be opened until the next is asked for.

    Raises:
        UserError: a list in it would fill the memory.
        Exceptions of `DAMAGED`: it is damaged.
    """
    name = path.name.lower()
    if name.endswith(".zip"):
        with open(path, "rb") as file, zipfile.ZipFile(_Guarded(path, file, MOST_LISTED_BYTES)) as archive:
            yield (
                Entry(info.filename, info.file_size, _problem_in_zip(info), lambda info=info: archive.open(info))
                for info in archive.infolist()
                if not info.is_dir()
            )
    else:
        opener = next(opener for suffix, opener in OPENERS.items() if name.endswith(suffix))
        with opener(path, "rb") as file:
            guarded = _Guarded(path, file, MOST_HEADER_BYTES)
            with tarfile.open(fileobj=guarded, mode="r:") as archive:
                yield _entries_of_tar(archive, guarded)


def _entries_of_tar(archive: tarfile.TarFile, file: _Guarded) -> Iterator[Entry]:
    while info := archive.next():
        archive.members = []  # it would keep them all
        if not info.isdir():
            problem = "" if info.isreg() and not info.issparse() else "is a link or a device"
            yield Entry(info.name, info.size, problem, lambda info=info: archive.extractfile(info))
    if file.last_read.strip(b"\0"):  # the module takes damage for the end
        raise tarfile.ReadError("after its last entry come bytes that are none")


def _problem_in_zip(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "is encrypted"
    kind = info.external_attr >> 28  # of Unix, where the archive comes from there
    return "is a link or a device" if kind not in (0, 8) else ""


def _checked(path: Path) -> Iterator[Entry]:
    """The files in an archive, one after the other, up to the first that may not be unpacked.

    Raises:
        UserError: there is such a one; it says why.
    """
    packed = path.stat().st_size
    most, total = max(ALWAYS_ALLOWED, MOST_EXPANSION * packed), 0
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    with entries(path) as found:
        for number, entry in enumerate(found, 1):
            total += entry.num_bytes
            reason = entry.problem or _problem_of_name(entry.name, files, folders)
            if number > MOST_ENTRIES:
                reason = f"is number {number:,}, and no more than {MOST_ENTRIES:,} files are unpacked"
            if total > most:
                reason = f"makes more than {size(most)} of an archive of {size(packed)}, as no images do"
            if reason:
                raise _refusal(path, f"its entry {ascii(entry.name[:200])} {reason}")
            yield entry


def _problem_of_name(name: str, files: dict[str, str], folders: dict[str, str]) -> str:
    """Why a file may not have this name, or nothing; then it is added to `files` (by the name that all systems take for
    the same) and what it lies in to `folders`, likewise."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts:
        return "leads out of the folder"
    if "\\" in name or ":" in name or not name.isprintable():
        return "is no name that every system takes"
    if len(name) > LONGEST_PATH or len(parts) > DEEPEST_PATH:
        return "lies deeper than images do"
    if any(len(part.encode()) > 255 for part in parts):
        return "is longer than a file name may be"
    folded = unicodedata.normalize("NFC", "/".join(parts)).casefold()
    above, above_as_written = (
        list(itertools.accumulate(path[:-1], "{}/{}".format)) for path in (folded.split("/"), parts)
    )
    if folded in files:
        return f"is the same as {files[folded]!r} on some systems"
    if folded in folders or any(folder in files for folder in above):
        return "is a file and a folder at once"
    for place, written in zip(above, above_as_written, strict=True):
        if folders.setdefault(place, written) != written:  # two classes here are one there
            return f"lies in {written!r}, which is {folders[place]!r} on some systems"
    files[folded] = name
    return ""


def _refusal(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is not unpacked, because {reason}; unpack it yourself if you trust it, and give the folder to --dataset."
    )
