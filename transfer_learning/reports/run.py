"""The report of a run: reads the JSON, CSV and PNG files of its directory, writes a self-contained `report.html`."""

import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from transfer_learning.cli.parser import command_line
from transfer_learning.errors import UserError
from transfer_learning.evaluation import predictions, rejection
from transfer_learning.evaluation.calibration import fitted_on
from transfer_learning.evaluation.figures.table import FIGURES, MAX_CLASSES
from transfer_learning.machine import monitor
from transfer_learning.machine.resources import usable_cores
from transfer_learning.reports.page import counts_by_class, embedded, number, unseen_class_counts, write_page
from transfer_learning.storage.files import read_json
from transfer_learning.storage.notes import as_note
from transfer_learning.storage.run_directory import RunDir

PHASES = {"frozen": "Frozen phase", "fine_tune": "Fine-tune phase"}
# Fields of evaluation.json; those that are optional are not in every version's.
REQUIRED = ("split", "accuracy", "accuracy_interval", "num_examples", "macro_f1")
OPTIONAL = (
    "macro_f1_interval top_5_accuracy top_5_interval log_loss weights_sha256 soup calibration final_weights "
    "earlier_run folds is_refitted rate_search".split()
)
NUM_NAMED = 50  # files or errors in a table
NUM_WORST = 10


def write_report(run_dir: RunDir) -> Path:
    """Writes `report.html` from the other files of a run directory, atomically, and returns its path; the same files
    give the same bytes. UserError as `page_content`.
    """
    write_page("run.html", page_content(run_dir), run_dir.report)
    return run_dir.report


def page_content(run_dir: RunDir) -> dict[str, Any]:
    """Everything that the template shows, as plain values; the page names missing files that are not essential.
    UserError if there is no `evaluation.json`, or an essential file is damaged.
    """
    config = read_json(run_dir.config)
    if not isinstance(config, dict) or "dataset" not in config:
        raise UserError(
            f"{run_dir.config} names no dataset, so it is not the config of a run; give a directory that `run` made."
        )
    if not run_dir.evaluation.exists():
        raise UserError(
            f"{run_dir.path} has no {run_dir.evaluation.name}, so its run is not finished; continue it with "
            f"{command_line('run', '--resume', str(run_dir.path))}"
        )
    evaluation = read_json(run_dir.evaluation)
    try:
        matrix = np.array(evaluation["confusion_matrix"], dtype=np.int64)
        per_class = evaluation["per_class"]
        class_names = [str(name) for name in evaluation.get("class_names", per_class)]
        content = {name: evaluation[name] for name in REQUIRED} | {name: evaluation.get(name) for name in OPTIONAL}
        content |= {
            "dataset": str(config["dataset"]),
            "backbone": str(config.get("backbone", "")),
            "phases": [(title, evaluation.get(name)) for name, title in PHASES.items()],
            "rejection": rejection.read(evaluation),
            "per_class": [(place, name, per_class[name]) for place, name in enumerate(class_names)],
            "confused": most_confused(matrix, class_names),
            "num_errors": int(matrix.sum() - np.trace(matrix)),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run_dir.evaluation} is not what `run` writes (at {error}); restore it, or evaluate the run again."
        ) from None
    notes = [as_note(note) for note in read_json(run_dir.notes)] if run_dir.notes.exists() else None
    hardware, text_report = monitor.read_hardware(run_dir.hardware), run_dir.classification_report
    manifest, history = _read_csv(run_dir.manifest), _read_csv(run_dir.history)
    if history is not None:
        history = history.map(lambda text: number(float(text)) if "." in text else text)
    has_splits = manifest is not None and {"label", "split"} <= set(manifest.columns)
    has_no_val = manifest is not None and has_splits and not (manifest["split"] == "val").any()
    calibrated_on = evaluation.get("calibrated_on") or ("out-of-fold" if has_no_val else "validation")
    return content | {
        "checkpoint_seconds": {name: (evaluation.get(name) or {}).get("checkpoint_seconds") for name in PHASES},
        "num_worst": NUM_WORST,
        "num_named": NUM_NAMED,
        "max_classes": MAX_CLASSES,
        "history": [] if history is None else history.to_dict("records"),
        "stages": read_json(run_dir.stages).get("stages") if run_dir.stages.exists() else None,
        "figures": _figures(run_dir.figures),
        "errors": _most_confident_errors(run_dir.predictions(content["split"])),
        "calibrated_on": fitted_on(calibrated_on),
        "counts": counts_by_class(manifest, class_names) if has_splits else None,
        "unseen_classes": unseen_class_counts(manifest) if has_splits else {},
        "skipped": _reasons(manifest, "problem"),
        "ignored": _reasons(_read_csv(run_dir.ignored), "reason"),
        "candidates": next((note["candidates"] for note in notes or () if "candidates" in note), None),
        "notes": [note["text"] for note in notes] if notes is not None else None,
        "hardware": monitor.describe(hardware) if len(hardware) else None,
        "exports": read_json(run_dir.export_table, formats=list)["formats"] if run_dir.export_table.exists() else None,
        "warnings": [note["text"] for note in notes or () if note["level"] == "warning"],
        "config": dotted_texts(config),
        "environment": _environment(run_dir.environment),
        "classification_report": text_report.read_text("utf-8", "replace") if text_report.exists() else None,
        "run_path": shlex.quote(str(run_dir.path)),
    }


def most_confused(matrix: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The off-diagonal cells, highest count first: true and predicted class, count, share of the true class (0..1)."""
    errors = matrix * ~np.eye(len(matrix), dtype=bool)
    order = np.argsort(-errors, axis=None, kind="stable")[: NUM_WORST if len(matrix) <= MAX_CLASSES else NUM_NAMED]
    rows = []
    for row, column in zip(*np.unravel_index(order, matrix.shape), strict=True):
        if count := int(errors[row, column]):
            names = {"true": class_names[row], "predicted": class_names[column]}
            rows.append(names | {"count": count, "share": count / matrix[row].sum()})
    return rows


def dotted_texts(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens ``{"a": {"b": 1}}`` to ``{"a.b": "1"}``; lists become comma-separated texts."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            result |= dotted_texts(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = _text(value)
    return result


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "", {}) else str(value)


def _read_csv(path: Path) -> pd.DataFrame | None:
    """Reads all values as texts, since ``01`` and ``nan`` may be class names; None without a file."""
    if not path.exists():
        return None
    try:
        return pd.read_csv(path, dtype=str, na_filter=False, encoding="utf-8", encoding_errors="surrogateescape")
    except ValueError as error:  # also pandas' own errors about CSV
        raise UserError(f"{path} is not a table ({error}), so it is damaged; restore it, or run again.") from None


def _figures(folder: Path) -> list[dict[str, Any]]:
    """Returns the figures, without optional ones that the run has not drawn; ``picture`` is None if it is damaged."""
    shown = {name: row for name, row in FIGURES.items() if not row.optional or (folder / f"{name}.png").exists()}
    with ThreadPoolExecutor(usable_cores()) as threads:  # compressing needs no GIL
        pictures = list(threads.map(lambda name: embedded(folder / f"{name}.png", shown[name].is_photo), shown))
    return [
        {"name": name, "picture": picture, **row._asdict()}
        for (name, row), picture in zip(shown.items(), pictures, strict=True)
    ]


def _most_confident_errors(path: Path) -> list[dict[str, Any]] | None:
    if not path.exists():
        return None
    table = predictions.read(path)
    wrong = table[table["label"] != table["predicted"]]
    worst = wrong.sort_values("confidence", ascending=False, kind="stable").head(NUM_WORST)
    return worst[list(predictions.FIRST_COLUMNS)].to_dict("records")


def _reasons(table: pd.DataFrame | None, column: str) -> list[tuple[str, str]] | None:
    """Returns (file, reason) of the rows that have a reason; None without a table."""
    if table is None or column not in table.columns:
        return None
    files = table["file"].where(table["file"] != "", table["id"]) if "id" in table.columns else table["file"]
    return [(file, reason) for file, reason in zip(files, table[column], strict=True) if reason]


def _environment(path: Path) -> dict[str, Any] | None:
    """Returns plain values, and lists of dicts (the sessions) as tables."""
    if not path.exists():
        return None
    environment = read_json(path)
    lists = {
        name: [dotted_texts(entry) for entry in value]
        for name, value in environment.items()
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value)
    }
    return {
        "values": dotted_texts({name: value for name, value in environment.items() if name not in lists}),
        "tables": {
            name: (list(dict.fromkeys(column for row in rows for column in row)), rows) for name, rows in lists.items()
        },
    }
