"""Archives of class folders (.zip, .tar, .tar.gz, ...), checked and unpacked once into the data folder.

All entries are checked before the first is written: a path out of the folder, a link, a device, two names that are
equal on some systems, or an implausible size refuses the whole archive. Even its list of entries is read with a limit,
since it could be made to fill the memory.
"""

import bz2
import gzip
import hashlib
import itertools
import logging
import lzma
import re
import shlex
import shutil
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from transfer_learning.cli.formatting import size
from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.sources import folder
from transfer_learning.errors import UserError

logger = logging.getLogger(__name__)

OPENERS: dict[str, Callable[..., Any]] = {
    ".tar": open,
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tbz2": bz2.open,
    ".txz": lzma.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
}
SUFFIXES = (".zip", *OPENERS)
MAX_ENTRIES = 500_000  # each takes memory while the archive is read
MAX_EXPANSION = 100  # times the archive; JPEGs and PNGs do not shrink, uncompressed drawings by some tens
ALWAYS_ALLOWED = 100e6  # unpacked bytes, whatever the expansion
MAX_LISTED_BYTES = 300 * MAX_ENTRIES  # of the list of entries of a .zip
MAX_HEADER_BYTES = 1 << 20  # before an entry of a .tar
MAX_PATH_LENGTH, MAX_PATH_DEPTH = 1000, 30  # in characters and folders
UTF8_FLAG = 0x800  # of an entry of a .zip
JOINERS = "\u200c\u200d"  # inside words of some languages, and inside emoji
BLOCK = 4096  # smallest number of bytes of a file on disk

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
    problem: str  # why it is refused, or ""
    open: Callable[[], Any]  # a binary file
    offset: int = 0  # of its bytes in a .tar


def is_archive(path: Path) -> bool:
    """Whether `path` is a file with the suffix of an archive."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def read(path: Path, data_dir: Path) -> Dataset:
    """Unpacks the archive and reads it with `folder.read`.

    Raises:
        UserError: as `unpacked`, or it has no class folders.
    """
    place = unpacked(path, data_dir)
    dataset = folder.read(place)
    inner = [file for file, _ in dataset.ignored if file.lower().endswith(SUFFIXES)]
    if inner and not dataset.examples:
        raise UserError(
            f"{path} contains no images, only the archive {inner[0]}, which is now in {place}; pass --dataset "
            f"{shlex.quote(str(place / inner[0]))}."
        )
    return replace(dataset, name=str(path))


def unpacked(path: Path, data_dir: Path) -> Path:
    """Unpacks the archive into a folder in ``data_dir/archives``, unless it is there; returns the folder.

    Raises:
        UserError: it is damaged, unsafe or encrypted, or does not fit on the disk.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    place = data_dir / "archives" / f"{path.name.split('.')[0][:100]}-{digest[:16]}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        logger.info(f"Unpacking {path} ({size(path.stat().st_size)}) into {place}.")
        with tempfile.TemporaryDirectory(prefix="unpacking-", dir=place.parent) as unfinished:
            _unpack(path, Path(unfinished) / "images")
            try:
                (Path(unfinished) / "images").rename(place)
            except OSError:
                if not place.is_dir():  # else another process was first
                    raise
    return place


def _unpack(path: Path, target: Path) -> None:
    """Reads the archive twice, to check and to write it, so that no list of all entries is in memory."""
    try:
        needed = sum((entry.num_bytes + BLOCK - 1) // BLOCK * BLOCK for entry in _checked(path))
        free = shutil.disk_usage(target.parent).free
        if needed > free:
            raise UserError(
                f"{path} unpacks to {size(needed)}, and {target.parent.parent} has {size(free)} free; free space, or "
                "pass another --data-dir."
            )
        target.mkdir()
        for entry in _checked(path):
            file = target / entry.name
            file.parent.mkdir(parents=True, exist_ok=True)
            with entry.open() as source, open(file, "xb") as copy:
                shutil.copyfileobj(source, copy, MAX_HEADER_BYTES)
    except DAMAGED as error:
        if getattr(error, "errno", None):  # an error of the system, not of the archive
            raise
        raise UserError(f"{path} cannot be unpacked ({error}); download it again, or unpack it yourself.") from None


class _Guarded:
    """A file that limits how much is read at once: `zipfile` and `tarfile` read lists of any length in one piece."""

    def __init__(self, path: Path | str, file: BinaryIO, limit: int):
        self._path, self._file, self._limit, self.last_read = path, file, limit, b""
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, num_bytes: int = -1) -> bytes:
        """Reads up to `num_bytes`, or the rest.

        Raises:
            UserError: that is more than the limit.
        """
        self.last_read = self._file.read(num_bytes if 0 <= num_bytes <= self._limit else self._limit + 1)
        if len(self.last_read) > self._limit:
            raise _refusal(self._path, f"a list of its files takes more than {size(self._limit)}")
        if self.last_read.count(b"PK\x01\x02") > MAX_ENTRIES:
            raise _refusal(self._path, f"it lists more than {MAX_ENTRIES:,} files")
        return self.last_read


@contextmanager
def entries(path: Path) -> Iterator[Iterator[Entry]]:
    """Iterates over the files of an archive, unchecked; each can be opened until the next one is read.

    Raises:
        UserError: a list in it would fill the memory.
        Exceptions of `DAMAGED`: it is damaged.
    """
    name = path.name.lower()
    if name.endswith(".zip"):
        with open(path, "rb") as file, zipfile.ZipFile(_Guarded(path, file, MAX_LISTED_BYTES)) as archive:
            yield (
                Entry(inside, info.file_size, _problem_in_zip(info), partial(archive.open, info))
                for info in archive.infolist()
                if not (inside := _slashed(_name_in_zip(info))).endswith("/")
            )
    else:
        opener = next(opener for suffix, opener in OPENERS.items() if name.endswith(suffix))
        with opener(path, "rb") as file:
            yield entries_of_tar(path, file)


def _name_in_zip(info: zipfile.ZipInfo) -> str:
    """The name of an entry; macOS writes UTF-8 without the flag that says so, which `zipfile` reads as code page 437."""
    if not info.flag_bits & UTF8_FLAG:
        with suppress(UnicodeError):
            return info.filename.encode("cp437").decode()
    return info.filename


def _slashed(name: str) -> str:
    """Some programs of Windows write backslashes between folders; what is no file name there leads nowhere else here."""
    return name.replace("\\", "/")


def entries_of_tar(path: Path | str, opened: BinaryIO) -> Iterator[Entry]:
    """As `entries`, of an opened .tar; `path` is for messages."""
    file = _Guarded(path, opened, MAX_HEADER_BYTES)
    with tarfile.open(fileobj=cast(BinaryIO, file), mode="r:") as archive:
        while info := archive.next():
            archive.members = []  # type: ignore[attr-defined]  # else it collects them all
            if not info.isdir():
                problem = "" if info.isreg() and not info.issparse() else "is a link or a device"
                read = partial(archive.extractfile, info)
                yield Entry(_slashed(info.name), info.size, problem, read, info.offset_data)
    if file.last_read.strip(b"\0"):  # the module takes a damaged header for the end
        raise tarfile.ReadError("its last entry is followed by other bytes")


def _problem_in_zip(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "is encrypted"
    kind = info.external_attr >> 28  # the Unix file type, if set
    return "is a link or a device" if kind not in (0, 8) else ""


def _checked(path: Path) -> Iterator[Entry]:
    """Iterates over the files of an archive.

    Raises:
        UserError: an entry is unsafe.
    """
    packed = path.stat().st_size
    limit, total = max(ALWAYS_ALLOWED, MAX_EXPANSION * packed), 0
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    with entries(path) as found:
        for number, entry in enumerate(found, 1):
            total += entry.num_bytes
            reason = entry.problem or _problem_of_name(entry.name, files, folders)
            if number > MAX_ENTRIES:
                reason = f"is number {number:,}, and at most {MAX_ENTRIES:,} files are unpacked"
            if total > limit:
                reason = f"makes more than {size(limit)} of an archive of {size(packed)}, which images never do"
            if reason:
                raise _refusal(path, f"its entry {ascii(entry.name[:200])} {reason}")
            yield entry


def _problem_of_name(name: str, files: dict[str, str], folders: dict[str, str]) -> str:
    """Why a file may not have this name; "" if it may, and then it is added to `files`, its folders to `folders`."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts:
        return "leads out of the folder"
    if re.match("[A-Za-z]:", name) or any(map(_is_unsafe, name)):
        return "is not a valid name on every system"
    if len(name) > MAX_PATH_LENGTH or len(parts) > MAX_PATH_DEPTH:
        return "has too long or deep a path"
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
        if folders.setdefault(place, written) != written:  # two classes here, one on other systems
            return f"lies in {written!r}, which is {folders[place]!r} on some systems"
    files[folded] = name
    return ""


def _is_unsafe(letter: str) -> bool:
    """Whether a character ends lines, controls a terminal or turns the direction of writing; spaces of any kind do not."""
    return letter not in JOINERS and unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _refusal(path: Path | str, reason: str) -> UserError:
    return UserError(
        f"{path} is not unpacked, because {reason}; if you trust it, unpack it yourself and pass the folder to "
        "--dataset."
    )
