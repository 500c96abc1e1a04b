"""The learning rate as an exact function of the train step; a new schedule is one function in the table `SCHEDULES`."""

import math

from transfer_learning.config import Phase


def learning_rate(phase: Phase, step: int, steps_per_epoch: int, plateau_scale: float = 1.0) -> float:
    """The learning rate of a train step, counted from 0 in its phase; `plateau_scale` is the product of the factors of
    plateau so far.
    """
    rate = SCHEDULES[phase.schedule](phase, step, steps_per_epoch)
    return rate if step < round(phase.warmup_epochs * steps_per_epoch) else rate * plateau_scale


def constant(phase: Phase, step: int, steps_per_epoch: int) -> float:
    """Rises linearly over the warm-up and is constant from its last step on."""
    warmup = round(phase.warmup_epochs * steps_per_epoch)
    return phase.learning_rate * (step + 1) / warmup if step < warmup else phase.learning_rate


def cosine(phase: Phase, step: int, steps_per_epoch: int) -> float:
    """Rises linearly over the warm-up, then falls along half a cosine to zero after the last step.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, without restarts.
    """
    warmup, total = round(phase.warmup_epochs * steps_per_epoch), phase.epochs * steps_per_epoch
    if step < warmup:
        return constant(phase, step, steps_per_epoch)
    return _along_cosine(phase.learning_rate, 0.0, (step - warmup) / (total - warmup))


def triangular2(phase: Phase, step: int, steps_per_epoch: int) -> float:
    """Triangles, each half as high as the one before (Smith, "Cyclical Learning Rates", 2017)."""
    triangle, position = divmod(step / (phase.cycle_epochs * steps_per_epoch), 1.0)
    height = (1 - abs(2 * position - 1)) * 0.5**triangle
    return phase.min_learning_rate + (phase.learning_rate - phase.min_learning_rate) * height


def one_cycle(phase: Phase, step: int, steps_per_epoch: int) -> float:
    """Rises along half a cosine over the warm-up, then falls along another one to far below its first value.

    Smith and Topin, "Super-Convergence", 2018; momentum is not cycled.
    """
    first, last_step = phase.learning_rate / phase.div_factor, phase.epochs * steps_per_epoch - 1
    top = phase.warmup_epochs * steps_per_epoch - 1  # position of the highest rate, which may lie between two steps
    if step < top:
        return _along_cosine(first, phase.learning_rate, step / top)
    top = max(top, 0)
    return _along_cosine(phase.learning_rate, first / phase.final_div_factor, (step - top) / max(last_step - top, 1))


def _along_cosine(start: float, end: float, part: float) -> float:
    """Half a cosine from `start` (part 0) to `end` (part 1)."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * part))


SCHEDULES = {  # "plateau" is constant until the monitored value stalls, see state.py
    "constant": constant,
    "cosine": cosine,
    "plateau": constant,
    "triangular2": triangular2,
    "one_cycle": one_cycle,
}
