"""Corrections of a dataset: the table of images to review that `prepare` writes, a person edits and `run` reads.

Columns: id and action; others are information (`prepare` writes label, suggestion, probability, why, sha256). An action
is ``keep``, ``drop``, ``relabel:NAME``, or ``relabel`` for the suggestion. No image file is changed.

An id is a path, so images that have moved have others: then the contents decide, if the table has the column sha256.
"""

import csv
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from transfer_learning.cli.formatting import listed
from transfer_learning.datasets.dataset import Dataset, Example
from transfer_learning.datasets.decoding.decode import content_hash
from transfer_learning.datasets.sources.table import opened
from transfer_learning.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

COLUMNS = ("id", "label", "suggestion", "probability", "why", "action", "sha256")


class Corrections(NamedTuple):
    """The actions of one table."""

    path: Path
    actions: Mapping[str, str]  # id -> keep, drop or relabel:NAME
    contents: Mapping[str, tuple[str, str]] = {}  # id -> SHA-256 and label of the image, where the table has them


def read_corrections(path: str | Path) -> Corrections:
    """Reads a table of corrections, as `prepare` or a spreadsheet writes it; UserError if it is missing, has other
    columns, names an id twice, or has an unknown action.
    """
    path = Path(path)
    actions: dict[str, str] = {}
    contents: dict[str, tuple[str, str]] = {}
    try:
        with opened(path) as text:
            rows = csv.DictReader(text.lines, delimiter=text.separator, strict=True)
            if not {"id", "action"} <= set(rows.fieldnames or ()):
                raise UserError(
                    f"{path} has the columns {', '.join(rows.fieldnames or ()) or '(none)'}; id and action were "
                    "expected in its first line, as `prepare` writes them."
                )
            for row in rows:
                id, action, content = row["id"] or "", _action(row), row.get("sha256")
                if not action:
                    raise UserError(
                        f"{path} line {rows.line_num} has the action {row['action']!r} for {id}; write keep, drop, "
                        "relabel:NAME or, if there is a suggestion, relabel."
                    )
                if id in actions:
                    raise UserError(f"{path} line {rows.line_num} names {id} for the second time; remove one row.")
                actions[id] = action
                if content:
                    contents[id] = content, row.get("label") or ""
    except FileNotFoundError:
        raise UserError(
            f"There is no table {path}; give the path of the corrections.csv that `prepare` wrote."
        ) from None
    except (ValueError, csv.Error, IsADirectoryError) as error:
        raise UserError(
            f"{path} cannot be read as a table ({error}); a CSV file with the columns id and action was expected."
        ) from None
    return Corrections(path, actions, contents)


def apply_corrections(dataset: Dataset, corrections: Corrections) -> tuple[Dataset, dict[str, str]]:
    """Returns the dataset with the new labels, and the reason by the id of each image to drop; UserError for an image
    that is not in the dataset, or a new label that is not one of its classes.
    """
    path, actions = corrections.path, _with_ids_of(dataset, corrections)
    dropped = sorted(id for id, action in actions.items() if action == "drop")
    labels = {id: action.removeprefix("relabel:") for id, action in actions.items() if action.startswith("relabel:")}
    old = {example.id: example.label for example in dataset.examples}
    for id in sorted({*dropped, *labels} - old.keys()):
        raise UserError(
            f"{path} names {id}, and {dataset.name} has no such image (its ids are like {next(iter(old))}); give the "
            "table of this dataset, or remove the row."
        )
    for id, label in labels.items():
        if label not in dataset.class_names:
            raise UserError(
                f"{path} relabels {id} as {label!r}, and {dataset.name} has no such class."
                f"{did_you_mean(label, dataset.class_names)}"
            )
    changed = [id for id, label in labels.items() if label != old[id]]
    examples = tuple(example._replace(label=labels.get(example.id, example.label)) for example in dataset.examples)
    logger.info(
        f"{path.name}: {len(changed):,} of {len(examples):,} images relabelled"
        f"{_named([f'{id} as {labels[id]}' for id in changed])}, {len(dropped):,} dropped{_named(dropped)}, "
        f"{len(actions) - len(dropped) - len(labels):,} unchanged."
    )
    return replace(dataset, examples=examples), dict.fromkeys(dropped, f"dropped by {path.name}")


def _with_ids_of(dataset: Dataset, corrections: Corrections) -> Mapping[str, str]:
    """The actions by the ids that the dataset gives to the same contents, where it has none of theirs."""
    known, actions = {example.id for example in dataset.examples}, corrections.actions
    missing = sorted(id for id, action in actions.items() if action != "keep" and id not in known)
    if not missing or not corrections.contents.keys() >= {*missing}:
        return actions
    by_content: defaultdict[str, list[Example]] = defaultdict(list)
    for example in dataset.examples:
        if example.id not in corrections.contents:
            by_content[content_hash(example.source)].append(example)
    sole = {content for content, examples in by_content.items() if len(examples) == 1}
    new: dict[str, str] = {}
    for id in missing:
        content, label = corrections.contents[id]
        equal = by_content[content]
        if not (same := [example for example in equal if content in sole or example.label == label]):
            return actions
        equal.remove(same[0])
        new[id] = same[0].id
    logger.info(
        f"{corrections.path.name}: {len(new):,} images have the same content under another id, such as {new[missing[0]]} "
        f"instead of {missing[0]}."
    )
    return {new.get(id, id): action for id, action in actions.items()}


def _action(row: Mapping[str, str | None]) -> str:
    """``keep``, ``drop`` or ``relabel:NAME`` of a row; "" for anything else."""
    word, _, name = (row["action"] or "").strip().partition(":")
    word, name = word.strip().lower(), name.strip()
    if word == "relabel":
        name = name or (row.get("suggestion") or "").strip()
        return f"relabel:{name}" if name else ""
    return word if word in ("keep", "drop") and not name else ""


def _named(items: Sequence[str]) -> str:
    return f" ({listed(items)})" if items else ""
