"""The leaderboard: many runs side by side on one page, in a table per test set, with links to their reports."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from transfer_learning.config import PHASES
from transfer_learning.errors import UserError
from transfer_learning.storage.files import read_json
from transfer_learning.storage.run_directory import RunDir, existing_run_dir

FILE = "leaderboard.html"
FIGURES = ("macro_f1", "log_loss", "num_parameters")  # of evaluation.json


def find_runs(places: Iterable[str]) -> list[Path]:
    """Returns run directories: each place is one, or a folder in which they are searched at any depth.

    Raises:
        UserError: there is nothing at a place, or no run.
    """
    found: list[Path] = []
    for place in places:
        folder = RunDir(place).path
        below = [folder] if RunDir(folder).config.exists() else _runs_below(folder)
        if not below:
            raise UserError(
                f"{place} is not a run directory and holds none; give what `run` printed, or a folder of runs."
            )
        found += below
    return list(dict.fromkeys(found))


def _runs_below(folder: Path) -> list[Path]:
    found = []
    for name, folders, files in os.walk(folder):
        if RunDir(name).config.name in files:
            found.append(Path(name))
            folders.clear()  # a run holds no other runs
        folders.sort()
    return found


def write_leaderboard(paths: Sequence[Path], page: Path) -> Path:
    """Writes the page from the files of these run directories, whatever their state; returns its path."""
    from transfer_learning.reports.page import write_page

    tables: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        row = _row(path, page)
        tables.setdefault(row["test_set"], []).append(row)
    for rows in tables.values():
        rows.sort(key=lambda row: (row["accuracy"] is None, -(row["accuracy"] or 0.0), row["name"]))
    groups = sorted(tables.values(), key=lambda rows: (rows[0]["accuracy"] is None, -len(rows), rows[0]["name"]))
    write_page("leaderboard.html", {"groups": groups, "num_runs": len(paths)}, page)
    return page


def _row(path: Path, page: Path) -> dict[str, Any]:
    """What the page says of a run; a damaged file is its state, not the end of the page."""
    values = ("accuracy", "accuracy_interval", *FIGURES, "calibration_error", "seconds", "num_examples", "image_size")
    texts = dict.fromkeys(("dataset", "backbone", "epochs", "date", "link", "split", "test_set"), "")
    row: dict[str, Any] = {"name": _relative(path, page), **dict.fromkeys(values), **texts, "state": "finished"}
    try:
        run_dir = existing_run_dir(path)
        config = run_dir.read_config()
        name = Path(config.dataset).name if os.path.isabs(config.dataset) else config.dataset
        row |= {"dataset": name, "backbone": config.backbone, "image_size": config.image_size}
        row["epochs"] = " + ".join(str(config.phase(phase).epochs) for phase in PHASES)
        if run_dir.environment.exists():
            sessions = read_json(run_dir.environment, sessions=list)["sessions"]
            row["date"] = str(sessions[0]["started"])[:16].replace("T", " ") if sessions else ""
        row |= _results(run_dir) if run_dir.evaluation.exists() else {"state": _progress(run_dir, config)}
        row["test_set"] = _test_set(run_dir, row["split"] or "test")
        if run_dir.is_finished:
            row["link"] = quote(_relative(run_dir.report, page))
        elif run_dir.evaluation.exists():
            row["state"] = "unfinished: no report"
    except (UserError, OSError, KeyError, TypeError, ValueError) as error:
        row["state"] = f"damaged: {error}"
    return row


def _results(run_dir: RunDir) -> dict[str, Any]:
    evaluation = read_json(run_dir.evaluation, split=str, accuracy=float, accuracy_interval=list, num_examples=int)
    names = ("split", "accuracy", "accuracy_interval", "num_examples")
    phases = [evaluation[name] for name in PHASES if evaluation.get(name)]
    return (
        {name: evaluation[name] for name in names}
        | {name: evaluation.get(name) for name in FIGURES}
        | {
            "calibration_error": (evaluation.get("calibration") or {}).get("error"),
            "seconds": sum(one["seconds"] + one.get("preparation_seconds", 0.0) for one in phases) if phases else None,
            "epochs": "soup" if evaluation.get("soup") else " + ".join(str(one["epochs"]) for one in phases),
        }
    )


def _progress(run_dir: RunDir, config: Any) -> str:
    """``running, epoch 3 of 24``; the file of an epoch is one row longer after each."""
    done = max(0, run_dir.history.read_bytes().count(b"\n") - 1) if run_dir.history.exists() else 0
    return f"{'running' if run_dir.is_in_use else 'unfinished'}, {done} of {config.num_epochs} epochs"


def _test_set(run_dir: RunDir, split: str) -> str:
    """The identity of the images and labels of the evaluation split, "" before they are known."""
    from transfer_learning.datasets.moved import read_manifest

    manifest = read_manifest(run_dir.manifest)
    if manifest is None:
        return ""
    rows = manifest.loc[manifest["split"] == split, ["sha256", "label"]].sort_values(["sha256", "label"])
    return hashlib.sha256(rows.to_csv(index=False).encode("utf-8", "surrogateescape")).hexdigest()


def _relative(path: Path, page: Path) -> str:
    return os.path.relpath(path, page.parent)
