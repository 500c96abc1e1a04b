"""The manifest: one row per example, with its split, or the problem for which it is skipped.

Columns: id, file ("" for arrays), sha256, label, split ("" if skipped), width, height (pixels), group ("" for none),
problem (a text), kind (of the problem, see `dataset`).

The split of an image is the dataset's own, or is drawn by its group or content, see `split`. A class of few images may
have none in a split, which is logged.

Equal images, and images of one group, never stay in two splits: those in the lower one (train < val < test) are
skipped.
"""

import hashlib
import json
import logging
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from transfer_learning.cli.formatting import counted, listed
from transfer_learning.config import RunConfig
from transfer_learning.datasets.dataset import (
    DROPPED,
    DUPLICATE_IN_OTHER_SPLIT,
    GROUP_IN_OTHER_SPLIT,
    MISSING_EXTRA,
    SPLITS,
    UNSEEN,
    Dataset,
    as_names,
)
from transfer_learning.datasets.decoding.value_range import Ranges, is_plain, to_json
from transfer_learning.datasets.split import draw_splits
from transfer_learning.errors import MissingExtra, UserError

logger = logging.getLogger(__name__)

pd.set_option("mode.string_storage", "python")  # PyArrow's strings, if it is installed, must be UTF-8

COLUMNS = ("id", "file", "sha256", "label", "split", "width", "height", "group", "problem", "kind")
RANKS = {split: rank for rank, split in enumerate(SPLITS)}  # of equal images, the one in the higher split stays
LEAK_REASONS = {  # column: kind and text of the problem of an image with the same value in a higher split
    "sha256": (DUPLICATE_IN_OTHER_SPLIT, "the same file is"),
    "pixels": (DUPLICATE_IN_OTHER_SPLIT, "the same picture, in another file, is"),
    "group": (GROUP_IN_OTHER_SPLIT, "others of its group are"),
    "own_group": (GROUP_IN_OTHER_SPLIT, "others of its group are"),
}
UNSEEN_IN_FINGERPRINT = "held_out"  # the name of that split in earlier versions, whose fingerprints stay valid
NUM_NAMED = 4  # ids or classes per message


def make_manifest(
    dataset: Dataset, facts: pd.DataFrame, config: RunConfig, dropped: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Assigns every readable example to a split.

    The dataset's own splits stay. Other examples are drawn, and a split that the dataset does not have is drawn from
    its training images: by the hash of the group, or of the content of an image without a group.

    Args:
        facts: one row per example: `pixel_cache.FACTS`.
        config: `val_fraction` of the training images (or groups) are for `val`, if the dataset has no `val`, and
            `test_fraction` of all for `test`, if it has no `test`. `group_by` is a regular expression on ids; its first
            group, or else the whole match, is the image's group. Without a match, the group is the dataset's own, if it
            has one.
        dropped: id -> reason, of images that are not used.

    Raises:
        UserError: an image is unreadable and `skip_unreadable` is false, or `group_by` matches no id.
    """
    manifest = unsplit(dataset, facts)
    manifest["group"] = groups(manifest["id"].tolist(), config.group_by)
    manifest["group"] = manifest["group"].where(manifest["group"] != "", manifest["own_group"])
    _skip_dropped(manifest, dropped or {})
    _skip_unreadable(manifest, config.skip_unreadable)
    named = {example.split for example in dataset.examples}
    fractions = {
        "test": 0.0 if "test" in named else config.test_fraction,
        "val": 0.0 if "val" in named else config.val_fraction,
    }
    pool = manifest[(manifest["problem"] == "") & manifest["split"].isin(("", "train"))]
    manifest.loc[pool.index, "split"] = draw_splits(
        pool["group"],
        pool["sha256"],
        pool["label"],
        fractions["test"],
        fractions["val"],
        config.small_classes == "ranked",
    )
    drawn = {split: fraction for split, fraction in fractions.items() if fraction}
    if drawn:
        parts = " and ".join(f"{fraction:.0%} for {split}" for split, fraction in drawn.items())
        logger.info(f"Split by {'group' if config.group_by else 'content'}: about {parts}.")
    _drop_cross_split_duplicates(manifest)
    _warn_of_two_labels(manifest)
    _warn_of_empty_splits(manifest, dataset.class_names, named, set(drawn))
    return manifest[list(COLUMNS)]


def unsplit(dataset: Dataset, facts: pd.DataFrame) -> pd.DataFrame:
    """One row per example with its `facts`, and the split and the group ("own_group") that the dataset names."""
    manifest = pd.DataFrame(
        {
            "id": [example.id for example in dataset.examples],
            "file": [str(example.source) if isinstance(example.source, Path) else "" for example in dataset.examples],
            "label": [example.label for example in dataset.examples],
            "split": [example.split for example in dataset.examples],
            "own_group": [example.group for example in dataset.examples],
        }
    )
    return pd.concat([manifest, facts.reset_index(drop=True)], axis=1)


def check_decoders(manifest: pd.DataFrame) -> None:
    """Raises MissingExtra for images that an optional package decodes."""
    if num_missing := int((manifest["kind"] == MISSING_EXTRA).sum()):
        raise MissingExtra(
            f"{num_missing:,} of {len(manifest):,} images are HEIC, which need the package pillow-heif; install it "
            "with: pip install 'transfer-learning[heic]', or leave them out with --skip-unreadable."
        )


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
            f"The class {missing[0]} has no training image (its images: {where}){more}; add training images, or leave the "
            f"class out with --unseen-classes {shlex.quote(as_names([missing[0]]))}."
        )


def fingerprint(manifest: pd.DataFrame, class_names: Sequence[str], ranges: Ranges | None = None) -> str:
    """Returns a SHA-256 in hexadecimal of ids, contents, labels and splits, and of the class names in their order.

    The order counts because it is that of the model's outputs. The value ranges count if they change the pixels.
    """
    columns = manifest[["id", "sha256", "label", "split"]].replace({"split": {UNSEEN: UNSEEN_IN_FINGERPRINT}})
    rows = columns.to_csv(index=False, lineterminator="\n")
    scaling = {kind: limits for kind, limits in (ranges or {}).items() if not is_plain(kind, limits)}
    rows += f"{json.dumps(to_json(scaling))}\n" if scaling else ""
    return hashlib.sha256(f"{json.dumps(list(class_names))}\n{rows}".encode()).hexdigest()


def groups(ids: list[str], group_by: str) -> list[str]:
    """Returns the group of each id, "" for none; see `make_manifest`.

    Raises:
        UserError: `group_by` matches no id.
    """
    if not group_by:
        return [""] * len(ids)
    matches = [re.search(group_by, id) for id in ids]
    names = ["" if match is None else match[1 if match.re.groups else 0] or match[0] for match in matches]
    num_alone = names.count("")
    if num_alone == len(ids):
        raise UserError(
            f"--group-by {group_by} matches none of the {len(ids):,} ids, such as {', '.join(ids[:2])}; give a regular "
            "expression that matches the name of the group."
        )
    sizes = pd.Series(names)[lambda name: name != ""].value_counts()
    alone = f"; no match in {num_alone:,} ids, such as {ids[names.index('')]}" if num_alone else ""
    logger.info(
        f"--group-by: {counted(len(ids) - num_alone, 'image')} in {counted(len(sizes), 'group')} of {sizes.min():,} to "
        f"{sizes.max():,} (largest: {sizes.index[0]}){alone}."
    )
    return names


def group_numbers(manifest: pd.DataFrame) -> np.ndarray | None:
    """The group of each row, int64 (n,); None if all images are alone."""
    alone = manifest["group"] == ""
    return None if alone.all() else pd.factorize(manifest["group"].where(~alone, manifest["id"]))[0]


def _skip_dropped(manifest: pd.DataFrame, dropped: Mapping[str, str]) -> None:
    reasons = manifest["id"].map(dropped)
    manifest["problem"] = manifest["problem"].where(reasons.isna(), reasons)
    manifest.loc[reasons.notna(), ["split", "kind"]] = "", DROPPED


def _skip_unreadable(manifest: pd.DataFrame, skip_unreadable: bool) -> None:
    bad = manifest[(manifest["problem"] != "") & (manifest["kind"] != DROPPED)]
    if bad.empty:
        return
    if not skip_unreadable:
        check_decoders(manifest)
    named = "; ".join(f"{row.file or row.id}: {row.problem}" for row in bad.head(3).itertuples())
    more = f"; and {len(bad) - 3:,} more" if len(bad) > 3 else ""
    images = f"{len(bad):,} of {len(manifest):,} images cannot be read ({named}{more})"
    if not skip_unreadable:
        raise UserError(f"{images}; repair or remove them, or pass --skip-unreadable.")
    logger.info(f"{images} and are skipped.")
    manifest.loc[bad.index, "split"] = ""


def _drop_cross_split_duplicates(manifest: pd.DataFrame) -> None:
    """Skips training images that are also in `val` or `test`, and validation images that are in `test`, in place.

    The splits are compared before any image is skipped, so the order of the examples does not matter.
    """
    used = manifest[(manifest["problem"] == "") & (manifest["split"] != UNSEEN)]
    ranks = used["split"].map(RANKS)
    problems: dict[int, tuple[str, str]] = {}
    for column, (kind, others_are) in LEAK_REASONS.items():
        keys = used[column]
        if column == "sha256":  # images of one colour have a place in the hash of their pixels, and show nothing twice
            keys = keys.where(~used["pixels"].str.contains(" "), "")
        highest = ranks.groupby(keys, sort=False).transform("max")
        for row, rank in highest[(keys != "") & (highest > ranks)].items():
            problems.setdefault(row, (kind, f"{others_are} in the split {SPLITS[rank]}"))
    skipped = list(problems)
    manifest.loc[skipped, "split"] = ""
    manifest.loc[skipped, "kind"] = [kind for kind, _ in problems.values()]
    manifest.loc[skipped, "problem"] = [text for _, text in problems.values()]
    for text, count in Counter(text for _, text in problems.values()).items():
        logger.info(f"Skipped {counted(count, 'image')}: {text}.")


def _warn_of_two_labels(manifest: pd.DataFrame) -> None:
    """Images with the same pixels and different labels are used, since only the user knows which label is right."""
    used = manifest[manifest["split"] != ""]
    repeated = used[used["pixels"].duplicated(keep=False)]
    conflicts = repeated[repeated.groupby("pixels")["label"].transform("nunique") > 1] if len(repeated) else repeated
    if len(conflicts):
        named = ", ".join(conflicts["id"].head(NUM_NAMED))
        logger.warning(f"{len(conflicts):,} images have the same pixels and different labels, such as {named}.")


def _warn_of_empty_splits(
    manifest: pd.DataFrame, class_names: tuple[str, ...], named: set[str], drawn: set[str]
) -> None:
    counts = Counter(zip(manifest["label"], manifest["split"], strict=True))
    for split in ("val", "test"):
        empty = [name for name in class_names if not counts[name, split]]
        if split in named | drawn and empty:
            named_classes = listed(empty, NUM_NAMED)
            have = f"The class {empty[0]} has" if len(empty) == 1 else f"{len(empty):,} classes ({named_classes}) have"
            lacks = "so their accuracy cannot be measured" if split == "test" else "so they do not count in validation"
            if len(empty) == 1:
                lacks = lacks.replace("their", "its").replace("they do", "it does")
            do = (
                "add images, or give the splits in a table"
                if split in drawn
                else f"add images to the dataset's {split} split"
            )
            logger.warning(f"{have} no {split} image, {lacks}; {do}.")
