"""The learning rate as an exact function of the update."""

import math

from transfer_learning.config import Phase


def learning_rate(phase: Phase, update: int, updates_per_epoch: int, plateau_scale: float = 1.0) -> float:
    """Returns the learning rate of one update.

    Args:
        update: 0 or more, counted from the start of the phase.
        plateau_scale: what schedule "plateau" has lowered the rate to so far, as a fraction.

    The rate rises linearly over the warm-up, to its full height at the warm-up's last update, and then stays
    ("constant", "plateau") or falls along half a cosine to zero behind the last update ("cosine"; Loshchilov and
    Hutter, "SGDR", 2017, without restarts).
    """
    warmup = round(phase.warmup_epochs * updates_per_epoch)
    if update < warmup:
        return phase.learning_rate * (update + 1) / warmup
    if phase.schedule == "cosine":
        total = phase.epochs * updates_per_epoch
        return phase.learning_rate * 0.5 * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))
    return phase.learning_rate * plateau_scale
