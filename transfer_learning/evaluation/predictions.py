"""The table of predictions: one row an example, from which every number and figure of a result can be had again.

Its columns are ``id, label, predicted, confidence`` and then one column a class, in the order of the classes, that
holds the probability of that class. A class column is called what its class is called, except that a class which bears
the name of one of the first four columns, with or without underscores behind it, gets one more underscore: class
``label`` is column ``label_``, class ``label_`` is column ``label__``. So all columns differ, the first four can be had
by name whatever the classes are called, and `class_names` takes the underscore off again. The *values* of ``label`` and
``predicted`` are the plain class names.

In the file every text is quoted and no number is, and texts are read as texts: ``01``, ``nan`` and ``None`` stay what
they are, and so do names with commas, quotes, line ends or bytes that are no UTF-8.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from transfer_learning.errors import Diverged, UserError
from transfer_learning.storage.files import written_atomically

pd.set_option("mode.string_storage", "python")  # PyArrow's texts, where it is installed, take nothing but UTF-8

FIRST_COLUMNS = ("id", "label", "predicted", "confidence")
_TAKEN = re.compile(f"({'|'.join(FIRST_COLUMNS)})_*")
_NUMBER = "%.9g"  # nine digits tell any two float32 apart, and are never near enough to a third to be read as it


def table(
    ids: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> pd.DataFrame:
    """Puts predictions into a table, rows in the order given.

    Args:
        ids: one text for each of the n examples.
        labels: integers, shape (n,), positions of the true classes in `class_names`.
        probabilities: floats from 0 to 1, shape (n, number of classes), each row with sum 1; kept as float32.
        class_names: the classes by position, all different.

    Returns:
        The table; ``predicted`` is the most probable class (the first of them where several are), ``confidence`` its
        probability. Texts are of dtype object, numbers of dtype float32.

    Raises:
        Diverged: a probability is NaN or infinite.
        ValueError: the shapes do not fit, a label is out of range, or the rows are no probabilities.
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
            f"The model gives no usable probabilities for {unusable} of {len(ids)} images (not a number): "
            "its training diverged, so train again with a lower learning rate."
        )
    if np.any(probabilities < 0) or np.any(np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1) > 1e-2):
        raise ValueError("Each row of probabilities must be 0 or more and have sum 1; were these logits?")
    predicted = probabilities.argmax(axis=1)  # the first of equals
    first = pd.DataFrame(
        {
            "id": np.array([str(id) for id in ids], dtype=object),
            "label": names[labels],
            "predicted": names[predicted],
            "confidence": probabilities[np.arange(len(ids)), predicted],
        }
    ).astype(dict.fromkeys(FIRST_COLUMNS[:3], object))
    by_class = pd.DataFrame(probabilities, columns=pd.Index([_column(name) for name in names], dtype=object))
    return pd.concat([first, by_class], axis=1)


def class_names(predictions: pd.DataFrame) -> list[str]:
    """The names of the classes of a table, by position."""
    return [name[:-1] if _TAKEN.fullmatch(name) else name for name in predictions.columns[len(FIRST_COLUMNS) :]]


def probabilities(predictions: pd.DataFrame) -> np.ndarray:
    """The probabilities of a table, float32, shape (n, number of classes)."""
    return predictions.iloc[:, len(FIRST_COLUMNS) :].to_numpy(dtype=np.float32)


def write(predictions: pd.DataFrame, path: Path) -> None:
    """Writes a table as CSV, whole or not at all; the same table gives the same bytes."""
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
    """Reads what `write` wrote: the same texts, the same float32 to the bit.

    Raises:
        UserError: there is no such file, or it is no table of predictions.
    """
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
            f"{path} is no table of predictions ({error}); columns {', '.join(FIRST_COLUMNS)} and one for each class "
            "were expected, so evaluate the run again."
        ) from None


def _column(class_name: str) -> str:
    return class_name + "_" if _TAKEN.fullmatch(class_name) else class_name


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
