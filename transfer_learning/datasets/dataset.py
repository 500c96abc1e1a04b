"""A dataset: labelled examples and the names of their classes; nothing is decoded yet."""

import csv
import errno
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeGuard

import numpy as np

from transfer_learning.errors import UserError, did_you_mean
from transfer_learning.storage import object_store

SPLITS = ("train", "val", "test")
UNSEEN = "unseen"  # the split of images of classes that are not trained

# Kinds of problems for which an image is skipped; the audit explains them, see `audit.kinds.KINDS`.
EMPTY_FILE = "empty file"
TRUNCATED_FILE = "truncated file"
NOT_AN_IMAGE = "not an image"
TOO_MANY_PIXELS = "too many pixels"
UNREADABLE_FILE = "unreadable file"
MISSING_EXTRA = "missing package"
DROPPED = "dropped by corrections"
DUPLICATE_IN_OTHER_SPLIT = "duplicate in another split"
GROUP_IN_OTHER_SPLIT = "group in another split"


class FilePart(NamedTuple):
    """An image file inside a larger file, such as an Arrow table of encoded images or a shard in an object store."""

    file: Path | str  # str: an address such as s3://bucket/train-0000.tar
    offset: int  # in bytes
    length: int
    sha256: str = ""  # of the bytes, where they have been read before; "" if unknown

    def read_bytes(self) -> bytes:
        """Reads the bytes without a memory map, whose pages would count as memory of this process; OSError if the file
        is missing or ends too early; UserError if an object store does not give them.
        """
        if isinstance(self.file, str):
            return object_store.read_range(self.file, self.offset, self.length)
        with open(self.file, "rb", buffering=0) as file:
            content = os.pread(file.fileno(), self.length, self.offset)
        if len(content) < self.length:
            raise OSError(errno.EIO, f"{self.file} ends before byte {self.offset + self.length:,}")
        return content


def is_remote(source: object) -> TypeGuard[FilePart]:
    """Whether an image is in an object store."""
    return isinstance(source, FilePart) and isinstance(source.file, str)


# An image file, a part of a file, or uint8 pixels (height, width) or (height, width, 3).
Source = Path | FilePart | np.ndarray


class Example(NamedTuple):
    """One labelled image."""

    id: str  # unique in its dataset, the same on every machine: the path below the dataset's folder
    label: str
    split: str  # "train", "val", "test", UNSEEN, or "" where the dataset names none
    source: Source
    group: str = ""  # examples of one group are drawn into one split; "": no group


class Note(NamedTuple):
    """A sentence about how a dataset was read, for the log."""

    level: int  # logging.INFO or logging.WARNING
    text: str


@dataclass(frozen=True)
class Dataset:
    """Examples, class names in the order of the model's outputs, and the ignored files with reasons."""

    name: str
    class_names: tuple[str, ...]
    examples: tuple[Example, ...]
    ignored: tuple[tuple[str, str], ...] = ()  # (file, reason)
    folder: Path | None = None  # every file below it is an example or ignored
    notes: tuple[Note, ...] = ()


def with_class_names(
    name: str,
    examples: Sequence[Example],
    ignored: Sequence[tuple[str, str]] = (),
    folder: Path | None = None,
    notes: Sequence[Note] = (),
) -> Dataset:
    """A dataset whose class names are the sorted labels of its examples."""
    class_names = tuple(sorted({example.label for example in examples}))
    return Dataset(name, class_names, tuple(examples), tuple(ignored), folder, tuple(notes))


def left_out(ignored: Sequence[tuple[str, str]]) -> str:
    """A sentence with the most frequent reasons why files or rows are ignored; "" for none."""
    counts = Counter(reason for _, reason in ignored).most_common(3)
    return f" Left out are {'; '.join(f'{count:,}: {reason}' for reason, count in counts)}." if counts else ""


def check_class_names(dataset: Dataset, expected: tuple[str, ...], of: str, advice: str) -> None:
    """Raises UserError for a folder that does not hold the classes of the published dataset `of`."""
    if dataset.class_names != expected:
        raise UserError(
            f"{dataset.name} has the classes {', '.join(dataset.class_names) or 'none'}; those of {of} were expected "
            f"({', '.join(expected)}), so {advice}."
        )


def as_names(names: Sequence[str]) -> str:
    """Class names as `split_off_unseen` reads them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(names)
    return text.getvalue()


def split_off_unseen(dataset: Dataset, names: str) -> Dataset:
    """Moves the images of some classes to the split UNSEEN and takes these classes out of `class_names`.

    Args:
        names: class names separated by commas, one with a comma in double quotes; or one class name; "" for none.

    Raises:
        UserError: a class is unknown, or fewer than two are left.
    """
    try:
        cells = next(csv.reader([names], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise UserError(f"--unseen-classes {names} cannot be read ({error}); close each double quote.") from None
    is_one = names in dataset.class_names
    unseen_classes = {names} if is_one else {name.strip() for name in cells if name.strip()}
    if not unseen_classes:
        return dataset
    for name in sorted(unseen_classes - set(dataset.class_names)):
        raise UserError(
            f"--unseen-classes {names}: {dataset.name} has no class {name}.{did_you_mean(name, dataset.class_names)}"
        )
    left = tuple(name for name in dataset.class_names if name not in unseen_classes)
    if len(left) < 2:
        raise UserError(
            f"--unseen-classes {names} leaves {len(left)} of the {len(dataset.class_names)} classes of "
            f"{dataset.name}; a classifier needs at least two, so name fewer."
        )
    splits = dict.fromkeys(unseen_classes, UNSEEN)
    examples = tuple(one._replace(split=splits.get(one.label, one.split)) for one in dataset.examples)
    return replace(dataset, class_names=left, examples=examples)
