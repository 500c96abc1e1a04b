"""The learning rate is an exact function of the train step."""

import math
from types import SimpleNamespace

import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_learning.config import Phase
from transfer_learning.training.schedules import learning_rate
from transfer_learning.training.state import TrainingState

STEPS_PER_EPOCH = 10


def rates(phase, **options):
    return [learning_rate(phase, step, STEPS_PER_EPOCH, **options) for step in range(phase.epochs * STEPS_PER_EPOCH)]


def test_constant_is_constant():
    assert set(rates(Phase(epochs=2, learning_rate=0.3))) == {0.3}


def test_plateau_is_lowered_by_its_scale_alone():
    assert set(rates(Phase(epochs=1, learning_rate=0.5, schedule="plateau"), plateau_scale=0.25)) == {0.125}


def test_warm_up_rises_linearly_to_the_full_rate():
    """Goyal and others, "Accurate, Large Minibatch SGD", 2017, section 2.2."""
    found = rates(Phase(epochs=2, learning_rate=1.0, warmup_epochs=0.5))
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(found[5:]) == {1.0}


@pytest.mark.parametrize("warmup_epochs", [0.0, 1.0, 2.5])
def test_cosine_falls_from_the_full_rate_towards_zero_behind_the_end(warmup_epochs):
    """Loshchilov and Hutter, "SGDR", 2017, equation 5, with a lowest rate of zero."""
    phase = Phase(epochs=4, learning_rate=2.0, schedule="cosine", warmup_epochs=warmup_epochs)
    found = rates(phase)[round(warmup_epochs * STEPS_PER_EPOCH) :]
    length = len(found)
    assert found == pytest.approx([1 + math.cos(math.pi * step / length) for step in range(length)])
    assert found == sorted(found, reverse=True) and found[-1] > 0


def test_a_phase_that_is_all_warm_up_divides_by_nothing():
    assert rates(Phase(epochs=1, learning_rate=1.0, schedule="cosine", warmup_epochs=1.0))[-1] == 1.0


# What PyTorch 2.13.0 gives: CyclicLR(base_lr=1e-6, max_lr=1e-2, step_size_up=5, mode="triangular2"), 30 steps, and
# OneCycleLR(0.002, total_steps=20, pct_start=0.3, div_factor=25, final_div_factor=1e4), then
# OneCycleLR(0.5, total_steps=7, pct_start=0.25, div_factor=10, final_div_factor=100), whose top is between two steps.
TRIANGULAR2 = [
    float(rate)
    for rate in (
        "1e-06 0.0020008 0.0040006 0.0060004 0.0080002 0.01 0.0080002 0.0060004 0.0040006 0.0020008 1e-06 "
        "0.0010009 0.0020008 0.0030007 0.0040006 0.0050005 0.0040006 0.0030007 0.0020008 0.0010009 1e-06 "
        "0.00050095 0.0010009 0.00150085 0.0020008 0.00250075 0.0020008 0.00150085 0.0010009 0.00050095"
    ).split()
]
ONE_CYCLE = [
    float(rate)
    for rate in (
        "8e-05 0.0002633436854 0.0007433436854 0.001336656315 0.001816656315 0.002 0.001974928012 0.001900969264 "
        "0.001781832355 0.001623491308 0.001433886004 0.001222524044 0.001000004 0.0007774839561 0.0005661219964 "
        "0.0003765166921 0.0002181756449 9.903873597e-05 2.507998753e-05 8e-09"
    ).split()
]
ONE_CYCLE_OF_7 = [0.05, 0.4972104988, 0.433329705, 0.3058246033, 0.1590060792, 0.04389686611, 0.0005]


@pytest.mark.parametrize(
    ("phase", "steps_per_epoch", "expected"),
    [
        (Phase(epochs=3, learning_rate=1e-2, schedule="triangular2", min_learning_rate=1e-6), 10, TRIANGULAR2),
        (
            Phase(epochs=6, learning_rate=1e-2, schedule="triangular2", min_learning_rate=1e-6, cycle_epochs=2.0),
            5,
            TRIANGULAR2,
        ),
        (Phase(epochs=2, learning_rate=0.002, schedule="one_cycle", warmup_epochs=0.6), 10, ONE_CYCLE),
        (
            Phase(
                epochs=1,
                learning_rate=0.5,
                schedule="one_cycle",
                warmup_epochs=0.25,
                div_factor=10,
                final_div_factor=100,
            ),
            7,
            ONE_CYCLE_OF_7,
        ),
    ],
)
def test_cycles_are_those_of_pytorch(phase, steps_per_epoch, expected):
    found = [learning_rate(phase, step, steps_per_epoch) for step in range(len(expected))]
    assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.1, 1.0])  # no rise, a rise of one step, nothing but a rise
@pytest.mark.parametrize("steps_per_epoch", [1, 10])
def test_one_cycle_at_its_edges_stays_between_its_ends(warmup_epochs, steps_per_epoch):
    phase = Phase(epochs=1, learning_rate=1.0, schedule="one_cycle", warmup_epochs=warmup_epochs)
    found = [learning_rate(phase, step, steps_per_epoch) for step in range(steps_per_epoch)]
    assert max(found) == 1.0 and min(found) >= 1 / 25 / 1e4


@given(
    step=st.integers(0, 5000),
    steps_per_epoch=st.integers(1, 300),
    cycle_epochs=st.floats(0.1, 20),
    lowest=st.floats(0, 1e-3),
    highest=st.floats(2e-3, 1),
)
def test_triangular2_is_the_published_formula(step, steps_per_epoch, cycle_epochs, lowest, highest):
    """Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, section 3.1."""
    step_size = cycle_epochs * steps_per_epoch / 2
    cycle = math.floor(1 + step / (2 * step_size))
    x = abs(step / step_size - 2 * cycle + 1)
    expected = lowest + (highest - lowest) * max(0.0, 1 - x) * 0.5 ** (cycle - 1)
    phase = Phase(
        epochs=1, learning_rate=highest, schedule="triangular2", min_learning_rate=lowest, cycle_epochs=cycle_epochs
    )
    assert learning_rate(phase, step, steps_per_epoch) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(
    epochs=st.integers(1, 30),
    steps_per_epoch=st.integers(2, 100),
    share=st.floats(0.05, 0.9),
    highest=st.floats(1e-4, 1),
    div_factor=st.floats(1, 100),
    final_div_factor=st.floats(1, 1e5),
    place=st.floats(0, 1),
)
def test_one_cycle_is_the_published_formula(
    epochs, steps_per_epoch, share, highest, div_factor, final_div_factor, place
):
    """Smith and Topin, "Super-Convergence", 2018, with cosines in the place of lines, as PyTorch documents it."""
    total = epochs * steps_per_epoch
    step, top = round(place * (total - 1)), share * total - 1  # PyTorch's total_steps and pct_start
    first = highest / div_factor
    if step < top:
        start, end, part = first, highest, step / top
    else:
        start, end, part = highest, first / final_div_factor, (step - max(top, 0)) / max(total - 1 - max(top, 0), 1)
    expected = end + (start - end) / 2 * (1 + math.cos(math.pi * part))
    phase = Phase(
        epochs=epochs,
        learning_rate=highest,
        schedule="one_cycle",
        warmup_epochs=share * epochs,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )
    assert learning_rate(phase, step, steps_per_epoch) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    losses=st.lists(st.integers(0, 5), min_size=1, max_size=30), patience=st.integers(1, 4), factor=st.floats(0.1, 0.9)
)
def test_plateau_is_that_of_keras(losses, patience, factor):
    model = SimpleNamespace(optimizer=keras.optimizers.SGD(0.5))
    keras_plateau = keras.callbacks.ReduceLROnPlateau("val_loss", factor, patience, min_delta=0.0)
    keras_plateau.set_model(model)
    keras_plateau.on_train_begin()
    state = TrainingState()
    phase = Phase(
        epochs=len(losses), learning_rate=0.5, schedule="plateau", plateau_patience=patience, plateau_factor=factor
    )
    for epoch, loss in enumerate(map(float, losses)):
        assert learning_rate(phase, epoch, 1, state.plateau_scale) == pytest.approx(
            float(model.optimizer.learning_rate)
        )
        keras_plateau.on_epoch_end(epoch, {"val_loss": loss})
        state.end_epoch({"val_loss": loss}, phase, "val_loss")
