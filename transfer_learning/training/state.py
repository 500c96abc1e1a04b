"""Where a training stands: everything, apart from the arrays of a phase, that a resumed run has to know."""

import math
from dataclasses import dataclass, field

from transfer_learning.config import Phase


@dataclass
class TrainingState:
    """The position and the memory of the loop; `checkpoint.py` keeps it as JSON, so it holds plain values only."""

    phase: int = 0  # index into the phases that are trained; their number when all are done
    epoch: int = 0  # epochs of this phase that are done
    update: int = 0  # updates of this epoch that are done
    best_value: float | None = None  # of the monitored value, in this phase
    wait: int = 0  # epochs since the best, for early stopping
    plateau_wait: int = 0  # epochs since the best or the last lowering
    plateau_scale: float = 1.0  # what the plateau has lowered the rate to
    stopped_by_callback: bool = False  # a Keras callback has set `stop_training` in this phase
    gradient_accumulation_steps: int = 0  # that a batch is cut into since memory ran out; 0: as the config has it
    seconds: float = 0.0  # that earlier sessions spent on this epoch; the one field that no result depends on
    history: list[dict] = field(default_factory=list)  # one row an epoch, over all phases

    def is_better(self, value: float, monitor: str) -> bool:
        """Whether `value` beats the best of the phase, as Keras' ModelCheckpoint decides it; NaN and infinity never do."""
        if not math.isfinite(value):
            return False
        if self.best_value is None:
            return True
        return value > self.best_value if monitor.endswith("accuracy") else value < self.best_value

    def phase_is_over(self, phase: Phase) -> bool:
        """Whether the last epoch is done, or the best one lies `patience` epochs back. A function of the state alone,
        so that a run that is killed right behind that epoch knows it too."""
        return self.epoch >= phase.epochs or 0 < phase.patience <= self.wait or self.stopped_by_callback

    def end_epoch(self, row: dict, phase: Phase, monitor: str) -> bool:
        """Moves to the next epoch, and returns whether this one was the best of the phase so far."""
        value = row[monitor]
        is_best = self.is_better(value, monitor)
        if is_best:
            self.best_value, self.wait, self.plateau_wait = value, 0, 0
        else:
            self.wait += 1
            self.plateau_wait += 1
        if phase.schedule == "plateau" and self.plateau_wait >= phase.plateau_patience:
            self.plateau_scale *= phase.plateau_factor
            self.plateau_wait = 0
        self.history.append(row)
        self.epoch += 1
        self.update, self.seconds = 0, 0.0
        return is_best

    def end_phase(self) -> None:
        """Moves to the start of the next phase, which knows nothing of this one's best."""
        self.phase += 1
        self.epoch = self.update = self.wait = self.plateau_wait = 0
        self.plateau_scale, self.best_value, self.stopped_by_callback = 1.0, None, False
