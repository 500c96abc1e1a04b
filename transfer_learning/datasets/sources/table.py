"""A table with a row per image: a path, a label, and optionally a split; as people, spreadsheets and pandas write it.

Paths are relative to the folder of the table. Where none of them is a file there, the same names are looked for from
the working directory, from the folders above, and anywhere below; what is changed is logged.
"""

import codecs
import csv
import itertools
import logging
import os
import re
import textwrap
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from transfer_learning.cli.formatting import counted, size
from transfer_learning.datasets.dataset import Dataset, Example, Note, with_class_names
from transfer_learning.datasets.decoding.formats import IMAGE_SUFFIXES
from transfer_learning.datasets.sources.folder import files_below, is_hidden
from transfer_learning.datasets.split_names import split_of
from transfer_learning.errors import UserError, did_you_mean

MAX_BYTES = 10**9  # a table of ImageNet takes a tenth of it; an endless line would fill the memory
MAX_FILES = 3_000_000  # below the folder of a table, that are looked through
SEPARATORS = ",;\t|"
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # which begins like UTF-16
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
ONE_HOT = {"0", "1", "0.0", "1.0", "true", "false"}
NO_SPLIT = ("", "-", "nan", "none", "null", "na", "n/a")
# Names of columns without case, spaces and underscores; the first one that a table has is used.
PATH_COLUMNS = (
    "path filepath imagepath imgpath filename file image img imagefile imagefilename imagename imgname photo picture "
    "fname paths files filenames images imageid imgid id"
).split()
LABEL_COLUMNS = (
    "label class labelname classname category target labels classes categories targets classlabel labelid classid y tag"
).split()
SPLIT_COLUMNS = "split subset partition dataset set usage phase".split()


class Columns(NamedTuple):
    """The columns that the user names; "" for those that are found by their names."""

    path: str = ""
    label: str = ""


BY_NAME = Columns()


class Text(NamedTuple):
    """The lines of a table, and how they are written."""

    lines: Iterator[str]
    separator: str
    encoding: str


class Row(NamedTuple):
    line: int
    path: str
    label: str
    split: str


def read(table: Path, named: Columns = BY_NAME, with_labels: bool = True) -> Dataset:
    """Reads the table; every row is an example. Equal rows count once.

    Args:
        with_labels: False: only paths are read, for prediction; labels and splits are "".

    Raises:
        UserError: the file is not a table; a column or value is missing; a row is longer than the first line; a path
            has two labels; a split is not one of `split_names`; or no path leads to a file.
    """
    if table.stat().st_size > MAX_BYTES:
        raise UserError(
            f"{table} has {size(table.stat().st_size)}; a folder, an archive, or a CSV file of at most "
            f"{size(MAX_BYTES)} with the columns path,label was expected."
        )
    notes: list[Note] = []
    try:
        with opened(table) as text:
            rows = _rows(table, text, named if with_labels else None, notes)
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{table} cannot be read as a table ({error}); a CSV file with the columns path,label was expected."
        ) from None
    notes[:0] = _notes_on_text(table, text)
    if not rows:
        raise UserError(f"{table} has no images below its first line; a row for each image was expected, so add them.")
    paths = _existing(table, [row.path for row in rows], notes)
    examples = [Example(path, row.label, row.split, table.parent / path) for path, row in zip(paths, rows, strict=True)]
    return with_class_names(str(table), examples, notes=notes)


# ---------------------------------------------------------------------------------------------------------------------
# Text and cells


@contextmanager
def opened(table: Path) -> Iterator[Text]:
    """Opens a table with the encoding and the separator that it is written with.

    Raises:
        OSError: it cannot be read.
        ValueError: while its lines are read: they are no text.
    """
    encoding = _encoding(table)
    with open(table, encoding=encoding, newline="") as file:
        separator, lines = _separator(file)
        yield Text(lines, separator, encoding)


def _notes_on_text(table: Path, text: Text) -> list[Note]:
    """What is unusual about the way a table is written."""
    found = []
    if text.encoding == "cp1252":
        advice = "if names look wrong, save it as UTF-8"
        found.append(Note(logging.WARNING, f"{table} is not UTF-8, so it is read as Windows-1252; {advice}."))
    elif not text.encoding.startswith("utf-8"):
        found.append(Note(logging.INFO, f"{table} is read as {text.encoding.upper()}."))
    if text.separator != ",":
        name = {"\t": "tabs", ";": "semicolons"}.get(text.separator, text.separator)
        found.append(Note(logging.INFO, f"{table} uses {name} as separator."))
    return found


def _encoding(table: Path) -> str:
    """The encoding of a text file: by its byte order mark, else UTF-8, else UTF-16 or Windows-1252."""
    with open(table, "rb") as file:
        beginning = file.read(1000)
        if mark := next((mark for mark in MARKS if beginning.startswith(mark)), b""):
            return MARKS[mark]
        if beginning[:2].count(b"\0") == 1:
            return "utf-16-le" if beginning[0] else "utf-16-be"
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while part := file.read(1 << 20):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252" if b"\0" not in beginning else "utf-8"
    return "utf-8"


def _separator(lines: Iterator[str]) -> tuple[str, Iterator[str]]:
    """The separator of the cells, by the first line that is not empty; and all lines from that one on."""
    first = next((line for line in lines if line.strip(f"{SEPARATORS} \r\n")), "")
    if hint := re.fullmatch(r"sep=(.)\s*", first):  # for Excel
        return hint[1], lines
    return max(SEPARATORS, key=first.count), itertools.chain([first], lines)


def _rows(table: Path, text: Text, named: Columns | None, notes: list[Note]) -> list[Row]:
    """The rows with their columns `named`; None: paths alone."""
    cells = csv.reader(text.lines, delimiter=text.separator, skipinitialspace=True, strict=True)
    names = [name.strip() for name in next(cells, [])]
    body = ((cells.line_num, [cell.strip() for cell in row]) for row in cells)
    filled = ((line, row) for line, row in body if any(row))
    begin = list(itertools.islice(filled, 20))
    if named is None:
        path_at, label_at, split_at = _column_of_paths(table, names), -1, -1
    else:
        path_at, label_at, split_at = _columns(table, names, [row for _, row in begin], named, notes)
    rows: dict[str, Row] = {}
    num_repeated = 0
    for line, row in itertools.chain(begin, filled):
        if extra := [cell for cell in row[len(names) :] if cell]:
            raise UserError(
                f"{table} line {line} has more columns, as {extra}; a value for each of {','.join(names)} was expected, "
                "so correct it."
            )
        path, label, split = (row[at] if 0 <= at < len(row) else "" for at in (path_at, label_at, split_at))
        path = os.path.expanduser(path) if path.startswith("~/") else path
        found = Row(line, path, label, "" if split.lower() in NO_SPLIT else split_of(split))
        before = rows.get(path)
        for column, value, is_right, expected in (
            ("path", path, path != "", "a path in every row"),
            ("label", label, label != "" or named is None, "a label in every row"),
            ("split", split, bool(found.split) or split.lower() in NO_SPLIT, "train, val, test or nothing"),
            (
                "path",
                path,
                before is None or before[2:] == found[2:],
                f"every path once, or with the same label and split as in line {before.line if before else 0}",
            ),
        ):
            if not is_right:
                raise UserError(f"{table} line {line} has {column} {value!r}; {expected} was expected, so correct it.")
        num_repeated += before is not None
        rows.setdefault(path, found)
    if num_repeated:
        repeat = "repeats another one and counts" if num_repeated == 1 else "repeat others and count"
        notes.append(Note(logging.WARNING, f"{counted(num_repeated, 'row')} of {table} {repeat} once."))
    return list(rows.values())


def _columns(
    table: Path, names: list[str], beginning: list[list[str]], named: Columns, notes: list[Note]
) -> tuple[int, int, int]:
    """The positions of path, label and split (-1 for none) among the columns `names`.

    Raises:
        UserError: there is no such column.
    """
    found = _by_folded_name(names)

    def position(known: Sequence[str], flag: str, given: str) -> int:
        if given:
            if given not in names:
                raise UserError(f"{flag} {given}: {table} has no such column.{did_you_mean(given, names)}")
            return names.index(given)
        return next((found[name] for name in known if name in found), -1)

    path = position(PATH_COLUMNS, "--path-column", named.path)
    label = position(LABEL_COLUMNS, "--label-column", named.label)
    split = position(SPLIT_COLUMNS, "", "")
    left = [at for at, name in enumerate(names) if name and at not in (path, label, split)]
    if path >= 0 and label < 0 and len(left) == 1:
        label = left[0]
    elif label >= 0 and path < 0 and len(left) == 1:
        path = left[0]
    if path < 0 or label < 0 or path == label:
        listed = textwrap.shorten(", ".join(names), 200, placeholder=" ...") or "(none)"
        raise UserError(
            f"{table} has the columns {listed}; {_advice(names, beginning, path, left)}"
            if names
            else f"{table} has the columns (none); path,label[,split] were expected in its first line."
        )
    if (names[path], names[label]) != ("path", "label"):
        others = sorted({names[found[name]] for name in (*PATH_COLUMNS, *LABEL_COLUMNS) if name in found})
        more = [name for name in others if names.index(name) not in (path, label)]
        unused = f"; --path-column and --label-column choose others, such as {', '.join(more)}" if more else ""
        notes.append(
            Note(logging.INFO, f"{table}: paths are in the column {names[path]}, labels in {names[label]}{unused}.")
        )
    if spare := [names[at] for at in left if at not in (path, label)]:
        shown = textwrap.shorten(", ".join(spare), 100, placeholder=" ...")
        notes.append(Note(logging.INFO, f"{table}: these columns are not used: {shown}."))
    return path, label, split


def _column_of_paths(table: Path, names: list[str]) -> int:
    """The position of the paths among the columns `names`; UserError if there are none."""
    found = _by_folded_name(names)
    others = [at for name, at in found.items() if name and name not in (*LABEL_COLUMNS, *SPLIT_COLUMNS)]
    if known := [found[name] for name in PATH_COLUMNS if name in found]:
        return known[0]
    if names and Path(names[0]).suffix.lower() in IMAGE_SUFFIXES:
        raise UserError(
            f"{table} begins with {names[0]!r}, and the name path was expected in its first line; add it, or send names "
            "alone to standard input, as in: transfer-learning predict RUN - < FILE."
        )
    if len(others) == 1:
        return others[0]
    listed = textwrap.shorten(", ".join(names), 200, placeholder=" ...") or "(none)"
    raise UserError(f"{table} has the columns {listed}; a column path was expected, so rename that of the paths.")


def _by_folded_name(names: list[str]) -> dict[str, int]:
    """The positions of columns by their names without case, spaces and underscores."""
    found: dict[str, int] = {}
    for at, name in enumerate(names):
        found.setdefault(re.sub(r"[\s_.-]+", "", name.lower()), at)
    return found


def _advice(names: list[str], beginning: list[list[str]], path: int, left: list[int]) -> str:
    """What to do about a table without columns of known names."""
    values = {at: {row[at] for row in beginning if at < len(row)} for at in left}
    one_hot = [names[at] for at in left if values[at] and {value.lower() for value in values[at]} <= ONE_HOT]
    if Path(names[0]).suffix.lower() in IMAGE_SUFFIXES:
        return "path,label[,split] were expected in its first line, so add such a line above the first image."
    if path >= 0 and len(one_hot) > 1:
        shown = ", ".join(one_hot[:4])
        return (
            f"one label per image was expected, and {shown} look like one column per class: add a column label with the "
            "name of the column that is set (with pandas: table[columns].idxmax(axis=1))."
        )
    if len(names) > 1:
        return "path,label[,split] were expected in its first line; name yours with --path-column and --label-column."
    return "path,label[,split] were expected in its first line, separated by a comma, semicolon, tab or |."


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _existing(table: Path, paths: list[str], notes: list[Note]) -> list[str]:
    """The paths, changed so that they exist, if none of them exists as it is; relative to the folder of the table.

    Raises:
        UserError: none exists, and no change makes all of them exist.
    """
    if any((table.parent / path).exists() for path in paths):  # those that do not exist are reported as unreadable
        return paths
    found: list[str] | None = None
    # Without what points to a place of another machine at its beginning.
    slashed = [path.replace("\\", "/").removeprefix("file://") for path in paths]
    for base in (table.parent, Path.cwd(), *list(table.absolute().parent.parents)[:3]):
        if all((base / path).is_file() for path in slashed):
            found = [path if base == table.parent else os.path.relpath(base / path, table.parent) for path in slashed]
            break
    num_found = 0
    if found is None:
        guesses = _by_name(table.parent, slashed)
        num_found = sum(guess is not None for guess in guesses)
        if num_found == len(paths) and len(set(guesses)) == len(paths):
            found = [guess for guess in guesses if guess is not None]
    if found is None:
        place, guess = next(((p, g) for p, g in zip(paths, guesses, strict=True) if g is not None), (paths[0], None))
        most = f"{num_found:,} would, as {guess} for {place}" if guess else "nor do files of these names below it"
        raise UserError(
            f"None of the paths in {table} ({len(paths):,}) exists, such as {paths[0]!r}, from the folder {table.parent}; "
            f"{most}; correct the paths, or move the table to where they begin."
        )
    notes.append(
        Note(
            logging.WARNING,
            f"None of the paths in {table} exists as it is written, so other files of these names are used: {found[0]!r} "
            f"for {paths[0]!r}, and so on.",
        )
    )
    return found


def _by_name(folder: Path, paths: list[str]) -> list[str | None]:
    """For each path the file below `folder` that has the most of its last names, with or without its suffix.

    None where there is no such file, or several, or where more or fewer folders would have to be taken away than for
    the first path.
    """
    by_stem: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for file in itertools.islice(files_below(folder), MAX_FILES):
        if file.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(file.name):
            parts = file.relative_to(folder).parts
            by_stem[_folded(file.stem)].append(parts)
    found: list[str | None] = []
    first_left: int | None = None
    for path in paths:
        names = [name for name in path.split("/") if name not in ("", ".", "..")]
        if not names:
            found.append(None)
            continue
        has_suffix = Path(names[-1]).suffix.lower() in IMAGE_SUFFIXES
        stem = names[-1][: -len(Path(names[-1]).suffix)] if has_suffix else names[-1]
        ranked: defaultdict[int, list[tuple[str, ...]]] = defaultdict(list)
        for parts in by_stem.get(_folded(stem), ()):
            above = zip(reversed(names[:-1]), reversed(parts[:-1]), strict=False)
            same = sum(1 for _ in itertools.takewhile(lambda pair: _folded(pair[0]) == _folded(pair[1]), above))
            ranked[same].append(parts)
        best = ranked[max(ranked)] if ranked else []
        left = len(names) - 1 - max(ranked, default=0)
        first_left = left if first_left is None else first_left
        found.append("/".join(best[0]) if len(best) == 1 and left == first_left else None)
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
