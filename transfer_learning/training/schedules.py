"""The learning rate as an exact function of the update."""

import math

from transfer_learning.config import Phase


def learning_rate(phase: Phase, update: int, updates_per_epoch: int, plateau_scale: float = 1.0) -> float:
    """Returns the learning rate of one update.

    * "constant" and "plateau" rise linearly over the warm-up, to full height at its last update, and stay there.
    * "cosine" rises likewise, and falls along half a cosine to zero behind the last update (Loshchilov and Hutter,
      "SGDR", 2017, without restarts).
    * "triangular2" goes up and down in triangles, each half as high as the one before (Smith, "Cyclical Learning Rates",
      2017).
    * "one_cycle" rises along half a cosine over the warm-up and falls along another one to the end, far below where it
      began (Smith and Topin, "Super-Convergence", 2018); momentum is not cycled.

    Args:
        update: 0 or more, counted from the start of the phase.
        plateau_scale: what schedule "plateau" has lowered the rate to so far, as a fraction.
    """
    total = phase.epochs * updates_per_epoch
    if phase.schedule == "triangular2":
        triangle, position = divmod(update / (phase.cycle_epochs * updates_per_epoch), 1.0)
        height = (1 - abs(2 * position - 1)) * 0.5**triangle
        return phase.lowest_rate + (phase.learning_rate - phase.lowest_rate) * height
    if phase.schedule == "one_cycle":
        first = phase.learning_rate / phase.start_divisor
        top = phase.warmup_epochs * updates_per_epoch - 1  # the update of the highest rate, which may lie between two
        if update < top:
            return _along_cosine(first, phase.learning_rate, update / top)
        top = max(top, 0)
        return _along_cosine(phase.learning_rate, first / phase.end_divisor, (update - top) / max(total - 1 - top, 1))
    warmup = round(phase.warmup_epochs * updates_per_epoch)
    if update < warmup:
        return phase.learning_rate * (update + 1) / warmup
    if phase.schedule == "cosine":
        return _along_cosine(phase.learning_rate, 0.0, (update - warmup) / (total - warmup))
    return phase.learning_rate * plateau_scale


def _along_cosine(start: float, end: float, part: float) -> float:
    """From `start` to `end`, slowly at first and at last; `part` of the way, 0 to 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * part))
