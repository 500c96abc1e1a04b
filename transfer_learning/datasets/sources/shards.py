"""Shards: .tar files as WebDataset writes them, or .parquet files, in a folder or an object store, where they stay.

Only an index of each shard is stored here: the place and hash of every image. So any image can be read alone, at any
time, and the order in which a run sees its images does not depend on how they are packed. The label of an image in a
.tar is in the file of the same name with the suffix .cls or .json, or is its folder. A .parquet file has a column of
images (bytes, or a structure with bytes as Hugging Face writes it) and one of labels.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from transfer_learning.cli.progress import count_progress
from transfer_learning.datasets.dataset import Dataset, Example, FilePart
from transfer_learning.datasets.decoding.formats import IMAGE_SUFFIXES, suffix_of
from transfer_learning.datasets.sources import archive
from transfer_learning.datasets.sources.folder import files_below, is_hidden
from transfer_learning.datasets.sources.table import LABEL_COLUMNS
from transfer_learning.datasets.split_names import split_and_rest, split_of
from transfer_learning.errors import UserError, needs_extra
from transfer_learning.storage import object_store
from transfer_learning.storage.files import read_json, write_text

VERSION = 1  # of the index
THREADS = 8  # shards that are read at once, while their index is made
MAX_LABEL_BYTES = 1 << 20  # of a .cls or .json file
PACKED = tuple(suffix for suffix in archive.SUFFIXES if suffix != ".tar")
# "images": [name, label or None, offset, length, SHA-256]; "ignored": [name, reason]; "classes"
Index = dict[str, list]


def read(place: str, data_dir: Path) -> Dataset:
    """Lists the images of all shards below a folder or an address, in the order of their names.

    A shard is read from beginning to end when it is first seen; its index is in ``data_dir/shards``.

    Raises:
        UserError: there are no shards, or one cannot be read or is packed so that no image can be read alone.
    """
    shards = _shards(place)
    progress, indexes = count_progress("Indexing shards"), []
    with ThreadPoolExecutor(THREADS) as threads:
        for index in threads.map(partial(_index, data_dir / "shards"), shards, shards.values()):
            indexes.append(index)
            progress(len(indexes), len(shards))
    root = place.rstrip("/") if place.rstrip("/") not in shards else place.rpartition("/")[0]
    names = [shard.removeprefix(root).lstrip("/") for shard in shards]
    splits = {name: _split(name) for name in names}
    has_splits = "train" in splits.values()
    examples, ignored = [], []
    for shard, name, index in zip(shards, names, indexes, strict=True):
        file = shard if object_store.is_address(shard) else Path(shard)
        ignored += [(f"{name}/{inner}", reason) for inner, reason in index["ignored"]]
        for inner, label, offset, length, sha256 in index["images"]:
            if label is None:
                ignored.append((f"{name}/{inner}", "has no label: no .cls or .json beside it, and no folder"))
            else:
                part = FilePart(file, offset, length, sha256)
                examples.append(Example(f"{name}/{inner}", label, splits[name] if has_splits else "", part))
    used = {example.label for example in examples}
    listed = [name for name in indexes[0]["classes"] if name in used]
    is_number = all(label.isdecimal() for label in used)
    others = sorted(used - set(listed), key=lambda label: (int(label) if is_number else 0, label))
    return Dataset(f"shards:{place}", (*listed, *others), tuple(examples), tuple(ignored))


def _shards(place: str) -> dict[str, str]:
    """Shard -> its state, which changes when its content does."""
    if object_store.is_address(place):
        found = {name: " ".join(map(str, state)) for name, state in object_store.files_below(place).items()}
    elif Path(place).exists():
        files = files_below(Path(place)) if Path(place).is_dir() else [Path(place)]
        states = {file: file.stat() for file in files if not is_hidden(file.name)}
        found = {str(file): f"{state.st_size} {state.st_mtime_ns}" for file, state in states.items()}
    else:
        found = {}
    shards = {name: state for name, state in found.items() if name.lower().endswith((".tar", ".parquet"))}
    if not shards:
        packed = [name for name in found if name.lower().endswith(PACKED)]
        but = f", but {packed[0]}, in which no image can be read alone: unpack it to .tar" if packed else ""
        raise UserError(f"shards:{place} holds no .tar or .parquet file{but}; give a folder or s3://BUCKET/FOLDER.")
    return shards


def _split(shard: str) -> str:
    """The split that a shard's folder or name means: ``train/0001.tar``, ``imagenet-val-0001.tar``."""
    path = PurePosixPath(shard)
    return next(filter(None, map(split_of, path.parts[:-1])), split_and_rest(path.stem)[0])


def _index(folder: Path, shard: str, state: str) -> Index:
    """The index of one shard, from the folder or made anew."""
    key = hashlib.sha256(f"{VERSION} {shard} {state}".encode()).hexdigest()[:32]
    path = folder / f"{PurePosixPath(shard).stem[:80]}-{key}.json"
    with suppress(UserError):  # missing or damaged
        return read_json(path, images=list, ignored=list, classes=list)
    index: Index = {"images": [], "ignored": [], "classes": []}
    add = _add_tar if shard.lower().endswith(".tar") else _add_parquet
    try:
        with object_store.opened(shard) if object_store.is_address(shard) else open(shard, "rb") as file:
            add(shard, file, index)
    except archive.DAMAGED as error:
        raise UserError(
            f"{shard} cannot be read ({error}); start again if the network has failed, or else write the shard again."
        ) from None
    write_text(path, json.dumps(index))
    return index


def _add_tar(shard: str, file: BinaryIO, index: Index) -> None:
    labels: dict[str, str] = {}  # by name without suffixes
    for entry in archive.entries_of_tar(shard, file):
        name, suffix = PurePosixPath(entry.name), suffix_of(entry.name)
        if entry.problem:
            index["ignored"].append([entry.name, entry.problem])
        elif suffix in IMAGE_SUFFIXES:
            with entry.open() as image:
                digest = hashlib.file_digest(image, "sha256").hexdigest()
            index["images"].append([entry.name, None, entry.offset, entry.num_bytes, digest])
        elif suffix in (".cls", ".json") and entry.num_bytes <= MAX_LABEL_BYTES:
            if label := _label(suffix, entry.open().read()):
                labels[_key(name)] = label
        else:
            index["ignored"].append([entry.name, "neither an image nor a label"])
    for image in index["images"]:
        folders = [part for part in PurePosixPath(image[0]).parent.parts if part != "." and not split_of(part)]
        image[1] = labels.get(_key(PurePosixPath(image[0])), folders[-1] if folders else None)


def _key(name: PurePosixPath) -> str:
    """What the files of one example share: the name up to the first point of its last part."""
    return str(name.parent / name.name.partition(".")[0])


def _label(suffix: str, content: bytes) -> str:
    """The label in a .cls file, or in the first column of `LABEL_COLUMNS` in a .json file; "" for none."""
    text = content.decode("utf-8", "replace").strip()
    if suffix == ".cls":
        return text
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    values = {str(name).lower(): value for name, value in values.items()} if isinstance(values, dict) else {}
    found = next((values[name] for name in LABEL_COLUMNS if name in values), "")
    return str(found) if isinstance(found, str | int) else ""


def _add_parquet(shard: str, file: BinaryIO, index: Index) -> None:
    with needs_extra("parquet"):
        import pyarrow
        from pyarrow import parquet
    try:
        table = parquet.ParquetFile(file)
        schema = table.schema_arrow
    except pyarrow.ArrowException as error:
        raise ValueError(error) from None
    labels = [name for name in schema.names if name.lower() in LABEL_COLUMNS]
    images = [field.name for field in schema if _is_image(field.type, pyarrow.types)]
    if not labels or len(images) != 1:
        raise UserError(
            f"{shard} has the columns {', '.join(schema.names)}; one of images (bytes) and one named label were expected."
        )
    image, label = images[0], min(labels, key=lambda name: LABEL_COLUMNS.index(name.lower()))
    with suppress(KeyError, TypeError, ValueError):  # not of Hugging Face, or no ClassLabel
        index["classes"] = list(json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"])
    row = 0
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        chunks = [group.column(place) for place in range(group.num_columns)]
        chunk = next(one for one in chunks if one.path_in_schema in (image, f"{image}.bytes"))
        values = table.read_row_group(number, columns=[image, label]).to_pydict()
        contents = [value["bytes"] if isinstance(value, dict) else value for value in values[image]]
        if chunk.compression != "UNCOMPRESSED":
            places: Iterable[int | None] = [None]
        else:
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            file.seek(start)
            places = _places(file.read(chunk.total_compressed_size), contents)
        for content, value, place in zip(contents, values[label], places, strict=False):
            if place is None:
                raise UserError(
                    f"{shard} has compressed images, of which none can be read alone; write it again by to_parquet of "
                    f"datasets 5, or by pyarrow with compression={{'{chunk.path_in_schema}': 'none'}}, use_dictionary=False."
                )
            name = f"{row:07d}"
            row += 1
            if not content:
                index["ignored"].append([name, "a row without an image"])
                continue
            if type(value) is int and index["classes"]:
                value = index["classes"][value] if 0 <= value < len(index["classes"]) else None
            digest = hashlib.sha256(content).hexdigest()
            index["images"].append([name, None if value is None else str(value), start + place, len(content), digest])


def _is_image(kind: Any, types: Any) -> bool:
    if types.is_struct(kind):
        return any(kind.field(at).name == "bytes" for at in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _places(chunk: bytes, contents: list[bytes | None]) -> Iterator[int | None]:
    """Where each value lies in a column chunk without compression, by its length and bytes; None if it does not."""
    end = 0
    for content in contents:
        if not content:
            yield 0
            continue
        stored = len(content).to_bytes(4, "little") + content
        while (end := chunk.find(stored[:64], end)) >= 0 and not chunk.startswith(stored, end):
            end += 1
        if end < 0:
            yield None
            return
        yield end + 4
        end += len(stored)
