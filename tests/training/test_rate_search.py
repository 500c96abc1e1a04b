"""The search of the learning rate of fine-tuning."""

import dataclasses
import math
from unittest.mock import Mock

import numpy as np
import pytest

from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.models.classifier import build_classifier
from transfer_learning.training import rate_search
from transfer_learning.training.phase_builder import PhaseBuilder, find_cuts
from transfer_learning.training.rate_search import FACTORS, FIRST_STEPS, find_learning_rate


@pytest.fixture(scope="module")
def phase(small_config):
    data = load_prepared(small_config)
    classifier = build_classifier(small_config, data.class_names)
    builder = PhaseBuilder(small_config, classifier, data, find_cuts(small_config, classifier), {})
    return builder.build("fine_tune")


def test_the_rate_is_one_of_those_compared_and_the_phase_is_as_before(phase, small_config):
    before = phase.arrays()
    found = find_learning_rate(phase, small_config)
    assert found == find_learning_rate(phase, small_config)
    after = phase.arrays()
    for group in ("weights", "seeds", "optimizer"):
        assert all(map(np.array_equal, before[group], after[group])), group
    first = [row for row in found["rounds"] if row["steps"] == FIRST_STEPS]
    given = small_config.fine_tune.learning_rate
    assert [row["learning_rate"] for row in first] == pytest.approx([factor * given for factor in FACTORS])
    assert [row["steps"] for row in found["rounds"]] == [FIRST_STEPS] * 4 + [2 * FIRST_STEPS] * 2
    last = min(found["rounds"][-2:], key=lambda row: row["val_loss"])
    assert found["learning_rate"] == last["learning_rate"]


RATE = 1e-3


@pytest.mark.parametrize(
    ("explodes_at", "val_losses", "expected"),
    [
        (math.inf, {1e-4: 4.0, 3e-4: 3.0, 1e-3: 1.0, 3e-3: 2.0}, 1e-3),
        (math.inf, {1e-4: 1.0, 3e-4: 2.0, 1e-3: 3.0, 3e-3: 4.0}, 1e-4),
        (2e-3, {1e-4: 4.0, 3e-4: 3.0, 1e-3: 2.0, 3e-3: 1.0}, 1e-3),  # 3e-3 is not tried
        (1e-5, {1e-4: 1.0, 3e-4: 1.0, 1e-3: 1.0, 3e-3: 1.0}, 1e-4),
        (math.inf, {1e-4: 4.0, 3e-4: 3.0, 1e-3: math.nan, 3e-3: math.inf}, 3e-4),
        (math.inf, dict.fromkeys([1e-4, 3e-4, 1e-3, 3e-3], math.nan), RATE),
    ],
    ids=str,
)
def test_the_best_rate_below_the_explosion_is_chosen(explodes_at, val_losses, expected, small_config, monkeypatch):
    tried = []

    def losses(active, config, rates):
        tried.append(rates[0])
        return (math.nan if rate > explodes_at else 0.5 for rate in rates)

    monkeypatch.setattr(rate_search, "_losses", losses)
    by_rate = {round(rate, 9): loss for rate, loss in val_losses.items()}
    monkeypatch.setattr(rate_search, "evaluate", lambda active: (by_rate[round(tried[-1], 9)], 0.0))
    settings = dataclasses.replace(small_config.fine_tune, learning_rate=RATE)
    found = find_learning_rate(Mock(settings=settings, num_classes=3, **{"name": "fine_tune"}), small_config)
    assert found["learning_rate"] == pytest.approx(expected)
    assert all(math.isfinite(row["loss"]) for row in found["range_test"])
    assert len(found["range_test"]) == (
        rate_search.RANGE_STEPS
        if explodes_at == math.inf
        else sum(RATE * 30 ** (2 * step / 39 - 1) <= explodes_at for step in range(40))
    )
