"""history.csv, which is bit-identical after any resume, and timings.csv, both with one row per epoch; and summaries."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from transfer_learning.cli.formatting import counted, duration
from transfer_learning.storage.files import write_text, written_atomically
from transfer_learning.training.state import TrainingState

COLUMNS = ("phase", "epoch", "updates", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy")


def write_history(rows: list[dict], path: Path) -> None:
    """Writes the rows as CSV; each number is the shortest decimal that reads back as the same double."""
    with written_atomically(path) as temporary:
        pd.DataFrame(rows, columns=COLUMNS).to_csv(temporary, index=False, lineterminator="\n")


def add_timing(path: Path, row: dict) -> None:
    """Appends the timing of an epoch, by rewriting the file atomically: a resumed run could not read half a row."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, before + pd.DataFrame([row]).to_csv(header=not before, index=False, lineterminator="\n"))


def phase_results(
    history: list[dict], timings: Path, monitor: str, seconds_of_phases: Mapping[str, float | None]
) -> dict[str, dict]:
    """For each trained phase its number of epochs, the metrics of its best epoch, and times in seconds.

    In `timings`, which `add_timing` wrote, the last row of a repeated epoch counts. What the epochs did not take of
    `seconds_of_phases` are ``preparation_seconds`` (computing cached activations, compiling).
    """
    seconds = pd.read_csv(timings).drop_duplicates("epoch", keep="last") if timings.exists() else None
    results = {}
    for name in dict.fromkeys(row["phase"] for row in history):
        rows = [row for row in history if row["phase"] == name]
        state, best = TrainingState(), rows[0]
        for row in rows:
            if state.is_better(row[monitor], monitor):
                state.best_value, best = row[monitor], row
        results[name] = {"epochs": len(rows), "best_epoch": best["epoch"]}
        for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
            results[name][key] = best[key] if math.isfinite(best[key]) else None
        if seconds is not None:
            of_phase = seconds[seconds["phase"] == name]
            total = float(of_phase["seconds"].sum())
            results[name] |= {
                "seconds": round(total, 3),
                "epoch_seconds": round(total / len(of_phase), 3),
                "preparation_seconds": round(max(0.0, (seconds_of_phases.get(name) or 0.0) - total), 3),
                "checkpoint_seconds": round(float(of_phase["checkpoint_seconds"].sum()), 3),
                "images_per_second": round(float(of_phase["images_per_second"].median()), 1),
            }
    return results


def describe_phase(name: str, result: dict) -> str:
    """``Phase frozen: 3 epochs of 0.4 s on average, after 12 s of preparation (cached activations, compiling).``"""
    epochs = counted(result["epochs"], "epoch")
    if "epoch_seconds" not in result:
        return f"Phase {name}: {epochs}."
    mean = " on average" if result["epochs"] > 1 else ""
    return (
        f"Phase {name}: {epochs} of {duration(result['epoch_seconds'])}{mean}, after "
        f"{duration(result['preparation_seconds'])} of preparation (cached activations, compiling)."
    )
