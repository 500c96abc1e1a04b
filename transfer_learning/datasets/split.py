"""Which split an example is drawn into, by the hash of its group or content.

The place of a hash between 0 and 1 decides: below the test fraction for test, then validation, above both for training.
It depends on this image alone, so adding, removing or renaming images moves no other image.

A class of few images could miss a split by chance. So the image with the highest place of a class trains if no other
one does, and in a class of fewer than `SMALL` images the one with the lowest place tests if no other one does. Adding
an image moves at most one other image of its class: the one that was the highest or the lowest. (No rule that also
gives each class a validation image keeps this.)
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

SMALL = 10  # images or groups of a class; one of this size misses its test images in a fifth of all draws


def draw_splits(
    groups: Iterable[str],
    digests: Iterable[str],
    labels: Iterable[str],
    test: float,
    val: float,
    rank_small: bool = True,
) -> list[str]:
    """Returns the split of each example.

    Args:
        groups: the group of each example, "" for none; examples of one group share a split.
        digests: SHA-256 of each example, in hexadecimal; equal ones share a split.
        labels: the class of each example.
        test: fraction of the examples (or groups) for test.
        val: fraction of the rest for val.
        rank_small: whether classes of few images are treated as described above.
    """
    groups = list(groups)
    hash_of_group = {group: hashlib.sha256(f"group {group}".encode()).hexdigest() for group in set(groups)}
    keys = [hash_of_group[group] if group else digest for group, digest in zip(groups, digests, strict=True)]
    split_of = {key: _split(key, test, test + (1 - test) * val) for key in set(keys)}
    if rank_small:
        split_of |= _of_small_classes(keys, list(labels), split_of, test)
    return [split_of[key] for key in keys]


def _split(key: str, test: float, val: float) -> str:
    place = int(key[:12], 16) / 16**12  # uniform in [0, 1)
    return "test" if place < test else "val" if place < val else "train"


def _of_small_classes(
    keys: Sequence[str], labels: Sequence[str], split_of: dict[str, str], test: float
) -> dict[str, str]:
    """The splits that differ from `split_of`; a training image comes before a test image."""
    by_class: defaultdict[str, set[str]] = defaultdict(set)
    for key, label in zip(keys, labels, strict=True):
        by_class[label].add(key)
    tested = {
        min(of_class)
        for of_class in by_class.values()
        if test > 0 and 1 < len(of_class) < SMALL and all(split_of[key] != "test" for key in of_class)
    }
    trained = {
        max(of_class)
        for of_class in by_class.values()
        if all(split_of[key] != "train" or key in tested for key in of_class)
    }
    return dict.fromkeys(tested, "test") | dict.fromkeys(trained, "train")
