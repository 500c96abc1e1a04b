"""The learning rate is an exact function of the update."""

import math

import pytest

from transfer_learning.config import Phase
from transfer_learning.training.schedules import learning_rate

UPDATES_PER_EPOCH = 10


def rates(phase, **options):
    return [learning_rate(phase, update, UPDATES_PER_EPOCH, **options) for update in range(phase.epochs * UPDATES_PER_EPOCH)]


def test_constant_is_constant():
    assert set(rates(Phase(epochs=2, learning_rate=0.3))) == {0.3}


def test_plateau_is_lowered_by_its_scale_alone():
    assert set(rates(Phase(epochs=1, learning_rate=0.5, schedule="plateau"), plateau_scale=0.25)) == {0.125}


def test_warm_up_rises_linearly_to_the_full_rate():
    found = rates(Phase(epochs=2, learning_rate=1.0, warmup_epochs=0.5))
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(found[5:]) == {1.0}


@pytest.mark.parametrize("warmup_epochs", [0.0, 1.0, 2.5])
def test_cosine_falls_from_the_full_rate_towards_zero_behind_the_end(warmup_epochs):
    phase = Phase(epochs=4, learning_rate=2.0, schedule="cosine", warmup_epochs=warmup_epochs)
    found = rates(phase)[round(warmup_epochs * UPDATES_PER_EPOCH) :]
    length = len(found)
    assert found == pytest.approx([1 + math.cos(math.pi * step / length) for step in range(length)])
    assert found == sorted(found, reverse=True) and found[-1] > 0


def test_a_phase_that_is_all_warm_up_divides_by_nothing():
    assert rates(Phase(epochs=1, learning_rate=1.0, schedule="cosine", warmup_epochs=1.0))[-1] == 1.0
