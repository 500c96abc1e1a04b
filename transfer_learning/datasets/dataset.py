"""What a dataset is: examples, and the names of their classes.

Nothing is decoded yet: an example holds its file, or where in a larger file its bytes lie, or its pixels where the source
has arrays.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transfer_learning.errors import UserError, did_you_mean

SPLITS = ("train", "val", "test")
UNSEEN = "unseen"  # the split of images whose classes are not learnt


class FilePart(NamedTuple):
    """An image file that lies inside of a larger file, such as a table of encoded images; nothing of it is in memory."""

    file: Path
    offset: int  # in bytes
    length: int

    def read_bytes(self) -> bytes:
        """Reads it by a plain read, for pages of a memory map would count as memory of this process.

        Raises:
            OSError: the file is gone, or ends too early.
        """
        with open(self.file, "rb", buffering=0) as file:
            content = os.pread(file.fileno(), self.length, self.offset)
        if len(content) < self.length:
            raise OSError(errno.EIO, f"{self.file} ends before byte {self.offset + self.length:,}")
        return content


# an image file, a part of a file, or uint8 pixels (height, width) or (height, width, 3)
Source = Path | FilePart | np.ndarray


class Example(NamedTuple):
    """One labelled image."""

    id: str  # unique in its dataset, the same on every machine: the path below the dataset's folder
    label: str
    split: str  # "train", "val", "test", UNSEEN, or "" where the dataset leaves it to us
    source: Source
    group: str = ""  # examples of one group never straddle two splits that are drawn; "": it is alone


@dataclass(frozen=True)
class Dataset:
    """Examples, the names of their classes in the order of the model's outputs, and what was left out and why."""

    name: str
    class_names: tuple[str, ...]
    examples: tuple[Example, ...]
    ignored: tuple[tuple[str, str], ...] = ()  # (file, reason)
    folder: Path | None = None  # where every file below it is an example or ignored


def with_class_names(
    name: str, examples: Sequence[Example], ignored: Sequence[tuple[str, str]] = (), folder: Path | None = None
) -> Dataset:
    """A dataset whose classes are the labels of its examples, sorted."""
    return Dataset(
        name, tuple(sorted({example.label for example in examples})), tuple(examples), tuple(ignored), folder
    )


def split_off_unseen(dataset: Dataset, names: str) -> Dataset:
    """The dataset without some of its classes, whose images go into the split UNSEEN, whatever split they had.

    Args:
        names: of the classes, with commas between them; "": none.

    Raises:
        UserError: a class is unknown, or fewer than two are left.
    """
    unseen_classes = {name.strip() for name in names.split(",") if name.strip()}
    if not unseen_classes:
        return dataset
    for name in sorted(unseen_classes - set(dataset.class_names)):
        raise UserError(
            f"--unseen-classes {names}: {dataset.name} has no class {name}.{did_you_mean(name, dataset.class_names)}"
        )
    left = tuple(name for name in dataset.class_names if name not in unseen_classes)
    if len(left) < 2:
        raise UserError(
            f"--unseen-classes {names} leaves {len(left)} of the {len(dataset.class_names)} classes of {dataset.name}; a "
            "classifier needs at least two, so hold out fewer."
        )
    examples = (
        example._replace(split=UNSEEN) if example.label in unseen_classes else example for example in dataset.examples
    )
    return replace(dataset, class_names=left, examples=tuple(examples))
