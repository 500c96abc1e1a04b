"""The manifest: one row an example, with its split or the reason why it has none.

Columns: id, file ("" for arrays), sha256, label, split ("" where skipped), width, height (pixels), group ("" where none is
declared), problem.

An image's split depends on that image alone: on what the dataset names, else on its group, else on its bytes. So adding,
removing or renaming images moves no other one from a split to another, however few there are. What this costs: a class of
a few images may have none in a split, which is said, and is an error where it is the training split.

Of equal images, and of images of one group, that would lie in two splits, those in the lower one are skipped: the test
keeps its own first, then the validation. So an image may lose its place to one that is added, but never changes it.
"""

import hashlib
import json
import logging
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from transfer_learning.datasets.dataset import SPLITS, UNSEEN, Dataset
from transfer_learning.errors import UserError

logger = logging.getLogger(__name__)

pd.set_option("mode.string_storage", "python")  # PyArrow's texts, where it is installed, take nothing but UTF-8

COLUMNS = ("id", "file", "sha256", "label", "split", "width", "height", "group", "problem")
RANKS = {
    split: rank for rank, split in enumerate(SPLITS)
}  # of two that may not be parted, the one in the higher split stays
LEAK_REASONS = {  # column: what is said of an image with the same value in a lower split
    "sha256": "the same file is",
    "pixels": "the same picture, in another file, is",
    "group": "others of its group are",
    "own_group": "others of its group are",
}
UNSEEN_IN_FINGERPRINT = "held_out"  # the first versions called the split so, and their runs must be found again
NAMED = 4  # ids or classes, in a sentence


def make_manifest(
    dataset: Dataset,
    facts: pd.DataFrame,
    val_fraction: float,
    test_fraction: float,
    skip_unreadable: bool = False,
    group_by: str = "",
    dropped: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Gives every readable example its split.

    The splits that the dataset names are kept. What it leaves open is drawn, and a split that it does not name at all is
    taken from its training images: an image whose group's name (or, without a group, whose content) hashes below a
    fraction belongs to the test, and so on.

    Args:
        facts: a row an example: sha256, width, height, problem and pixels, the hash of the decoded ones.
        val_fraction: share of the training images (or groups) that becomes `val`, where the dataset names no `val`.
        test_fraction: share of the images (or groups) that becomes `test`, where the dataset names no `test`.
        group_by: regular expression; what its first group, or else the whole of it, matches in an id names the group
            of the image. "" or no match: its group is the dataset's own, and where that has none, it stands alone.
        dropped: the reason by the id of each image that is not to be used.

    Raises:
        UserError: an image is unreadable (and `skip_unreadable` false), or `group_by` matches no id.
    """
    manifest = pd.DataFrame(
        {
            "id": [example.id for example in dataset.examples],
            "file": [str(example.source) if isinstance(example.source, Path) else "" for example in dataset.examples],
            "label": [example.label for example in dataset.examples],
            "split": [example.split for example in dataset.examples],
            "own_group": [example.group for example in dataset.examples],
        }
    )
    manifest["group"] = groups(manifest["id"].tolist(), group_by)
    manifest["group"] = manifest["group"].where(manifest["group"] != "", manifest["own_group"])
    manifest = pd.concat([manifest, facts.reset_index(drop=True)], axis=1)
    _set_aside_dropped(manifest, dropped or {})
    _set_aside_unreadable(manifest, skip_unreadable)
    named = {example.split for example in dataset.examples}
    fractions = {"test": 0.0 if "test" in named else test_fraction, "val": 0.0 if "val" in named else val_fraction}
    _draw_splits(manifest, fractions)
    for split, images in (("test", "its images"), ("val", "the training images")):
        if fractions[split]:
            logger.info(
                f"The dataset names no {split} split: about {fractions[split]:.0%} of {images}, chosen by their "
                f"{'group' if group_by else 'content'}, become it."
            )
    _drop_cross_split_duplicates(manifest)
    _say_two_labels(manifest)
    _say_empty(manifest, dataset.class_names, named | {split for split in fractions if fractions[split]})
    return manifest[list(COLUMNS)]


def check_classes(manifest: pd.DataFrame, class_names: tuple[str, ...]) -> None:
    """Raises UserError unless every class has an image to train on."""
    trained = set(manifest.loc[manifest["split"] == "train", "label"])
    if missing := [name for name in class_names if name not in trained]:
        rows = manifest[manifest["label"] == missing[0]]
        counts = rows["split"].replace("", "skipped").value_counts()
        where = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
        others = len(missing) - 1
        more = f", nor has {'another class' if others == 1 else f'any of {others:,} others'}" if others else ""
        raise UserError(
            f"The class {missing[0]} has no training image (its images: {where}){more}; add some, give the splits in a "
            f"table path,label,split, or leave the class out by --unseen-classes {shlex.quote(missing[0])}."
        )


def fingerprint(manifest: pd.DataFrame, class_names: Sequence[str]) -> str:
    """Returns a SHA-256 in hexadecimal that changes with any id, content, label or split, and with the order of classes.

    A dataset that is written anew may list the same classes in another order; the outputs of a network would then be taken
    for each other's.
    """
    columns = manifest[["id", "sha256", "label", "split"]].replace({"split": {UNSEEN: UNSEEN_IN_FINGERPRINT}})
    rows = columns.to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(f"{json.dumps(list(class_names))}\n{rows}".encode()).hexdigest()


def groups(ids: list[str], group_by: str) -> list[str]:
    """Returns the group of each id, "" where it has none; see `make_manifest`.

    Raises:
        UserError: `group_by` matches none of them.
    """
    if not group_by:
        return [""] * len(ids)
    matches = [re.search(group_by, id) for id in ids]
    names = ["" if match is None else match[1 if match.re.groups else 0] or match[0] for match in matches]
    num_alone = names.count("")
    if num_alone == len(ids):
        raise UserError(
            f"--group-by {group_by} matches none of the {len(ids):,} ids, such as {', '.join(ids[:2])}; give a regular "
            "expression that finds the name of the object in them."
        )
    sizes = pd.Series(names)[lambda name: name != ""].value_counts()
    alone = f"; {num_alone:,} that it does not match stand alone, such as {ids[names.index('')]}" if num_alone else ""
    logger.info(
        f"--group-by puts {len(ids) - num_alone:,} images into {len(sizes):,} groups of {sizes.min():,} to "
        f"{sizes.max():,}, the largest of them {sizes.index[0]}{alone}."
    )
    return names


def _set_aside_dropped(manifest: pd.DataFrame, dropped: Mapping[str, str]) -> None:
    reasons = manifest["id"].map(dropped)
    manifest["problem"] = manifest["problem"].where(reasons.isna(), reasons)
    manifest.loc[reasons.notna(), "split"] = ""
    manifest["is_dropped"] = reasons.notna()


def _set_aside_unreadable(manifest: pd.DataFrame, skip_unreadable: bool) -> None:
    bad = manifest[(manifest["problem"] != "") & ~manifest["is_dropped"]]
    if bad.empty:
        return
    named = "; ".join(f"{row.file or row.id}: {row.problem}" for row in bad.head(3).itertuples())
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    images = "1 image" if len(bad) == 1 else f"{len(bad)} images"
    if not skip_unreadable:
        raise UserError(
            f"{images} of {len(manifest)} cannot be read ({named}{more}); mend or remove what is named, or go on "
            "without it by --skip-unreadable."
        )
    logger.info(f"Skipped {images} of {len(manifest)} that cannot be read ({named}{more}).")
    manifest.loc[bad.index, "split"] = ""


def _draw_splits(manifest: pd.DataFrame, fractions: dict[str, float]) -> None:
    """Fills `split` in place for the rows that the dataset left to us, and takes val and test from its train."""
    pool = manifest[(manifest["problem"] == "") & manifest["split"].isin(("", "train"))]
    test = fractions["test"]
    val = test + (1 - test) * fractions["val"]
    split_of = {}
    for group, digest in set(zip(pool["group"], pool["sha256"], strict=True)):
        key = hashlib.sha256(f"group {group}".encode()).hexdigest() if group else digest
        place = int(key[:12], 16) / 16**12  # uniform in [0, 1)
        split_of[group, digest] = "test" if place < test else "val" if place < val else "train"
    manifest.loc[pool.index, "split"] = [split_of[key] for key in zip(pool["group"], pool["sha256"], strict=True)]


def _drop_cross_split_duplicates(manifest: pd.DataFrame) -> None:
    """A training image that is also a test image would make the test say nothing: the test keeps it.

    Whether an image is skipped hangs on its own split and that of those like it, and not on whether these are skipped.
    """
    used = manifest[(manifest["problem"] == "") & (manifest["split"] != UNSEEN)]  # which no number is measured on
    ranks = used["split"].map(RANKS).tolist()
    reasons: dict[int, str] = {}
    for column, is_parted in LEAK_REASONS.items():
        highest: dict[str, int] = {}
        for key, rank in zip(used[column], ranks, strict=True):
            highest[key] = max(rank, highest.get(key, 0))
        for row, key, rank in zip(used.index, used[column], ranks, strict=True):
            if key and highest[key] > rank:
                reasons.setdefault(row, f"{is_parted} in the split {SPLITS[highest[key]]}")
    manifest.loc[list(reasons), "split"] = ""
    manifest.loc[list(reasons), "problem"] = list(reasons.values())
    for reason, count in Counter(reasons.values()).items():
        logger.info(f"Skipped {'1 image' if count == 1 else f'{count:,} images'} because {reason}.")


def _say_two_labels(manifest: pd.DataFrame) -> None:
    """The same picture under two labels is kept, since nobody but the user knows which is right; but it is said."""
    used = manifest[manifest["split"] != ""]
    repeated = used[used["pixels"].duplicated(keep=False)]
    doubtful = repeated[repeated.groupby("pixels")["label"].transform("nunique") > 1] if len(repeated) else repeated
    if len(doubtful):
        named = ", ".join(doubtful["id"].head(NAMED))
        logger.info(f"{len(doubtful)} images are there under two labels, such as {named}; one of them is wrong.")


def _say_empty(manifest: pd.DataFrame, class_names: tuple[str, ...], wanted: set[str]) -> None:
    counts = Counter(zip(manifest["label"], manifest["split"], strict=True))
    for split in ("val", "test"):
        empty = [name for name in class_names if not counts[name, split]]
        if split in wanted and empty:
            named = ", ".join(empty[:NAMED]) + (", ..." if len(empty) > NAMED else "")
            have = f"The class {named} has" if len(empty) == 1 else f"{len(empty):,} classes ({named}) have"
            logger.info(
                f"{have} no {split} image: an image's split hangs on that image alone, so that others never move it, and few "
                "images may all fall elsewhere; add some, or give the splits in a table."
            )
