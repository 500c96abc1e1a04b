"""What a dataset is, and the table of the known ones.

A member of the family is a module with one function, ``load(data_dir: Path) -> Dataset``; adding one is a file here and
a row in `DATASETS`. Nothing is decoded yet: an example holds its file, or its pixels where the source has arrays.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transfer_learning.errors import UserError, did_you_mean

DATASETS = {
    "pharma": "transfer_learning.datasets.pharma",
    "drawn_pills": "transfer_learning.datasets.drawn_pills",
    "digits": "transfer_learning.datasets.digits",
    "fashion_mnist": "transfer_learning.datasets.fashion_mnist",
}

SPLITS = ("train", "val", "test")


class Example(NamedTuple):
    """One labelled image."""

    id: str  # unique in its dataset, the same on every machine: the path below the dataset's folder
    label: str
    split: str  # "train", "val", "test", or "" where the dataset leaves it to us
    content: Path | np.ndarray  # an image file, or uint8 pixels (height, width) or (height, width, 3)


@dataclass(frozen=True)
class Dataset:
    """Examples, the names of their classes in the order of the model's outputs, and what was left out and why."""

    name: str
    class_names: tuple[str, ...]
    examples: tuple[Example, ...]
    ignored: tuple[tuple[str, str], ...] = ()  # (file, reason)


def load_dataset(name: str, data_dir: str | Path) -> Dataset:
    """Loads a known dataset by its name, or a folder of class folders, or a table ``path,label[,split]`` by its path.

    Raises:
        UserError: no such name, folder or table; or it holds fewer than two classes.
    """
    if name in DATASETS:
        dataset = importlib.import_module(DATASETS[name]).load(Path(data_dir))
    elif Path(name).is_dir():
        from transfer_learning.datasets import folder

        dataset = folder.read(Path(name))
    elif Path(name).is_file():
        from transfer_learning.datasets import csv_file

        dataset = csv_file.read(Path(name))
    else:
        raise UserError(
            f"--dataset {name} is no known dataset, no folder and no table.{did_you_mean(name, DATASETS)} "
            "A folder needs a folder of images for each class; a table needs the columns path,label."
        )
    check(dataset)
    return dataset


def check(dataset: Dataset) -> None:
    """Raises UserError for a dataset that no classifier can be made of."""
    if not dataset.examples:
        raise UserError(
            f"{dataset.name} holds no images; a folder of images for each class was expected, as in cats/1.jpg, dogs/2.jpg."
        )
    for example in dataset.examples:
        if not _is_text(example.id + example.label):
            raise UserError(
                f"{dataset.name} holds the image {ascii(example.id)}, whose name is not written in UTF-8; tables and "
                "the report could not name it, so rename it."
            )
    if len(dataset.class_names) < 2:
        raise UserError(
            f"{dataset.name} has only one class, {dataset.class_names[0]}; a classifier needs at least two, "
            "so add a folder of images of something else."
        )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of a file name that Python could only carry along
        return False
    return True


def with_class_names(name: str, examples: Sequence[Example], ignored: Sequence[tuple[str, str]] = ()) -> Dataset:
    """A dataset whose classes are the labels of its examples, sorted."""
    return Dataset(name, tuple(sorted({example.label for example in examples})), tuple(examples), tuple(ignored))
