"""The weights that a run ends with: the frozen phase's, the fine-tuned ones, or between them, by the validation images.

Weights between those of a head on a frozen network and the fine-tuned ones are often better than both: Wortsman et al.,
"Robust fine-tuning of zero-shot models", 2022, arXiv:2109.01903.
"""

import logging
import math

import numpy as np

from transfer_learning.training.phases import ActivePhase, evaluate
from transfer_learning.training.state import TrainingState

logger = logging.getLogger(__name__)

PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the way from the frozen phase's weights to the fine-tuned ones


def choose_final_weights(active: ActivePhase, monitor: str) -> list[dict]:
    """Gives the network the best of several weights, by `monitor`, and equal ones by the lower loss.

    Args:
        active: the finished fine-tune phase, which knows the weights that it started from.
        monitor: "val_loss" or "val_accuracy".

    Returns:
        One row per candidate: ``fine_tuned`` (a number of PARTS), ``val_loss``, ``val_accuracy``, ``chosen``.
    """
    rows = []
    for part in PARTS:
        _assign(active, part)
        loss, accuracy = evaluate(active)
        rows.append({"fine_tuned": part, "val_loss": loss, "val_accuracy": accuracy, "chosen": False})
    finite = [row for row in rows if math.isfinite(row["val_loss"])]
    sign = -1 if monitor.endswith("accuracy") else 1
    best = min(finite, key=lambda row: (sign * row[monitor], row["val_loss"]))
    best["chosen"] = True
    _assign(active, best["fine_tuned"])
    active.keep_best()
    active.initial = []  # no checkpoint needs them any more
    logger.info(describe_choice(rows, monitor))
    return rows


def describe_choice(rows: list[dict], monitor: str) -> str:
    """``Final weights: fine-tuned (val_loss 0.31; frozen phase 0.42, halfway 0.33).``"""
    names = {0.0: "the frozen phase", 0.25: "a quarter", 0.5: "halfway", 0.75: "three quarters", 1.0: "fine-tuned"}
    best = next(row for row in rows if row["chosen"])
    others = [f"{names[row['fine_tuned']]} {row[monitor]:.4f}" for row in rows if row is not best]
    name = names[best["fine_tuned"]]
    between = "" if best["fine_tuned"] in (0.0, 1.0) else " from the frozen phase's to the fine-tuned ones"
    return f"Final weights: {name}{between} ({monitor} {best[monitor]:.4f}; {', '.join(others)})."


def note_start(active: ActivePhase, state: TrainingState, monitor: str) -> None:
    """Keeps the weights that the fine-tune phase starts from, and their loss if `monitor` is that loss."""
    active.initial = [np.array(variable) for variable in active.weights]
    state.initial_value = evaluate(active)[0] if monitor == "val_loss" else None


def _assign(active: ActivePhase, part: float) -> None:
    """Gives the network the weights `part` of the way from the initial ones to the best ones of the phase."""
    for variable, start, end in zip(active.weights, active.initial, active.best, strict=True):
        value = start + np.asarray(part, start.dtype) * (end - start) if 0 < part < 1 else (end if part else start)
        variable.assign(value)
