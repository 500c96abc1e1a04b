"""Several predictions of the same images: averaged (an ensemble, test-time augmentation), or compared in pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from transfer_learning.errors import UserError
from transfer_learning.evaluation import predictions
from transfer_learning.evaluation.intervals import difference_interval

ADVICE = "only runs on the same images, splits and classes can be combined, so train them on one dataset"


def check_same_examples(examples: Mapping[str, pd.DataFrame], class_names: Mapping[str, Sequence[str]]) -> None:
    """Checks that all sources have the same examples and classes, in any order.

    Args:
        examples: by source a table with a column ``id``; all columns shared with the first table are compared.
        class_names: by source.

    Raises:
        UserError: they differ; the first difference is named.
    """
    for name, table in examples.items():
        twice = table["id"][table["id"].duplicated()]
        if len(twice):
            raise UserError(f"{name} lists the image {twice.iloc[0]} twice; {ADVICE}.")
    by_id = {name: table.set_index("id") for name, table in examples.items()}
    first, *others = by_id
    for other in others:
        for one, two in ((first, other), (other, first)):
            classes = [name for name in class_names[one] if name not in set(class_names[two])]
            if classes:
                raise UserError(f"{one} has the class {classes[0]}, and {two} does not; {ADVICE}.")
            images = by_id[one].index.difference(by_id[two].index, sort=False)
            if len(images):
                raise UserError(
                    f"{one} has the image {images[0]} in this split, and {two} does not ({len(images):,} such); "
                    f"{ADVICE}."
                )
        table, other_table = by_id[first], by_id[other]
        for column in table.columns.intersection(other_table.columns, sort=False):
            values = other_table[column].reindex(table.index)
            differs = (table[column] != values).to_numpy()
            if differs.any():
                place = int(differs.argmax())
                raise UserError(
                    f"The image {table.index[place]} has the {column} {table[column].iloc[place]} in {first}, and "
                    f"{values.iloc[place]} in {other}; {ADVICE}."
                )


def aligned(tables: Mapping[str, pd.DataFrame]) -> list[pd.DataFrame]:
    """Tables of predictions with rows and classes in the order of the first one; UserError names the first difference
    in images, labels or classes.
    """
    check_same_examples(
        {name: table[["id", "label"]] for name, table in tables.items()},
        {name: predictions.class_names(table) for name, table in tables.items()},
    )
    first = next(iter(tables.values()))
    return [table.set_index("id").loc[first["id"]].reset_index()[list(first.columns)] for table in tables.values()]


def average(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Averages probabilities in float64; returns a table of predictions in the order of the first one. UserError if
    images, labels or classes differ, or a probability is NaN or infinite.
    """
    rows = aligned(tables)
    total = np.zeros(predictions.probabilities(rows[0]).shape)
    for name, table in zip(tables, rows, strict=True):
        probabilities = predictions.probabilities(table)
        unusable = ~np.isfinite(probabilities).all(axis=1)
        if unusable.any():
            raise UserError(
                f"{name} has NaN or infinite probabilities for the image {table['id'].iloc[int(unusable.argmax())]}: "
                "its training diverged, so leave it out, or train it again with a lower learning rate."
            )
        total += probabilities
    first = rows[0]
    class_names = predictions.class_names(first)
    position = {name: place for place, name in enumerate(class_names)}
    labels = first["label"].map(position).to_numpy(np.int64)
    return predictions.table(first["id"], labels, total / len(rows), class_names)


def is_correct(table: pd.DataFrame) -> np.ndarray:
    """For each row of a table of predictions whether it is correct, bool (n,)."""
    return (table["label"] == table["predicted"]).to_numpy()


def only_correct(one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """The ids of the images that `one` classifies correctly and `other` does not."""
    one, other = aligned({"one": one, "other": other})
    return one.loc[is_correct(one) & ~is_correct(other), "id"].tolist()


def paired_difference(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, Any]:
    """Compares two tables of predictions image by image.

    Returns:
        Plain numbers, ready for JSON: ``accuracy_before``, ``accuracy_after`` and their ``difference`` with its
        ``difference_interval`` (95 %, bootstrap over the images), from -1 to 1; the counts ``both_right``,
        ``only_before_right``, ``only_after_right`` and ``both_wrong``; and ``mcnemar_p``, the two-sided p-value of the
        exact test of McNemar, 1947.

    Raises:
        UserError: images, labels or classes of the tables differ.
    """
    return compare_correct(*map(is_correct, aligned({"before": before, "after": after})))


def compare_correct(was_right: np.ndarray, is_right: np.ndarray) -> dict[str, Any]:
    """What `paired_difference` returns, from whether each image was and is classified correctly, bool (n,), n > 0."""
    from scipy.stats import binomtest

    gained, lost = int(np.sum(is_right & ~was_right)), int(np.sum(was_right & ~is_right))
    return {
        "num_examples": len(is_right),
        "accuracy_before": float(was_right.mean()),
        "accuracy_after": float(is_right.mean()),
        "difference": (gained - lost) / len(is_right),
        "difference_interval": difference_interval(is_right.astype(float) - was_right),
        "both_right": int(np.sum(is_right & was_right)),
        "only_before_right": lost,
        "only_after_right": gained,
        "both_wrong": int(np.sum(~is_right & ~was_right)),
        "mcnemar_p": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    }


def loses_more_than(limit: float, difference: float) -> bool:
    """Whether the accuracy falls by more than `limit` (0..1), by the ``difference`` of `paired_difference`.

    The estimate itself is compared, not an end of its interval: a test set that is too small to show a loss passes.
    """
    return -difference > limit + 1e-9  # 7 of 1,000 images are not more than 0.7 points, whatever the rounding


def describe(gain: Mapping[str, Any], before: str, after: str) -> str:
    """Describes the result of `paired_difference` in a sentence, such as

    ``B 92.28% against A 91.06% on the same 246 images: +1.22 points (95 % interval -0.41 to +2.85), 5 images gained, 2
    lost; not significant (exact McNemar p = 0.453).``
    """
    start = (
        f"{after} {gain['accuracy_after']:.2%} against {before} {gain['accuracy_before']:.2%} on the same "
        f"{gain['num_examples']:,} images: "
    )
    gained, lost = gain["only_after_right"], gain["only_before_right"]
    if not gained + lost:
        return f"{start}no image is classified differently."
    low, high = (100 * end for end in gain["difference_interval"])
    verdict = "not significant" if gain["mcnemar_p"] >= 0.05 else "significant"
    return (
        f"{start}{100 * gain['difference']:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}), {gained:,} "
        f"{'image' if gained == 1 else 'images'} gained, {lost:,} lost; {verdict} (exact McNemar p = "
        f"{gain['mcnemar_p']:.3g})."
    )
