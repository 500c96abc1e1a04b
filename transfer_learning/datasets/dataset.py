"""What a dataset is: examples, and the names of their classes.

Nothing is decoded yet: an example holds its file, or its pixels where the source has arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

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


def with_class_names(name: str, examples: Sequence[Example], ignored: Sequence[tuple[str, str]] = ()) -> Dataset:
    """A dataset whose classes are the labels of its examples, sorted."""
    return Dataset(name, tuple(sorted({example.label for example in examples})), tuple(examples), tuple(ignored))
