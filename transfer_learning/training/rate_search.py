"""The learning rate of the fine-tune phase by a short search, `--find-learning-rate`.

A range test (Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, arXiv:1506.01186) raises the rate from
step to step until the training loss is that of guessing. Rates below that are compared by successive halving (Jamieson
and Talwalkar, 2016, arXiv:1502.07943): each is trained for a few steps, the better half for twice as many, and so on. All
start from the weights that the phase starts from, and end at a rate of 0 as a whole phase does.
"""

import itertools
import logging
import math
from collections.abc import Iterator
from typing import Any

from transfer_learning.config import RunConfig
from transfer_learning.datasets.pipeline import Batch, training_batches
from transfer_learning.training.phases import ActivePhase, evaluate

logger = logging.getLogger(__name__)

RANGE, RANGE_STEPS = 30.0, 40  # the range test goes from 1/30 to 30 times the learning rate of the config
SMOOTHED = 5  # steps over which its loss is averaged
FACTORS = (0.1, 0.3, 1.0, 3.0)  # of that learning rate, which are compared
FIRST_STEPS = 16  # of each in the first round


def find_learning_rate(active: ActivePhase, config: RunConfig) -> dict[str, Any]:
    """Searches the learning rate of a phase that has not begun, and leaves the phase as it was.

    The same arguments give the same rate, so a run that is stopped in the search makes it again.

    Returns:
        Plain numbers: ``range_test``, a list of ``learning_rate`` and training ``loss`` of each step; ``rounds``, a list of
        ``learning_rate``, ``steps`` and ``val_loss`` (None: not finite); ``learning_rate``, the best one of the last round;
        that of the config if all have diverged.
    """
    given, start = active.settings.learning_rate, active.arrays()
    logger.info(f"Searching the learning rate of phase {active.name}, from {FACTORS[0] * given:g} on.")
    rates = [given * RANGE ** (2 * step / (RANGE_STEPS - 1) - 1) for step in range(RANGE_STEPS)]
    range_test: list[dict[str, float]] = []
    for loss, rate in zip(_losses(active, config, rates), rates, strict=True):
        range_test.append({"learning_rate": rate, "loss": loss})
        last = [row["loss"] for row in range_test[-SMOOTHED:]]
        guessing = max(math.log(active.num_classes), 2 * range_test[0]["loss"])
        if not math.isfinite(loss) or (len(last) == SMOOTHED and sum(last) / SMOOTHED > guessing):
            break
    highest = range_test[-1]["learning_rate"]
    left = [factor * given for factor in FACTORS if factor * given < highest] or [FACTORS[0] * given]
    rounds: list[dict[str, Any]] = []
    steps = FIRST_STEPS
    while len(left) > 1:
        found = {}
        for rate in left:
            active.assign(start)
            for _ in _losses(active, config, [rate * (1 - step / steps) for step in range(steps)]):
                pass
            val_loss = evaluate(active)[0]
            found[rate] = val_loss if math.isfinite(val_loss) else math.inf
            rounds.append(
                {"learning_rate": rate, "steps": steps, "val_loss": val_loss if found[rate] < math.inf else None}
            )
        left = sorted(left, key=found.__getitem__)[: len(left) // 2]
        steps *= 2
        if found[left[0]] == math.inf:
            left = [given]
    active.assign(start)
    losses = ", ".join(
        f"{row['learning_rate']:g}: {'diverged' if row['val_loss'] is None else format(row['val_loss'], '.4f')}"
        for row in rounds
    )
    logger.info(f"Learning rate of phase {active.name}: {left[0]:g} (val_loss after a few steps: {losses}).")
    return {
        "range_test": [row for row in range_test if math.isfinite(row["loss"])],
        "rounds": rounds,
        "learning_rate": left[0],
    }


def _losses(active: ActivePhase, config: RunConfig, rates: list[float]) -> Iterator[float]:
    """Makes a train step with each of these rates, and yields the loss of its batch before it."""
    for (inputs, labels), rate in zip(endless_batches(active, config), rates, strict=False):
        active.metrics.reset()
        active.train_steps(inputs, labels, [rate])
        yield active.metrics.result()["loss"]


def endless_batches(active: ActivePhase, config: RunConfig) -> Iterator[Batch]:
    """The training batches of epoch 0, 1, 2, ... of a phase."""
    for epoch in itertools.count():
        yield from training_batches(
            active.train, config.batch_size, config.seed, epoch, augmentation=active.augmentation, flip=config.flip
        )
