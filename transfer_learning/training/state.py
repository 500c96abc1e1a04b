"""The position of a training run: everything but arrays that a resumed run needs."""

import math
from dataclasses import dataclass, field
from typing import Any

from transfer_learning.config import Phase
from transfer_learning.storage.files import renamed

# Times the frozen phase's validation loss; the second half of a schedule gained less where measured. A closed-form head on
# the fine-tuned backbone makes up for more.
HOPELESS, HOPELESS_IF_SOLVED = 1.5, 4.0
EARLIER_NAMES = {"update": "step", "micro_batches": "gradient_accumulation_steps"}


@dataclass
class TrainingState:
    """What the loop knows between two train steps; plain values only, because checkpoints store it as JSON."""

    phase: int = 0  # index of the current phase among those with epochs; their number once all are done
    epoch: int = 0  # finished epochs of this phase
    step: int = 0  # finished train steps of this epoch
    best_value: float | None = None  # best monitored value of this phase
    wait: int = 0  # epochs since the best one, for early stopping
    plateau_wait: int = 0  # epochs since the best one or since plateau last lowered the learning rate
    plateau_scale: float = 1.0  # product of plateau's factors so far
    stopped_by_callback: bool = False  # a Keras callback has set `stop_training` in this phase
    gradient_accumulation_steps: int = 0  # raised after memory ran out; 0: the config's value
    initial_value: float | None = None  # val_loss ahead of fine-tuning; None: another metric, or another phase
    solves_head: bool = False  # at the end of fine-tuning, see final_weights.py
    rate_search: dict[str, Any] = field(default_factory=dict)  # of the fine-tune phase, see rate_search.py
    final_weights: list[dict] = field(default_factory=list)  # candidates, see final_weights.py
    seconds: float = 0.0  # of earlier sessions in this epoch; the only field that no result depends on
    history: list[dict] = field(default_factory=list)  # one row per epoch, over all phases

    @staticmethod
    def from_values(values: dict[str, Any]) -> "TrainingState":
        """Reads the fields from a checkpoint of this or an earlier version; TypeError if they are others."""
        return TrainingState(**renamed(values, EARLIER_NAMES))

    def is_better(self, value: float, monitor: str) -> bool:
        """Whether `value` beats the best of the phase, as Keras' ModelCheckpoint decides; NaN and infinity never do."""
        if not math.isfinite(value):
            return False
        if self.best_value is None:
            return True
        return value > self.best_value if monitor.endswith("accuracy") else value < self.best_value

    def phase_is_over(self, phase: Phase) -> bool:
        """Whether the last epoch is done, patience has run out, or a callback stopped the phase.

        It depends on the state alone, so that a run killed right after that epoch still knows it.
        """
        is_stopped = 0 < phase.patience <= self.wait or self.stopped_by_callback or self.cannot_win(phase)
        return self.epoch >= phase.epochs or is_stopped

    def cannot_win(self, phase: Phase) -> bool:
        """Whether fine-tuning ends early, after half of its epochs or two, because the frozen phase is far ahead."""
        if self.initial_value is None or self.best_value is None or 2 * self.epoch < max(4, phase.epochs):
            return False
        return self.best_value > (HOPELESS_IF_SOLVED if self.solves_head else HOPELESS) * self.initial_value

    def end_epoch(self, row: dict, phase: Phase, monitor: str) -> bool:
        """Appends the epoch's row, moves to the next epoch, and returns whether this one is the best of the phase."""
        is_best = self.is_better(row[monitor], monitor)
        if is_best:
            self.best_value, self.wait, self.plateau_wait = row[monitor], 0, 0
        else:
            self.wait += 1
            self.plateau_wait += 1
        if phase.schedule == "plateau" and self.plateau_wait >= phase.plateau_patience:
            self.plateau_scale *= phase.plateau_factor
            self.plateau_wait = 0
        self.history.append(row)
        self.epoch += 1
        self.step, self.seconds = 0, 0.0
        return is_best

    def end_phase(self) -> None:
        """Moves to the start of the next phase and resets the best value and the counters."""
        self.phase += 1
        self.epoch = self.step = self.wait = self.plateau_wait = 0
        self.plateau_scale, self.best_value, self.stopped_by_callback = 1.0, None, False
        self.initial_value = None
