"""A table with the columns ``path,label`` and, where the split is given, ``split``; paths are relative to the table."""

import csv
import textwrap
from pathlib import Path

from transfer_learning.cli.formatting import size
from transfer_learning.datasets.dataset import SPLITS, Dataset, Example, with_class_names
from transfer_learning.errors import UserError

MOST_BYTES = 10**9  # a table of ImageNet's 1.3 million images has 0.1; a line without end would fill the memory


def read(table: Path) -> Dataset:
    """Reads the table; every row is an example, in its order.

    Raises:
        UserError: the file is no table, a column or a value is missing, a row is longer than the first line, a path is
            named twice, or a split has another name than train, val or test.
    """
    examples, seen = [], set()
    if table.stat().st_size > MOST_BYTES:
        raise UserError(
            f"{table} has {size(table.stat().st_size)}; a folder, an archive, or a CSV file of at most {size(MOST_BYTES)} "
            "with the columns path,label was expected."
        )
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:  # Excel puts a mark ahead of UTF-8
            rows = csv.DictReader(file, skipinitialspace=True, strict=True)
            columns = [name.strip() for name in rows.fieldnames or ()]
            rows.fieldnames = columns
            if not {"path", "label"} <= set(columns):
                found = textwrap.shorten(", ".join(columns), 200, placeholder=" ...") or "(none)"
                raise UserError(
                    f"{table} has the columns {found}; path,label and, if wanted, split were expected in its first line."
                )
            for row in rows:
                path, label, split = (row.get(column) or "" for column in ("path", "label", "split"))
                for column, value, is_right, expected in (
                    ("path", path, path != "", "a path in every row"),
                    ("label", label, label != "", "a label in every row"),
                    ("path", path, path not in seen, "every path once"),
                    ("split", split, split in ("", *SPLITS), "train, val, test or nothing"),
                    ("more columns, as", row.get(None), None not in row, f"a value for each of {','.join(columns)}"),
                ):
                    if not is_right:
                        raise UserError(
                            f"{table} line {rows.line_num} has {column} {value!r}; {expected} was expected, "
                            "so correct it."
                        )
                seen.add(path)
                examples.append(Example(path, label, split, table.parent / path))
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{table} cannot be read as a table ({error}); a CSV file with the columns path,label was expected."
        ) from None
    return with_class_names(str(table), examples)
