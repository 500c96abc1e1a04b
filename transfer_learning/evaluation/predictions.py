"""The table of predictions: one row per example, from which all metrics and figures can be computed.

Its columns are ``id, label, predicted, confidence`` and then one column per class, in the order of the classes, with
the probability of that class. The column of a class has the name of the class, but a class named like one of the first
four columns, with or without underscores behind it, gets one more underscore: class ``label`` is column ``label_``,
class ``label_`` is column ``label__``. `class_names` removes it again. The *values* of ``label`` and ``predicted`` are
the plain class names.

In the file all texts are quoted and numbers are not; ``01``, ``nan`` and ``None`` are read as texts, and names with
commas, quotes, line ends or bytes that are not UTF-8 are preserved.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from transfer_learning.errors import Diverged, UserError
from transfer_learning.storage.files import written_atomically

pd.set_option("mode.string_storage", "python")  # PyArrow's strings must be UTF-8

FIRST_COLUMNS = ("id", "label", "predicted", "confidence")
_TAKEN = re.compile(f"({'|'.join(FIRST_COLUMNS)})_*")
_NUMBER = "%.9g"  # nine digits identify a float32


def table(
    ids: Sequence[str] | np.ndarray, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> pd.DataFrame:
    """Makes a table of predictions, rows in the order given.

    Args:
        ids: one text per example.
        labels: integers, shape (n,), positions of the true classes in `class_names`.
        probabilities: floats from 0 to 1, shape (n, number of classes), each row with sum 1; stored as float32.
        class_names: the classes by position, all different.

    Returns:
        The table; ``predicted`` is the most probable class, the first of several, and ``confidence`` its probability.
        Texts are of dtype object, numbers of dtype float32.

    Raises:
        Diverged: a probability is not finite.
        ValueError: the shapes do not fit, a label is out of range, or the rows are not probabilities.
    """
    names = np.array([str(name) for name in class_names], dtype=object)
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float32)
    if len(set(names)) != len(names):
        raise ValueError(f"Class names must differ; got {list(names)}.")
    if probabilities.shape != (len(ids), len(names)) or labels.shape != (len(ids),):
        raise ValueError(
            f"{len(ids)} ids and {len(names)} classes need labels of shape ({len(ids)},) and probabilities of shape "
            f"({len(ids)}, {len(names)}); got {labels.shape} and {probabilities.shape}."
        )
    if len(ids) == 0:
        labels = labels.astype(int)
    if labels.dtype.kind not in "iu" or np.any((labels < 0) | (labels >= len(names))):
        raise ValueError(f"Labels must be integers from 0 to {len(names) - 1}, positions of class names.")
    unusable = int(np.sum(~np.isfinite(probabilities).all(axis=1)))
    if unusable:
        raise Diverged(
            f"The model outputs NaN or infinite values for {unusable} of {len(ids)} images: its training diverged, so "
            "train again with a lower learning rate."
        )
    if np.any(probabilities < 0) or np.any(np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1) > 1e-2):
        raise ValueError("Each row of probabilities must be 0 or more and have sum 1; were these logits?")
    predicted = probabilities.argmax(axis=1)  # the first of equals
    confidence = probabilities[np.arange(len(ids)), predicted]
    values = np.array([str(id) for id in ids], dtype=object), names[labels], names[predicted], confidence
    first = pd.DataFrame(dict(zip(FIRST_COLUMNS, values, strict=True)))
    first = first.astype(dict.fromkeys(FIRST_COLUMNS[:3], object))
    columns = [name + "_" if _TAKEN.fullmatch(name) else name for name in names]
    by_class = pd.DataFrame(probabilities, columns=pd.Index(columns, dtype=object))
    return pd.concat([first, by_class], axis=1)


def class_names(predictions: pd.DataFrame) -> list[str]:
    """Returns the class names of a table, by position."""
    return [name[:-1] if _TAKEN.fullmatch(name) else name for name in predictions.columns[len(FIRST_COLUMNS) :]]


def probabilities(predictions: pd.DataFrame) -> np.ndarray:
    """Returns the probabilities of a table, float32 (n, number of classes)."""
    return predictions.iloc[:, len(FIRST_COLUMNS) :].to_numpy(dtype=np.float32)


def write(predictions: pd.DataFrame, path: Path) -> None:
    """Writes a table as CSV, atomically; the same table gives the same bytes."""
    texts, numbers = predictions.iloc[:, :3].to_numpy(), predictions.iloc[:, 3:].to_numpy(dtype=np.float32)
    line = ",".join([_NUMBER] * numbers.shape[1])
    with (
        written_atomically(Path(path)) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        file.write(",".join(map(_quoted, predictions.columns)) + "\n")
        for text, number in zip(texts, numbers, strict=True):
            file.write(",".join(map(_quoted, text)) + "," + line % tuple(number) + "\n")


def read(path: Path) -> pd.DataFrame:
    """Reads a file of `write`: the same texts, bit-identical float32; UserError if it is missing or no such table."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            columns = next(csv.reader(file), [])
        if tuple(columns[: len(FIRST_COLUMNS)]) != FIRST_COLUMNS:
            raise ValueError(f"its first columns are {', '.join(columns[: len(FIRST_COLUMNS)]) or 'missing'}")
        types = {name: object if place < 3 else np.float32 for place, name in enumerate(columns)}
        return pd.read_csv(
            path,
            header=0,
            names=columns,  # pandas would give a nameless class a name of its own
            dtype=types,
            na_filter=False,
            encoding="utf-8",
            encoding_errors="surrogateescape",
        )
    except FileNotFoundError:
        raise UserError(f"There are no predictions {path}; evaluate the run first.") from None
    except ValueError as error:
        raise UserError(
            f"{path} is not a table of predictions ({error}); expected columns {', '.join(FIRST_COLUMNS)} and one per "
            "class, so evaluate the run again."
        ) from None


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
