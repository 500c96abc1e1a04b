"""The rejection threshold, and what it rejects, by numbers computed by hand."""

import json

import numpy as np
import pytest

from transfer_learning.evaluation import predictions, rejection


def table_of(confidences, correct):
    confidences, correct = np.array(confidences, np.float64), np.array(correct, bool)
    probabilities = np.stack([confidences, 1 - confidences], axis=1)
    return predictions.table([str(i) for i in range(len(correct))], (~correct).astype(int), probabilities, ["a", "b"])


@pytest.mark.parametrize(
    ("confidences", "expected"),
    [
        (np.linspace(0.01, 1, 100), 0.05),  # the fifth of a hundred
        (np.linspace(0.1, 1, 10), 0.1),  # one of ten would be too many
        ([0.7], 0.7),
        ([0.5] * 50, 0.5),
        ([1.0] * 50, 1.0),
    ],
)
def test_the_threshold_accepts_the_fraction_that_it_was_chosen_for(confidences, expected):
    found = rejection.threshold(np.array(confidences))
    assert found == pytest.approx(expected)
    assert np.mean(np.array(confidences) >= found) >= rejection.ACCEPTED_FRACTION


@pytest.mark.parametrize("num_images", [1, 2, 7, 19, 20, 21, 174, 1000])
def test_the_threshold_is_one_of_the_confidences(num_images):
    confidences = np.random.default_rng(num_images).random(num_images).astype(np.float32)
    found = rejection.threshold(confidences)
    assert found in confidences.tolist()
    assert np.mean(confidences < found) <= 1 - rejection.ACCEPTED_FRACTION < np.mean(confidences <= found) + 1e-9


def test_rejected_images_by_hand():
    table = table_of([0.9, 0.6, 0.8, 0.55, 0.95], [1, 1, 0, 0, 1])
    others = {"noise": np.float32([0.5, 0.52, 0.7, 0.99]), "nothing like it": np.float32([0.5])}
    result = rejection.measure(0.65, table, others)
    kinds = result.pop("others")
    assert result == {
        "threshold": 0.65,
        "accepted_fraction": 0.95,
        "num_examples": 5,
        "num_right": 3,
        "num_wrong": 2,
        "num_right_rejected": 1,
        "num_wrong_rejected": 1,
    }
    assert kinds["noise"]["num_images"] == 4 and kinds["noise"]["rejected_fraction"] == 0.5
    assert kinds["noise"]["interval"][0] < 0.5 < kinds["noise"]["interval"][1]
    # Of 20 pairs of an image and noise, the image has the higher confidence in 5 + 5 + 3 (0.9, 0.8, 0.95 above 0.7).
    assert kinds["noise"]["auroc"] == pytest.approx(13 / 20)
    assert kinds["nothing like it"] | {"interval": None} == {
        "num_images": 1,
        "rejected_fraction": 1.0,
        "auroc": 1.0,
        "interval": None,
    }
    assert json.loads(json.dumps(kinds, allow_nan=False)) == kinds


def test_a_confidence_at_the_threshold_is_accepted():
    result = rejection.measure(0.75, table_of([0.75], [1]), {"same": np.float32([0.75])})
    assert result["num_right_rejected"] == 0 and result["others"]["same"]["rejected_fraction"] == 0
    assert result["others"]["same"]["auroc"] == 0.5


def test_the_names_of_earlier_versions_are_read():
    values = rejection.measure(0.65, table_of([0.9, 0.6], [1, 0]), {"unseen classes": np.float32([0.5])})
    old_names = {new: old for old, new in rejection.EARLIER_NAMES.items()}
    old = {old_names.get(name, name): value for name, value in values.items()}
    row = {old_names.get(name, name): value for name, value in values["others"]["unseen classes"].items()}
    assert rejection.read({"unknown": old | {"others": {"classes held out": row}}}) == values
    assert rejection.read({"rejection": values}) == values
    assert rejection.read({"rejection": None}) is rejection.read({}) is None
