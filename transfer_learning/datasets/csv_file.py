"""A table with the columns ``path,label`` and, where the split is given, ``split``; paths are relative to the table."""

from pathlib import Path

import pandas as pd

from transfer_learning.datasets.dataset import SPLITS, Dataset, Example, with_class_names
from transfer_learning.errors import UserError


def read(table: Path) -> Dataset:
    """Reads the table; every row is an example, in its order.

    Raises:
        UserError: the file is no table, a column or a value is missing, a path is named twice, or a split has another
            name than train, val or test.
    """
    try:
        rows = pd.read_csv(table, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{table} cannot be read as a table ({error}); a CSV file with the columns path,label "
                        "was expected.") from None  # fmt: skip
    if not {"path", "label"} <= set(rows.columns):
        raise UserError(
            f"{table} has the columns {', '.join(map(str, rows.columns))}; path,label and, if wanted, split were "
            "expected in its first line."
        )
    if "split" not in rows:
        rows["split"] = ""
    for column, bad, expected in (
        ("path", rows["path"] == "", "a path in every row"),
        ("label", rows["label"] == "", "a label in every row"),
        ("path", rows["path"].duplicated(), "every path once"),
        ("split", ~rows["split"].isin(("", *SPLITS)), "train, val, test or nothing"),
    ):
        if bad.any():
            line = int(bad.to_numpy().argmax()) + 2  # the header is line 1
            raise UserError(
                f"{table} line {line} has {column} {rows[column][line - 2]!r}; {expected} was expected, so correct it."
            )
    return with_class_names(
        str(table),
        [Example(row.path, row.label, row.split, table.parent / row.path) for row in rows.itertuples(index=False)],
    )
