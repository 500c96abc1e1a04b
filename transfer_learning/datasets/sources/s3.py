"""Mirrors the images of a folder in S3 or a compatible store; credentials and endpoint: see storage/object_store.py."""

import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transfer_learning.cli.formatting import size
from transfer_learning.datasets.sources.folder import reason_to_ignore
from transfer_learning.errors import UserError
from transfer_learning.storage import object_store
from transfer_learning.storage.files import read_json, write_json

logger = logging.getLogger(__name__)

SCHEME = object_store.S3
INDEX = ".s3.json"  # in the folder: ETag and size of each downloaded object
THREADS = 8  # small objects cost mostly latency


def fetch(place: str, folder: Path, also: str) -> tuple[Path, list[tuple[str, str]]]:
    """Downloads the images below ``s3://BUCKET/PREFIX`` to ``folder/BUCKET/PREFIX``.

    Objects with unchanged ETag and size are not downloaded again; files whose object is gone are deleted. Each file is
    written whole or not at all.

    Args:
        also: key after the prefix of the one other object to download.

    Returns:
        The folder; and the other objects with the reason why each was ignored.

    Raises:
        UserError: a wrong place or credentials, no network, or a full disk.
    """
    path = place.removeprefix(SCHEME).strip("/")
    root, address = _inside(folder, path, place), SCHEME + path
    try:
        found = object_store.files_below(address)
        objects = {name.removeprefix(f"{address}/"): state for name, state in found.items()}
        if not objects or address in objects:
            raise UserError(f"{place} is empty; correct the name.")
        paths = {name: _inside(root, name, place) for name in objects}
        reasons = {name: reason_to_ignore(path, root) for name, path in paths.items() if name != also}
        ignored = {name: reason for name, reason in reasons.items() if reason}
        _mirror(address, {name: objects[name] for name in objects if name not in ignored}, root, place)
        return root, [(name, f"not fetched from {place}: {reason}") for name, reason in ignored.items()]
    except OSError as error:  # of the disk
        raise UserError(
            f"{place} cannot be written to {root} ({error.strerror or error}); free space or pass another "
            "--data-dir, and run again: downloaded files are kept."
        ) from None
    except UserError as error:
        if not (root / INDEX).exists():
            raise
        problem = str(error).rstrip(".")
        raise UserError(f"{problem}; earlier downloads can be used with --dataset cv_studio:{root}.") from None


def _mirror(address: str, objects: dict[str, tuple[str, int]], root: Path, place: str) -> None:
    """Makes the files of `root` equal to `objects`: key behind the prefix -> (ETag, bytes)."""
    try:
        index = {name: tuple(entry) for name, entry in read_json(root / INDEX).items()}
    except (UserError, TypeError, AttributeError):  # missing or damaged: download everything
        index = {}
    for name in index.keys() - objects.keys():
        _inside(root, name, place).unlink(missing_ok=True)
    sizes = {name: (root / name).stat().st_size for name in objects if (root / name).is_file()}
    present = {
        name: entry for name, entry in objects.items() if index.get(name) == entry and sizes.get(name) == entry[1]
    }
    missing = [name for name in objects if name not in present]
    if missing:
        num_bytes, count = sum(objects[name][1] for name in missing), f"{len(missing):,} of {len(objects):,}"
        logger.info(f"Downloading {count} files from {place} ({size(num_bytes)}) to {root}.")

    def fetch_one(name: str) -> None:
        _write(object_store.contents(f"{address}/{name}", objects[name][1]), root / name)
        present[name] = objects[name]

    threads = ThreadPoolExecutor(THREADS)
    try:
        for _ in threads.map(fetch_one, missing):
            pass
    finally:
        threads.shutdown(cancel_futures=True)
        if present != index:
            write_json(root / INDEX, present)


def _write(content: Iterable[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # hidden, so that it is not read as an image
    try:
        with open(temporary, "wb") as file:
            file.writelines(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _inside(folder: Path, name: str, place: str) -> Path:
    """The file `name` below `folder`; raises UserError if it would lie elsewhere."""
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise UserError(
            f"{place} leads to {ascii(name)}, which is not below {folder}; expected s3://BUCKET/PREFIX and keys like "
            "x/1.jpg, so rename it."
        )
    return folder / name
