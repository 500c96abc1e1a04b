"""The manifest: one row an example, with its split or the reason why it has none.

Columns: id, file ("" for arrays), sha256, label, split ("" where skipped), width, height (pixels), problem.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from transfer_learning.datasets.dataset import Dataset
from transfer_learning.errors import UserError

pd.set_option("mode.string_storage", "python")  # PyArrow's texts, where it is installed, take nothing but UTF-8

COLUMNS = ("id", "file", "sha256", "label", "split", "width", "height", "problem")


def make_manifest(
    dataset: Dataset,
    facts: pd.DataFrame,
    val_fraction: float,
    test_fraction: float,
    skip_unreadable: bool = False,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Gives every readable example its split.

    The splits that the dataset names are kept. What it leaves open is drawn from the training images by content: an
    image's place depends on its bytes alone, so adding or renaming others moves it only where a class would
    otherwise be empty in a split, and identical files, like those of one group, always share a split.

    Args:
        facts: a row an example: sha256, width, height, problem.
        val_fraction: share of the training images that becomes `val`, where the dataset names no `val`.
        test_fraction: share of the images that becomes `test`, where the dataset names no `test`.
        say: takes a sentence for each thing that was left out.

    Raises:
        UserError: an image is unreadable (and `skip_unreadable` false), or a class cannot fill every split.
    """
    manifest = pd.DataFrame({
        "id": [example.id for example in dataset.examples],
        "file": [str(example.content) if isinstance(example.content, Path) else "" for example in dataset.examples],
        "label": [example.label for example in dataset.examples],
        "split": [example.split for example in dataset.examples],
    })  # fmt: skip
    manifest = pd.concat([manifest, facts.reset_index(drop=True)], axis=1)[list(COLUMNS)]
    _set_aside_unreadable(manifest, skip_unreadable, say)
    _set_aside_leaks(manifest, say)
    fractions = {
        "test": 0.0 if (manifest["split"] == "test").any() else test_fraction,
        "val": 0.0 if (manifest["split"] == "val").any() else val_fraction,
    }
    _draw_splits(manifest, fractions, [example.group for example in dataset.examples])
    for split, images in (("test", "its images"), ("val", "the training images")):
        if fractions[split]:
            say(
                f"The dataset names no {split} split: about {fractions[split]:.0%} of {images}, chosen by their content, "
                "become it."
            )
    _say_two_labels(manifest, say)
    trained = set(manifest.loc[manifest["split"] == "train", "label"])
    for label in dataset.class_names:
        if label not in trained:
            raise UserError(f"The class {label} has no readable training image; add some, or take the class out.")
    return manifest


def fingerprint(manifest: pd.DataFrame) -> str:
    """Returns a SHA-256 in hexadecimal that changes with any id, content, label or split."""
    rows = manifest[["id", "sha256", "label", "split"]]
    return hashlib.sha256(rows.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def _set_aside_unreadable(manifest: pd.DataFrame, skip_unreadable: bool, say: Callable[[str], None]) -> None:
    bad = manifest[manifest["problem"] != ""]
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
    say(f"Skipped {images} of {len(manifest)} that cannot be read ({named}{more}).")
    manifest.loc[bad.index, "split"] = ""


def _set_aside_leaks(manifest: pd.DataFrame, say: Callable[[str], None]) -> None:
    """A training image that is also a test image would make the test say nothing: the test keeps it."""
    for split, others in (("test", ("val", "train", "")), ("val", ("train", ""))):
        kept = set(manifest.loc[(manifest["split"] == split) & (manifest["problem"] == ""), "sha256"])
        leaks = manifest["sha256"].isin(kept) & manifest["split"].isin(others) & (manifest["problem"] == "")
        if leaks.any():
            manifest.loc[leaks, ["split", "problem"]] = ("", f"the same file is in the split {split}")
            images = "1 image" if leaks.sum() == 1 else f"{leaks.sum()} images"
            say(f"Skipped {images} because the same file is in the dataset's own split {split}.")


def _draw_splits(manifest: pd.DataFrame, fractions: dict[str, float], groups: list[str]) -> None:
    """Fills `split` in place for the rows that the dataset left to us, and takes val and test from its train."""
    pool = manifest[(manifest["problem"] == "") & manifest["split"].isin(("", "train"))]
    pool = pool.assign(unit=_units(pool["sha256"], pd.Series(groups, manifest.index)[pool.index]))
    place = {digest: int(digest[:12], 16) / 16**12 for digest in pool["unit"]}  # uniform in [0, 1)
    test = fractions["test"]
    val = test + (1 - test) * fractions["val"]
    split = {digest: "test" if u < test else "val" if u < val else "train" for digest, u in place.items()}
    middle = {"test": test / 2, "val": (test + val) / 2, "train": (val + 1) / 2}
    wanted = [name for name in ("test", "val") if fractions[name] > 0] + ["train"]
    for label, group in pool.groupby("label", sort=True):
        files = sorted(set(group["unit"]), key=place.get)
        if len(files) < len(wanted):
            raise UserError(
                f"The class {label} has {len(files)} different image{'s' * (len(files) > 1)}; at least {len(wanted)} "
                f"were expected, one for each of {', '.join(wanted)}, so add images, or take the class out."
            )
        # A small class may have drawn nothing for a split: the nearest image to that split moves over.
        for name in wanted:
            held = Counter(split[digest] for digest in files)
            if not held[name]:
                rich = [digest for digest in files if held[split[digest]] > 1]
                split[min(rich, key=lambda digest: abs(place[digest] - middle[name]))] = name
    manifest.loc[pool.index, "split"] = pool["unit"].map(split)


def _units(hashes: pd.Series, groups: pd.Series) -> pd.Series:
    """What has to share a split bears one hash: files of the same content, those of a group, and both in any chain."""
    if not groups.any():
        return hashes
    contents, digests = pd.factorize(hashes, sort=True)  # so that their order decides nothing
    units, parts = contents, (pd.factorize(groups.where(groups != "", hashes))[0], contents)
    while True:
        joined = units
        for part in parts:
            joined = pd.Series(joined).groupby(part).transform("min").to_numpy()
        if (joined == units).all():
            return pd.Series(digests[units], hashes.index)
        units = joined


def _say_two_labels(manifest: pd.DataFrame, say: Callable[[str], None]) -> None:
    """The same file under two labels is kept, since nobody but the user knows which is right; but it is said."""
    used = manifest[manifest["split"] != ""]
    doubtful = used[used.groupby("sha256")["label"].transform("nunique") > 1]
    if len(doubtful):
        named = ", ".join(doubtful["id"].head(4))
        say(f"{len(doubtful)} images are there under two labels, such as {named}; one of them is wrong.")
