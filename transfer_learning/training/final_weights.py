"""The weights that a run ends with: the frozen phase's, the fine-tuned ones, between them, or their moving average.

The validation images decide. Weights between those of a head on a frozen network and the fine-tuned ones are often
better than both: Wortsman et al., "Robust fine-tuning of zero-shot models", 2022, arXiv:2109.01903. A few epochs change
the backbone more than they train the head, so the closed-form head on the fine-tuned backbone is a candidate too.
"""

import logging
from collections.abc import Callable

import keras
import numpy as np

from transfer_learning.config import RunConfig
from transfer_learning.evaluation.calibration import fitted_temperature
from transfer_learning.evaluation.intervals import standard_error
from transfer_learning.training.phases import ActivePhase, evaluate, evaluated
from transfer_learning.training.state import TrainingState

logger = logging.getLogger(__name__)

# Parts of the way from the frozen phase's weights to the fine-tuned ones
NAMES = {
    0.0: "the frozen phase",
    0.25: "a quarter of the way to fine-tuned",
    0.5: "halfway to fine-tuned",
    0.75: "three quarters of the way to fine-tuned",
    1.0: "fine-tuned",
}
PARTS = tuple(NAMES)
SOLVED_PARTS = (0.5, 1.0)  # whose backbone gets a closed-form head, too: a pass over the training images each
# Standard errors by which others have to beat the usual weights. One is the rule of Breiman et al., CART, 1984, section
# 3.4; another one because the best epoch was chosen on the same images, which the head can also train on if it wins.
MARGIN = 2.0
# Fewer validation images than FEW do not compare trained heads, of which one or the other would win by chance. Where they
# are also of fewer groups than FEW_GROUPS (an image alone is one), a closed-form head on another backbone is not usual and
# has to beat others by AHEAD standard errors: crops of a few photos train a backbone badly.
FEW, FEW_GROUPS = 20, 10
AHEAD = 1.0
# Scale of the prior of the temperature of each candidate, larger than that of the chosen one: weights should win because they
# separate the classes better, and not because they need no temperature.
CANDIDATE_SPREAD = 0.46


def choose_final_weights(
    active: ActivePhase,
    monitor: str,
    solve_head: Callable[[], keras.layers.Layer] | None = None,
    groups: np.ndarray | None = None,
) -> list[dict]:
    """Gives the network the best of several weights, by the validation images.

    The usual ones are those with a closed-form head on the fine-tuned backbone: they do not depend on how far a few epochs
    have trained the head, and were better on test images in docs/defaults.md also where validation images could not
    decide. Others have to be clearly better; with few validation images only the frozen phase is another one. Without such
    heads, or with few validation images of few groups, the frozen phase's weights are the usual ones.

    They are compared by the log loss of calibrated probabilities (see `fitted_temperature`), because the classifier will
    be calibrated too; or by accuracy, equal ones by that loss.

    Args:
        active: the finished fine-tune phase, which knows the weights that it started from.
        monitor: "val_loss" or "val_accuracy".
        solve_head: sets the head to the closed form on the present backbone, and returns the layer of its logits, which
            get the spread of the frozen phase's; None: no such candidates.
        groups: of the validation images, see `fitted_temperature` and `standard_error`.

    Returns:
        One row per candidate: ``fine_tuned`` (a number of PARTS), ``is_average`` (the moving average of fine-tuning),
        ``is_solved`` (with a closed-form head), ``val_loss`` (calibrated), ``val_accuracy``, ``gain`` (of what is compared,
        against the usual ones), ``standard_error`` (of the gain), ``chosen``.
    """
    labels = active.val.labels
    is_few = len(labels) < FEW
    candidates = [(part, False, False) for part in PARTS]
    candidates += [(1.0, True, False)] if active.settings.ema_decay else []
    if solve_head:
        candidates = (candidates[:1] if is_few else candidates) + [(part, False, True) for part in SOLVED_PARTS]
    rows: list[dict] = []
    compared: list[np.ndarray] = []  # by candidate: the loss or the error of each validation image
    solved: dict[float, list[np.ndarray]] = {}
    of_frozen = np.zeros(0)
    for part, is_average, is_solved in candidates:
        _assign(active, part, is_average)
        layer = solve_head() if is_solved and solve_head else None
        _, _, logits = evaluated(active)
        if layer:
            logits = scale_logits(layer, of_frozen, logits) * logits
            solved[part] = [np.array(variable) for variable in active.weights]
        elif not rows:
            of_frozen = logits
        losses = calibrated_losses(logits, labels, groups)
        wrong = logits.argmax(axis=1) != labels
        compared.append(losses if monitor == "val_loss" else wrong.astype(np.float64))
        row = {"fine_tuned": part, "val_loss": losses.mean(), "val_accuracy": 1 - wrong.mean()}
        kind = {"is_average": is_average, "is_solved": is_solved, "chosen": False}
        rows.append({name: float(value) for name, value in row.items()} | kind)

    values = [(loss.mean(), row["val_loss"]) for loss, row in zip(compared, rows, strict=True)]
    num_groups = len(labels) if groups is None else len(np.unique(groups))
    heads = [place for place, row in enumerate(rows) if row["is_solved"] and np.isfinite(values[place]).all()]
    usual = 0 if is_few and num_groups < FEW_GROUPS else min(heads, key=values.__getitem__, default=0)
    better = []
    for place, row in enumerate(rows):
        gains = compared[usual] - compared[place]
        row |= {"gain": float(gains.mean()), "standard_error": standard_error(gains, groups)}
        if row["gain"] > (AHEAD if row["is_solved"] else MARGIN) * row["standard_error"]:
            better.append(place)
    best = rows[min(better, key=values.__getitem__, default=usual)]
    best["chosen"] = True
    if best["is_solved"]:
        for variable, array in zip(active.weights, solved[best["fine_tuned"]], strict=True):
            variable.assign(array)
    else:
        _assign(active, best["fine_tuned"], best["is_average"])
    active.keep_best()
    active.initial = []  # no checkpoint needs them any more
    logger.info(describe_choice(rows, usual, monitor))
    return rows


def scale_logits(layer: keras.layers.Layer, before: np.ndarray, after: np.ndarray) -> float:
    """Gives the logits of a layer the spread of others, and returns the factor; 1 if one of both is 0 or not finite.

    A closed form takes its scale from leave-one-out predictions, and a fine-tuned backbone knows the images that are left
    out: the confidences on other images would all be near 1, and few validation images cannot correct that.

    Args:
        before: logits (n, classes) whose spread it gets: the standard deviation around the mean of each image.
        after: of the same images, by this layer.
    """
    wanted, found = ((logits - logits.mean(axis=1, keepdims=True)).std() for logits in (before, after))
    factor = float(wanted / found) if 0 < wanted < np.inf and 0 < found < np.inf else 1.0
    for variable in layer.weights:
        variable.assign(factor * variable)
    return factor


def keeps_backbone(config: RunConfig, rows: list[dict]) -> bool:
    """Whether a run ends with the backbone that it began with: it has no fine-tune phase, or the frozen phase's weights, the
    first of the rows of `choose_final_weights`, were chosen.
    """
    return not config.fine_tune.epochs or bool(rows and rows[0]["chosen"])


def describe_choice(rows: list[dict], usual: int, monitor: str) -> str:
    """``Final weights: fine-tuned (calibrated val_loss 0.31; two standard errors better than the frozen phase, 0.42).``"""
    heads = [" with a closed-form head" if row["is_solved"] else "" for row in rows]
    names = [
        "moving average" if row["is_average"] else NAMES[row["fine_tuned"]] + head
        for row, head in zip(rows, heads, strict=True)
    ]
    best = next(row for row in rows if row["chosen"])
    reason = "no others are two standard errors better"
    if best is not rows[usual]:
        margin = "a standard error" if best["is_solved"] else "two standard errors"
        reason = f"{margin} better than {names[usual]}, {rows[usual][monitor]:.4f}"
    metric = f"{'calibrated ' if monitor == 'val_loss' else ''}{monitor} {best[monitor]:.4f}"
    return f"Final weights: {names[rows.index(best)]} ({metric}; {reason})."


def calibrated_losses(logits: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """The log loss of each example, (n,), after the most probable temperature of all of them."""
    from scipy.special import log_softmax

    temperature, _ = fitted_temperature(logits, labels, groups, spread=CANDIDATE_SPREAD)
    return -log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels]


def note_start(active: ActivePhase, state: TrainingState, monitor: str) -> None:
    """Keeps the weights that the fine-tune phase starts from, and their loss if `monitor` is that loss."""
    active.initial = [np.array(variable) for variable in active.weights]
    state.initial_value = evaluate(active)[0] if monitor == "val_loss" else None


def _assign(active: ActivePhase, part: float, is_average: bool) -> None:
    """Gives the network the weights `part` of the way from the initial ones to the best ones of the phase."""
    for variable, start, end in zip(active.weights, active.initial, active.best, strict=True):
        value = start + np.asarray(part, start.dtype) * (end - start) if 0 < part < 1 else (end if part else start)
        variable.assign(value)
    if is_average:
        active.optimizer.finalize_variable_values([variable for variable in active.weights if variable.trainable])
