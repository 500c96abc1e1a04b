"""Which weights a run ends with: fine-tuned ones only if the validation images say so clearly."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from transfer_learning.config import Phase
from transfer_learning.datasets.pipeline import Examples
from transfer_learning.machine.strategy import ALONE
from transfer_learning.training import final_weights
from transfer_learning.training.final_weights import choose_final_weights
from transfer_learning.training.optimizers import make_optimizer


def finished_phase(frozen, fine_tuned, labels):
    """A phase whose network moves from the logits `frozen` to the logits `fine_tuned` while its only weight goes to 1."""
    weight, scale = keras.Variable(1.0), keras.Variable(1.0)

    def eval_step(inputs, labels):
        logits = scale * ((1 - weight) * inputs[:, 0] + weight * inputs[:, 1])
        return np.zeros(len(labels)), np.zeros(len(labels)), logits

    rows = np.arange(len(labels))
    examples = Examples(np.stack([frozen, fine_tuned], axis=1), rows, labels, rows.astype(object))
    phase = SimpleNamespace(
        settings=Phase(),
        val=examples,
        eval_step=eval_step,
        eval_batch_size=16,
        workers=ALONE,
        weights=[weight],
        scale=scale,
        initial=[np.float32(0)],
        best=[np.float32(1)],
    )
    phase.keep_best = lambda: setattr(phase, "best", [np.array(weight)])
    return phase


def logits_with_errors(labels, wrong, scale=4.0):
    """Two classes; the images at the positions `wrong` get the other class."""
    predicted = np.where(np.isin(np.arange(len(labels)), wrong), 1 - labels, labels)
    noise = np.random.default_rng(0).normal(size=(len(labels), 2))
    return (scale * np.eye(2)[predicted] + noise).astype(np.float32)


def solved_head(phase, place=1.0):
    """Gives the weight a value that stands for a closed form; 1: with the logits `fine_tuned`."""
    phase.weights[0].assign(place)
    return SimpleNamespace(weights=[phase.scale])


@pytest.mark.parametrize(
    ("num_images", "num_groups", "wrong", "is_chosen"),
    [
        (16, 4, range(1, 9), False),
        (16, 4, range(4, 11), False),
        (16, 4, range(1), True),
        (16, 16, range(1, 9), True),
        (9, 9, range(1, 9), False),
        (24, 4, range(1, 9), True),
    ],
    ids=["few, equal", "few, hardly better", "few, clearly better", "few, each alone", "too few", "more"],
)
def test_with_few_validation_images_of_few_groups_a_closed_form_head_has_to_be_ahead(
    num_images, num_groups, wrong, is_chosen
):
    labels, groups = np.arange(num_images, dtype=np.int32) % 2, np.arange(num_images) * num_groups // num_images
    frozen = logits_with_errors(labels, range(8))
    phase = finished_phase(frozen, logits_with_errors(labels, wrong), labels)
    phase.best = [np.float32(0)]
    rows = choose_final_weights(phase, "val_accuracy", lambda: solved_head(phase), groups)
    assert any(row["is_solved"] and row["chosen"] for row in rows) == is_chosen


LABELS = np.arange(100, dtype=np.int32) % 2
MANY, FEW = range(30), range(6)


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
@pytest.mark.parametrize(
    ("frozen", "fine_tuned", "is_frozen"),
    [(MANY, FEW, False), (FEW, MANY, True), (FEW, FEW, True), (MANY, range(3, 32), True)],
    ids=["clearly better", "worse", "equal", "hardly better"],
)
def test_fine_tuned_weights_are_taken_only_if_they_are_clearly_better(frozen, fine_tuned, is_frozen, monitor):
    phase = finished_phase(logits_with_errors(LABELS, frozen), logits_with_errors(LABELS, fine_tuned), LABELS)
    rows = choose_final_weights(phase, monitor)
    assert [row["fine_tuned"] for row in rows if row["chosen"]] == ([0.0] if is_frozen else [float(phase.best[0])])
    assert (phase.best[0] == 0) == is_frozen == (float(phase.weights[0]) == 0)
    assert phase.initial == []


def test_images_of_few_groups_do_not_show_that_fine_tuned_weights_are_better():
    """24 fewer errors of 100 images, but in one of four groups."""
    groups = np.arange(100) // 25
    phase = finished_phase(logits_with_errors(LABELS, range(25)), logits_with_errors(LABELS, range(1)), LABELS)
    assert choose_final_weights(phase, "val_accuracy", groups=groups)[0]["chosen"] is True
    phase = finished_phase(logits_with_errors(LABELS, range(25)), logits_with_errors(LABELS, range(1)), LABELS)
    assert choose_final_weights(phase, "val_accuracy")[0]["chosen"] is False


def test_overconfidence_of_the_better_weights_does_not_count_against_them():
    """Before calibration the log loss of the fine-tuned weights is the higher one, although they err less."""
    labels = LABELS
    confident = logits_with_errors(labels, range(8), scale=60.0)
    phase = finished_phase(logits_with_errors(labels, MANY, scale=1.0), confident, labels)
    assert choose_final_weights(phase, "val_loss")[0]["chosen"] is False


def test_candidates_are_compared_by_how_well_they_separate_few_images_whatever_their_temperature():
    def losses(num_right, margin):
        signs = np.where(np.arange(20) < num_right, 1, -1)
        return final_weights.calibrated_losses(np.float32(signs[:, None] * [margin, 0]), np.zeros(20, int))

    assert losses(19, 0.8).mean() < losses(18, np.log(9)).mean()  # 0.22 and 0.33; as the chosen one is calibrated, 0.34


def test_weights_that_give_nan_are_not_taken():
    broken = np.full((100, 2), np.nan, np.float32)
    phase = finished_phase(logits_with_errors(LABELS, MANY), broken, LABELS)
    assert choose_final_weights(phase, "val_loss")[0]["chosen"] is True


def test_the_moving_average_of_the_weights_is_a_candidate():
    phase = finished_phase(logits_with_errors(LABELS, MANY), logits_with_errors(LABELS, FEW), LABELS)
    weight, phase.best, phase.settings = phase.weights[0], [np.float32(0)], Phase(ema_decay=0.5)
    phase.optimizer = make_optimizer(phase.settings)
    phase.optimizer.build([weight])
    phase.optimizer.learning_rate = 0.0
    for value in (2.0, 0.0):  # averages: 2, then 1
        weight.assign(value)
        phase.optimizer.apply([weight * 0], [weight])
    *rows, average = choose_final_weights(phase, "val_loss")
    assert average["is_average"] and average["chosen"] and not any(row["chosen"] for row in rows)
    assert float(weight) == float(phase.best[0]) == 1.0


@pytest.mark.parametrize(
    ("solved", "is_chosen"),
    [(FEW, True), (range(1, 31), True), (range(45), False)],
    ids=["better", "about equal", "worse"],
)
def test_a_closed_form_head_on_the_fine_tuned_backbone_is_a_candidate(solved, is_chosen):
    """Here the weight stands for the head, and the value 1 for the closed form."""
    phase = finished_phase(logits_with_errors(LABELS, MANY), logits_with_errors(LABELS, solved), LABELS)
    phase.best = [np.float32(0)]
    rows = choose_final_weights(phase, "val_loss", lambda: solved_head(phase))
    assert (
        [row["fine_tuned"] for row in rows if row["is_solved"]] == [0.5, 1.0] == [row["fine_tuned"] for row in rows[5:]]
    )
    assert [row["is_solved"] for row in rows if row["chosen"]] == [is_chosen]
    assert float(phase.weights[0]) == float(phase.best[0]) == is_chosen


@pytest.mark.parametrize(("place", "is_solved"), [(0.9, True), (0.2, False)], ids=["hardly", "clearly"])
def test_fine_tuned_heads_have_to_be_clearly_better_than_a_closed_form(place, is_solved):
    """The closed form has the logits at `place` on the way to the fine-tuned ones, which are the best on all images."""
    phase = finished_phase(logits_with_errors(LABELS, MANY), logits_with_errors(LABELS, [], scale=6.0), LABELS)
    rows = choose_final_weights(phase, "val_accuracy", lambda: solved_head(phase, place))
    assert min(rows, key=lambda row: row["val_loss"])["is_solved"] is False
    assert [row["is_solved"] for row in rows if row["chosen"]] == [is_solved]


@pytest.mark.parametrize(("num_val", "has_trained"), [(final_weights.FEW - 1, False), (final_weights.FEW, True)])
def test_few_validation_images_do_not_compare_trained_heads(num_val, has_trained):
    labels = LABELS[:num_val]
    phase = finished_phase(logits_with_errors(labels, range(8)), logits_with_errors(labels, []), labels)
    rows = choose_final_weights(phase, "val_loss", lambda: solved_head(phase))
    trained = [row for row in rows if row["fine_tuned"] and not row["is_solved"]]
    assert bool(trained) == has_trained and rows[0]["fine_tuned"] == 0 and sum(row["is_solved"] for row in rows) == 2


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [(4.0, 0.25), (0.0, 1.0), (float("nan"), 1.0)],
    ids=["a quarter as confident", "all equal", "not finite"],
)
def test_a_closed_form_head_gets_the_spread_of_the_frozen_logits(frozen, expected):
    """Its own scale comes from images that the fine-tuned backbone knows."""
    without_errors = logits_with_errors(LABELS, [])
    phase = finished_phase(frozen * without_errors, 16 * without_errors, LABELS)
    phase.best = [np.float32(0)]
    choose_final_weights(phase, "val_loss", lambda: solved_head(phase))
    assert float(phase.scale) == pytest.approx(expected)
