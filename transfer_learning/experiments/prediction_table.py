"""Writes a table of predictions row by row, so that its length does not matter: CSV, JSON lines or Parquet."""

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from transfer_learning.datasets.decoding.formats import IMAGE_SUFFIXES, OTHER_SUFFIXES
from transfer_learning.errors import UserError, did_you_mean, needs_extra
from transfer_learning.storage.files import written_atomically

OTHER_TABLES = ("json", "ndjson", "tsv", "xlsx", "xls", "ods", "pq", "feather", "html", "md")  # that are not written
ROWS_PER_GROUP = 10_000  # of a Parquet file, which are in memory
Write = Callable[[Sequence[Any]], object]


def format_of(name: str | None, output: Path | None) -> str:
    """Returns the format that was asked for, or that the name of the file has; CSV if there is neither.

    Raises:
        UserError: it is unknown, or needs a file; or the file has the name of an image, as after ``--output photos/*.jpg``,
            which would overwrite the first of them, or of another kind of table.
    """
    suffix = output.suffix.lower().lstrip(".") if output else ""
    if f".{suffix}" in IMAGE_SUFFIXES | OTHER_SUFFIXES:
        raise UserError(
            f"--output {output} has the name of an image, and a table would replace it; give such as found.csv."
        )
    if not name and suffix in OTHER_TABLES:
        raise UserError(
            f"--output {output} asks for the format {suffix}; give a name that ends with {', '.join(FORMATS)}."
        )
    name = name or (suffix if suffix in FORMATS else "csv")
    if name not in FORMATS:
        raise UserError(f"There is no format {name}.{did_you_mean(name, FORMATS)}")
    if name == "parquet" and output is None:
        raise UserError("--format parquet needs a file; give one with --output.")
    return name


@contextmanager
def table_writer(format_name: str, output: Path | None, columns: Sequence[str]) -> Iterator[Write]:
    """Yields a function that writes a row; `output` appears at the end of the block, None is standard output.

    A confidence that is NaN is empty in CSV, and null in the other formats.
    """
    make = FORMATS[format_name]
    if output is None:
        with make(sys.stdout, columns) as write:
            yield write
        return
    with written_atomically(output) as temporary:
        with (
            open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
            make(file, columns) as write,
        ):
            yield write


@contextmanager
def _csv(file: IO[str], columns: Sequence[str]) -> Iterator[Write]:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    yield lambda row: writer.writerow(map(_as_text, row))


@contextmanager
def _json_lines(file: IO[str], columns: Sequence[str]) -> Iterator[Write]:
    yield lambda row: file.write(json.dumps(dict(zip(columns, map(_or_none, row), strict=True))) + "\n")


@contextmanager
def _parquet(file: IO[str], columns: Sequence[str]) -> Iterator[Write]:
    with needs_extra("parquet"):
        import pyarrow
        from pyarrow import parquet

    kinds = {"confidence": pyarrow.float32(), "rejected": pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds.get(name.partition("_")[0], pyarrow.string())) for name in columns])
    rows: list[dict[str, Any]] = []

    def flush() -> None:
        writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        rows.clear()

    def write(row: Sequence[Any]) -> None:
        texts = (value.encode(errors="replace").decode() if isinstance(value, str) else value for value in row)
        rows.append(dict(zip(columns, map(_or_none, texts), strict=True)))
        if len(rows) == ROWS_PER_GROUP:
            flush()

    with parquet.ParquetWriter(file.buffer, schema) as writer:  # type: ignore[attr-defined]
        yield write
        flush()


FORMATS = {"csv": _csv, "jsonl": _json_lines, "parquet": _parquet}


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.9g}"  # nine digits identify a float32
    return str(value)


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
