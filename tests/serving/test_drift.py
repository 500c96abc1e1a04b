"""Drift: silent on images like the validation images, loud on others."""

import numpy as np
import pytest

from transfer_learning.serving.drift import MIN_IMAGES, WINDOW, Drift, Reference


def drawn(rng, count, sharpness=3.0, favourite=0, offset=0.0):
    """Probabilities of four classes, and features."""
    logits = rng.normal(0, sharpness, (count, 4))
    logits[:, favourite] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), (rng.normal(0, 2, (count, 16)) + offset).astype(np.float32)


def verdicts(drift):
    return {name: row["drift"] for name, row in drift.summary().items()}


def test_images_like_the_validation_images_are_no_drift():
    false_alarms = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        drift = Drift(Reference(*drawn(rng, 400)))
        drift.add(*drawn(rng, 500))
        false_alarms += sum(verdicts(drift).values())
    assert false_alarms <= 1  # of 60


@pytest.mark.parametrize(
    ("changed", "seen"),
    [({"sharpness": 0.5}, "confidence"), ({"favourite": 2, "sharpness": 1}, "classes"), ({"offset": 1.5}, "features")],
)
def test_other_images_are_drift(changed, seen):
    rng = np.random.default_rng(0)
    drift = Drift(Reference(*drawn(rng, 400)))
    drift.add(*drawn(rng, 500, **changed))
    assert verdicts(drift)[seen]


def test_nothing_is_said_of_few_images_and_features_are_optional():
    rng = np.random.default_rng(0)
    drift = Drift(Reference(drawn(rng, 400)[0]))
    drift.add(drawn(rng, MIN_IMAGES - 1)[0], None)
    assert verdicts(drift) == {"confidence": None, "classes": None}


def test_recent_images_count_more():
    rng = np.random.default_rng(0)
    drift = Drift(Reference(*drawn(rng, 400)))
    drift.add(*drawn(rng, WINDOW, offset=1.5))
    assert verdicts(drift)["features"]
    for _ in range(12):
        drift.add(*drawn(rng, WINDOW // 2))
    row = drift.summary()["features"]
    assert not row["drift"] and row["images"] <= WINDOW


def test_equal_confidences_of_all_validation_images_are_one_bin():
    drift = Drift(Reference(np.tile(np.float32([1, 0]), (50, 1))))
    drift.add(np.tile(np.float32([1, 0]), (200, 1)), None)
    assert verdicts(drift) == {"confidence": False, "classes": False}
