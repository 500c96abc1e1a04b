"""Calibration against numbers computed by hand, scikit-learn's curve and known temperatures."""

import json

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.calibration import calibration_curve

from transfer_learning.evaluation import calibration, predictions


def table_of(confidences, right):
    """Two classes; each image is predicted with the given confidence of 0.5 or more."""
    confidences, right = np.array(confidences), np.array(right, bool)
    probabilities = np.stack([confidences, 1 - confidences], axis=1)
    return predictions.table([str(i) for i in range(len(right))], (~right).astype(int), probabilities, ["a", "b"])


def drawn(num_images, num_classes=5, seed=0):
    """Calibrated logits, and labels drawn from their probabilities."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2.0, size=(num_images, num_classes)).astype(np.float32)
    chances = softmax(logits.astype(np.float64), axis=1)
    labels = (random.random(num_images)[:, None] > chances.cumsum(axis=1)).sum(axis=1)
    return logits, np.minimum(labels, num_classes - 1)


def test_the_error_by_hand():
    """Bins of 1/15: two images lie in 0.8-0.867, two in 0.933-1."""
    measured = calibration.measure(table_of([0.82, 0.84, 0.96, 1.0], [1, 0, 1, 1]), 1.0)
    assert measured["error"] == pytest.approx((abs(1 - 1.66) + abs(2 - 1.96)) / 4)
    assert [row["num_examples"] for row in measured["bins"]] == [2, 2]
    first, last = measured["bins"]
    assert first["confidence"] == pytest.approx(0.83) and first["accuracy"] == 0.5
    assert first["low"] == pytest.approx(0.8) and last["high"] == 1
    assert 0 < first["interval"][0] < 0.5 < first["interval"][1] < 1 and last["interval"][1] == 1
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


@pytest.mark.parametrize(
    ("confidences", "right", "error"),
    [
        ([1.0], [1], 0.0),
        ([1.0], [0], 1.0),
        ([0.51] * 100, [1] * 51 + [0] * 49, 0.0),
        ([0.75] * 4, [1, 1, 1, 0], 0.0),
        ([0.9], [1], 0.1),
    ],
)
def test_the_error_at_its_edges(confidences, right, error):
    measured = calibration.measure(table_of(confidences, right), 1.0)
    assert measured["error"] == pytest.approx(error, abs=1e-6)
    assert sum(row["num_examples"] for row in measured["bins"]) == len(right)


def test_the_bins_are_those_of_scikit_learn():
    logits, labels = drawn(3000)
    table = predictions.table([str(i) for i in range(3000)], labels, softmax(logits, axis=1), list("abcde"))
    right = table["label"] == table["predicted"]
    accuracy, confidence = calibration_curve(right, table["confidence"], n_bins=calibration.NUM_BINS)
    bins = calibration.measure(table, 1.0)["bins"]
    assert [row["accuracy"] for row in bins] == pytest.approx(accuracy)
    assert [row["confidence"] for row in bins] == pytest.approx(confidence, abs=1e-6)


@pytest.mark.parametrize("num_images", [300, 6000])
def test_the_error_of_calibrated_confidences_is_that_by_chance(num_images):
    errors, by_chance = [], []
    for seed in range(60):
        logits, labels = drawn(num_images, seed=seed)
        table = predictions.table(list(map(str, range(num_images))), labels, softmax(logits, axis=1), list("abcde"))
        measured = calibration.measure(table, 1.0)
        errors.append(measured["error"])
        by_chance.append(measured["by_chance"])
    assert np.mean(errors) == pytest.approx(np.mean(by_chance), rel=0.05)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0, 7.0])
def test_a_known_temperature_is_found_and_undone(temperature):
    logits, labels = drawn(20_000)
    found, sentence = calibration.fitted_temperature(logits * np.float32(temperature), labels)
    assert found == pytest.approx(temperature, rel=0.03)
    assert f"temperature {found:.3g}" in sentence
    if temperature != 1:
        assert ("overconfident" in sentence) == (temperature > 1)


def test_the_uncalibrated_error_is_computed_from_the_table():
    logits, labels = drawn(500)
    ids = [str(i) for i in range(500)]
    before, after = (
        calibration.measure(
            predictions.table(ids, labels, softmax(logits / divisor, axis=1), list("abcde")), temperature
        )
        for divisor, temperature in ((1.0, 1.0), (2.5, 2.5))
    )
    assert after["uncorrected"]["error"] == pytest.approx(before["error"], abs=1e-5)
    assert after["error"] > 0.1 > before["error"] and before["uncorrected"]["error"] == pytest.approx(before["error"])


@pytest.mark.parametrize(
    ("factor", "num_images", "group_size", "low", "high"),
    [(7, 4, 1, 1.5, 4), (2, 20, 1, 1.1, 1.3), (7, 20, 1, 4, 6.5), (7, 4000, 1, 6.8, 7.2), (7, 4000, 1000, 1.5, 4)],
    ids=["few", "more, not far from 1", "more, far from 1", "many", "many of few groups"],
)
def test_few_images_and_those_of_few_groups_leave_the_temperature_near_one(factor, num_images, group_size, low, high):
    """The logits are too large by `factor`: a share of images errs as if they were smaller."""
    labels = np.arange(num_images) % 4 == 0  # every fourth is in class 1, and all are predicted as class 0
    logits = np.tile(np.float32([[factor * np.log(3), 0.0]]), (num_images, 1))
    groups = np.arange(num_images) // group_size
    temperature, _ = calibration.fitted_temperature(logits, labels.astype(int), groups)
    assert low < temperature < high


def test_images_without_an_error_do_not_make_the_classifier_certain():
    logits = np.tile(np.float32([[3.0, 0.0]]), (30, 1))
    temperature, sentence = calibration.fitted_temperature(logits, np.zeros(30, int))
    assert 0.5 < temperature < 1 and "the model was underconfident on 30 validation images" in sentence


def test_a_classifier_that_is_certain_and_right_is_well_calibrated():
    _, sentence = calibration.fitted_temperature(np.tile(np.float32([[99.0, 0.0]]), (30, 1)), np.zeros(30, int))
    assert "the model was well calibrated on " in sentence and "(log loss 0.000, now 0.000)" in sentence


def test_many_images_are_computed_in_parts_and_thinned_for_the_fit(monkeypatch):
    logits, labels = drawn(1000)
    table = predictions.table([str(i) for i in range(1000)], labels, softmax(logits, axis=1), list("abcde"))
    whole = calibration.measure(table, 2.0)
    monkeypatch.setattr(calibration, "PART", 64)
    assert calibration.measure(table, 2.0) == whole
    monkeypatch.setattr(calibration, "MAX_IMAGES", 400)
    assert calibration.fitted_temperature(logits, labels) == calibration.fitted_temperature(logits[::3], labels[::3])


def test_the_temperature_stays_in_its_range_and_numbers_are_needed():
    right = np.tile(np.float32([[1.0, 0.0]]), (100, 1))
    wrong_half = np.arange(100) % 2
    assert calibration.fitted_temperature(right * 1000, wrong_half)[0] <= calibration.RANGE[1]
    assert calibration.fitted_temperature(right * np.float32(np.nan), wrong_half)[0] == 1
