"""An archive of class folders (.zip, .tar, .tar.gz ...), unpacked once into the data folder, if nothing in it is hostile.

All entries are checked before the first is written: a path that leads out of the folder, a link, a device, two names
that some systems take for one, or sizes that no archive of images has, refuse the whole archive.
"""

import shutil
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from transfer_learning.datasets import folder
from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.decode import content_hash
from transfer_learning.errors import UserError
from transfer_learning.units import size

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MOST_ENTRIES = 2_000_000  # ImageNet-1K has 1.4 million
MOST_EXPANSION = 100  # times the archive; JPEGs and PNGs do not shrink, uncompressed drawings shrink by some tens
ALWAYS_ALLOWED = 100e6  # bytes


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
    place = data_dir / "archives" / f"{path.name.split('.')[0]}-{content_hash(path)[:12]}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="unpacking-", dir=place.parent) as unfinished:
            _unpack(path, Path(unfinished) / "images")
            try:
                (Path(unfinished) / "images").rename(place)
            except OSError:
                if not place.is_dir():  # another process was first
                    raise
    dataset = folder.read(place)
    return Dataset(str(path), dataset.class_names, dataset.examples, dataset.ignored)


def _unpack(path: Path, target: Path) -> None:
    try:
        with _entries(path) as entries:
            files = list(_checked(path, entries))
            needed, free = sum(entry.num_bytes for entry in files), shutil.disk_usage(target.parent).free
            if needed > free:
                raise UserError(
                    f"{path} unpacks to {size(needed)}, and {target.parent.parent} has {size(free)} left; free some space, or "
                    "name another --data-dir."
                )
            target.mkdir()
            for entry in files:
                file = target / entry.name
                file.parent.mkdir(parents=True, exist_ok=True)
                with entry.open() as source, open(file, "xb") as copy:
                    shutil.copyfileobj(source, copy)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} cannot be unpacked ({error}); fetch it again, or unpack it yourself.") from None


@contextmanager
def _entries(path: Path) -> Iterator[Iterator[Entry]]:
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            yield (
                Entry(info.filename, info.file_size, _problem_in_zip(info), lambda info=info: archive.open(info))
                for info in archive.infolist()
                if not info.is_dir()
            )
    else:
        with tarfile.open(path) as archive:
            yield (
                Entry(
                    info.name, info.size, "" if info.isreg() else "is a link or a device",
                    lambda info=info: archive.extractfile(info),
                )
                for info in archive
                if not info.isdir()
            )  # fmt: skip


def _problem_in_zip(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "is encrypted"
    kind = info.external_attr >> 28  # of Unix, where the archive comes from there
    return "is a link or a device" if kind not in (0, 8) else ""


def _checked(path: Path, entries: Iterator[Entry]) -> Iterator[Entry]:
    """The entries, if all of them may be unpacked.

    Raises:
        UserError: the first that may not, and why.
    """
    most = max(ALWAYS_ALLOWED, MOST_EXPANSION * path.stat().st_size)
    seen: dict[str, str] = {}
    total = 0
    for number, entry in enumerate(entries, 1):
        parts = PurePosixPath(entry.name).parts
        folded = unicodedata.normalize("NFC", "/".join(parts)).casefold()
        total += entry.num_bytes
        for holds, reason in (
            (not entry.problem, entry.problem),
            (parts and not entry.name.startswith("/") and ".." not in parts, "leads out of the folder"),
            ("\\" not in entry.name and ":" not in entry.name and entry.name.isprintable(), "is no name that every system takes"),
            (all(len(part.encode(errors="replace")) <= 255 for part in parts), "is longer than a file name may be"),
            (folded not in seen, f"is the same as {seen.get(folded)!r} on some systems"),
            (total <= most, f"makes more than {size(most)} of an archive of {size(path.stat().st_size)}, as no images do"),
            (number <= MOST_ENTRIES, f"is entry {number:,}, and no more than {MOST_ENTRIES:,} are unpacked"),
        ):
            if not holds:
                raise UserError(
                    f"{path} is not unpacked, because its entry {ascii(entry.name[:200])} {reason}; unpack it yourself if you "
                    "trust it, and give the folder to --dataset."
                )
        seen[folded] = entry.name
        yield entry
