"""A table with the columns ``path,label[,split]``; paths are relative to the folder of the table."""

import csv
import textwrap
from pathlib import Path

from transfer_learning.cli.formatting import size
from transfer_learning.datasets.dataset import SPLITS, Dataset, Example, with_class_names
from transfer_learning.errors import UserError

MAX_BYTES = 10**9  # a table of ImageNet takes a tenth of it; an endless line would fill the memory


def read(table: Path) -> Dataset:
    """Reads the table; every row is an example.

    Raises:
        UserError: the file is not a table, a column or value is missing, a row is longer than the first line, a path
            appears twice, or a split is not train, val or test.
    """
    examples, seen = [], set()
    if table.stat().st_size > MAX_BYTES:
        raise UserError(
            f"{table} has {size(table.stat().st_size)}; a folder, an archive, or a CSV file of at most "
            f"{size(MAX_BYTES)} with the columns path,label was expected."
        )
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:  # Excel writes a byte order mark
            rows = csv.DictReader(file, skipinitialspace=True, strict=True)
            columns = [name.strip() for name in rows.fieldnames or ()]
            rows.fieldnames = columns
            if not {"path", "label"} <= set(columns):
                found = textwrap.shorten(", ".join(columns), 200, placeholder=" ...") or "(none)"
                raise UserError(f"{table} has the columns {found}; path,label[,split] were expected in its first line.")
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
                            f"{table} line {rows.line_num} has {column} {value!r}; {expected} was expected, so correct "
                            "it."
                        )
                seen.add(path)
                examples.append(Example(path, label, split, table.parent / path))
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{table} cannot be read as a table ({error}); a CSV file with the columns path,label was expected."
        ) from None
    return with_class_names(str(table), examples)
