"""Best epoch, early stopping and plateau, decided from a row of monitored values."""

import math

import pytest

from transfer_learning.config import Phase
from transfer_learning.training.state import TrainingState


def best_epochs(values, monitor="val_loss", **options):
    """Feeds the values to a phase; returns the epochs that were the best so far, how many ran, and the last state."""
    phase, state, best = Phase(epochs=len(values), **options), TrainingState(), []
    for epoch, value in enumerate(values, start=1):
        if state.phase_is_over(phase):
            break
        if state.end_epoch({monitor: value}, phase, monitor):
            best.append(epoch)
    return best, len(state.history), state


@pytest.mark.parametrize(
    ("monitor", "values", "expected"),
    [
        ("val_loss", [3, 2, 4, 1], [1, 2, 4]),
        ("val_loss", [2, 2, 2], [1]),  # equal is not better
        ("val_accuracy", [0.1, 0.3, 0.2, 0.3, 0.4], [1, 2, 5]),
        ("val_loss", [math.nan, 5, math.nan, 4], [2, 4]),  # a first NaN does not stay the best
        ("val_loss", [math.inf, 5, -math.inf], [2]),
        ("val_accuracy", [math.inf, 0.5], [2]),
        ("val_accuracy", [math.nan, math.nan], []),
    ],
)
def test_the_best_epoch_is_the_one_that_beats_all_before(monitor, values, expected):
    assert best_epochs(values, monitor)[0] == expected


@pytest.mark.parametrize(
    ("patience", "values", "num_epochs"),
    [
        (0, [1, 2, 3, 4, 5], 5),  # never
        (1, [1, 2, 3, 4, 5], 2),
        (2, [1, 2, 0, 4, 5, 6], 5),  # a better value resets the count
        (2, [math.nan, math.nan, 1], 2),
        (9, [1, 2, 3], 3),
    ],
)
def test_early_stopping(patience, values, num_epochs):
    assert best_epochs(values, patience=patience)[1] == num_epochs


def test_the_plateau_lowers_the_rate_once_for_each_stall_and_never_raises_it():
    phase, state, scales = (
        Phase(epochs=9, schedule="plateau", plateau_patience=2, plateau_factor=0.5),
        TrainingState(),
        [],
    )
    for value in [5, 6, 7, 8, 9, 4, 5, 6, 3]:
        state.end_epoch({"val_loss": value}, phase, "val_loss")
        scales.append(state.plateau_scale)
    assert scales == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125]


def test_a_new_phase_knows_nothing_of_the_best_before():
    state = best_epochs([1, 2], patience=1, schedule="plateau", plateau_patience=1)[2]
    state.end_phase()
    assert state == TrainingState(phase=1, history=state.history)
    assert len(state.history) == 2


def test_the_state_of_an_earlier_version_is_read_by_its_earlier_names():
    state = TrainingState.from_values({"phase": 1, "update": 3, "micro_batches": 2})
    assert state == TrainingState(phase=1, step=3, gradient_accumulation_steps=2)
    with pytest.raises(TypeError):
        TrainingState.from_values({"colour": 1})


@pytest.mark.parametrize(
    ("values", "initial", "solves_head", "num_epochs"),
    [
        ([2, 2, 2, 2], 1.0, False, 2),
        ([1.4, 1.4, 1.4, 1.4], 1.0, False, 4),
        ([2, 2, 2, 2], None, False, 4),
        ([2, 0.9, 2, 2], 1.0, False, 4),
        ([2, 2, 2, 2], 1.0, True, 4),
        ([9, 5, 2, 2], 1.0, True, 2),
    ],
)
def test_fine_tuning_far_behind_the_frozen_phase_ends_after_half_of_its_epochs(
    values, initial, solves_head, num_epochs
):
    phase, state = Phase(epochs=4), TrainingState(initial_value=initial, solves_head=solves_head)
    while not state.phase_is_over(phase):
        state.end_epoch({"val_loss": values[state.epoch]}, phase, "val_loss")
    assert state.epoch == num_epochs
    state.end_phase()
    assert state.initial_value is None
