"""Counts and image sizes of a dataset, from file headers alone; the automatic recipe is chosen by them."""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from transfer_learning.datasets.dataset import Dataset, Source
from transfer_learning.datasets.decoding.decode import short_side

NUM_HEADERS = 200  # enough for a median


class Survey(NamedTuple):
    """Counts of a dataset, and the median of the shorter sides of its images in pixels."""

    num_images: int  # without the dataset's own val and test splits
    num_classes: int
    smallest_class: int
    largest_class: int
    short_side: int


def survey(dataset: Dataset) -> Survey:
    """Counts all examples and reads the headers of up to 200 of them, evenly spread; skips unreadable ones."""
    training = [example for example in dataset.examples if example.split in ("", "train")]
    counts = Counter(example.label for example in training)
    step = max(1, math.ceil(len(dataset.examples) / NUM_HEADERS))
    sides = [side for example in dataset.examples[::step] if (side := _short_side(example.source))]
    return Survey(
        num_images=len(training),
        num_classes=len(dataset.class_names),
        smallest_class=min((counts[name] for name in dataset.class_names), default=0),
        largest_class=max(counts.values(), default=0),
        short_side=int(np.median(sides)) if sides else 0,
    )


def _short_side(source: Source) -> int:
    if isinstance(source, np.ndarray):
        return min(source.shape[:2])
    try:
        return short_side(source)
    except Exception:  # as in `decode`, which reports the problem later
        return 0
