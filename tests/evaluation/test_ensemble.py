"""Averaging and comparing predictions: what is refused, and numbers worked out by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from transfer_learning.errors import UserError
from transfer_learning.evaluation import ensemble, predictions

NAMES = ["cat", "dog", "id"]


def table_of(probabilities, ids="abcd", labels=(0, 1, 2, 0), class_names=NAMES):
    ids, labels = list(ids), list(labels)
    return predictions.table(ids, np.array(labels), np.array(probabilities, np.float64), class_names)


def random_table(seed, class_names=NAMES):
    return table_of(np.random.default_rng(seed).dirichlet(np.ones(3), 4), class_names=class_names)


def test_the_average_is_the_float64_mean_to_the_bit():
    tables = {str(seed): random_table(seed) for seed in range(3)}
    averaged = ensemble.average(tables)
    expected = np.mean([predictions.probabilities(table).astype(np.float64) for table in tables.values()], axis=0)
    assert np.array_equal(predictions.probabilities(averaged), expected.astype(np.float32))
    assert list(averaged["id"]) == list("abcd") and list(averaged["label"]) == ["cat", "dog", "id", "cat"]
    assert list(averaged["predicted"]) == [NAMES[place] for place in expected.argmax(axis=1)]


def test_the_average_of_a_table_with_itself_is_that_table():
    table = random_table(0)
    pd.testing.assert_frame_equal(ensemble.average({"one": table, "two": table, "three": table}), table)
    pd.testing.assert_frame_equal(ensemble.average({"alone": table}), table)


def test_the_order_of_images_and_classes_is_free():
    one, two = random_table(0), random_table(1)
    other_order = two.iloc[[2, 0, 3, 1]].reset_index(drop=True)[[*predictions.FIRST_COLUMNS, "id_", "cat", "dog"]]
    pd.testing.assert_frame_equal(
        ensemble.average({"one": one, "two": other_order}), ensemble.average({"one": one, "two": two})
    )


TABLE = random_table(0)
EVEN = np.full((4, 3), 1 / 3)
REFUSED = {
    "an image is missing": (TABLE.iloc[:3], "one has the image d .* two does not .1 such"),
    "an image is too many": (
        table_of(np.full((5, 3), 1 / 3), "abxcd", (0, 1, 1, 2, 0)),
        "two has the image x .* one does not",
    ),
    "another image": (table_of(EVEN, "abce"), "one has the image d"),
    "another label": (table_of(EVEN, labels=(0, 1, 1, 0)), "image c has the label id in one, and dog in two"),
    "another class": (random_table(1, ["cat", "dog", "owl"]), "one has the class id, and two does not"),
    "one class fewer": (
        predictions.table(list("abcd"), np.array([0, 1, 1, 0]), np.full((4, 2), 0.5), NAMES[:2]),
        "one has the class id",
    ),
    "an image twice": (table_of(EVEN, "abca"), "two lists the image a twice"),
    "not a number": (
        TABLE.assign(cat=np.float32([0.1, np.nan, 0.1, 0.1])),
        "two has NaN or infinite probabilities .* image b",
    ),
}


@pytest.mark.parametrize(("other", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_averaged_is_named(other, words):
    with pytest.raises(UserError, match=words) as caught:
        ensemble.average({"one": TABLE, "two": other})
    assert "\n" not in str(caught.value)


def test_any_other_column_that_two_sources_share_has_to_agree():
    one = pd.DataFrame({"id": ["a", "b"], "label": ["cat", "dog"], "sha256": ["11", "22"]})
    two = one.iloc[::-1].assign(more="x")
    classes = {"one": NAMES, "two": NAMES}
    ensemble.check_same_examples({"one": one, "two": two}, classes)
    with pytest.raises(UserError, match="image b has the sha256 22 in one, and 33 in two"):
        ensemble.check_same_examples({"one": one, "two": two.assign(sha256=["33", "11"])}, classes)


def predicted(correct):
    """A table of two classes that is correct where `correct` is true."""
    correct = np.array(correct, bool)
    return predictions.table(
        [str(number) for number in range(len(correct))],
        np.zeros(len(correct), int),
        np.where(correct[:, None], [[0.9, 0.1]], [[0.1, 0.9]]),
        ["a", "b"],
    )


def test_the_gain_of_two_tables_by_hand():
    before = predicted([1] * 6 + [0] * 2 + [1] * 1 + [0] * 1)
    after = predicted([1] * 6 + [1] * 2 + [0] * 1 + [0] * 1)
    gain = ensemble.paired_difference(before, after)
    low, high = gain.pop("difference_interval")
    assert gain == pytest.approx(
        {
            "num_examples": 10,
            "accuracy_before": 0.7,
            "accuracy_after": 0.8,
            "difference": 0.1,
            "both_right": 6,
            "only_before_right": 1,
            "only_after_right": 2,
            "both_wrong": 1,
            "mcnemar_p": 1.0,  # of three coins, two or more alike are certain
        }
    )
    assert -0.4 < low < 0.1 < high < 0.6
    assert ensemble.only_correct(before, after) == ["8"] and ensemble.only_correct(after, before) == ["6", "7"]
    assert json.loads(json.dumps(gain, allow_nan=False)) == gain


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(0, 0, 1.0), (5, 0, 2 / 32), (0, 5, 2 / 32), (9, 1, 22 / 1024), (4, 4, 1.0)]
)
def test_mcnemars_probability_is_that_of_coins(gained, lost, p):
    before = predicted([0] * gained + [1] * lost + [1] * 20)
    after = predicted([1] * gained + [0] * lost + [1] * 20)
    gain = ensemble.paired_difference(before, after)
    assert gain["mcnemar_p"] == pytest.approx(p)
    low, high = gain["difference_interval"]
    assert low <= gain["difference"] <= high


def test_the_interval_is_that_of_the_normal_approximation_where_images_are_many():
    random = np.random.default_rng(0)
    before, after = predicted(random.random(4000) < 0.8), predicted(random.random(4000) < 0.85)
    gain = ensemble.paired_difference(before, after)
    difference = ensemble.is_correct(after).astype(float) - ensemble.is_correct(before)
    half = 1.96 * difference.std() / np.sqrt(4000)
    expected = [difference.mean() - half, difference.mean() + half]
    assert gain["difference_interval"] == pytest.approx(expected, abs=2e-3)
    assert gain == ensemble.paired_difference(before, after), "the same predictions give the same interval"


@pytest.mark.parametrize("num_images", [2, 3, 200])
@pytest.mark.parametrize(("was_right", "is_right"), [(1, 1), (0, 0), (0, 1), (1, 0)])
def test_images_that_are_all_alike_do_not_make_a_difference_certain(num_images, was_right, is_right):
    gain = ensemble.paired_difference(predicted([was_right] * num_images), predicted([is_right] * num_images))
    low, high = gain["difference_interval"]
    assert -1 <= low <= gain["difference"] <= high <= 1
    assert (1.4 if num_images < 4 else 0.04) > high - low > 1 / num_images


def test_one_image_says_nothing_of_others():
    assert ensemble.paired_difference(predicted([0]), predicted([1]))["difference_interval"] == [-1, 1]


@pytest.mark.parametrize(
    ("gained", "lost", "words"),
    [
        (0, 0, ["no image is classified differently"]),
        (1, 0, ["+4.76 points", "1 image gained, 0 lost", "not significant"]),
        (0, 12, ["-37.50 points", "0 images gained, 12 lost; significant"]),
    ],
)
def test_the_description_says_whether_the_difference_is_significant(gained, lost, words):
    gain = ensemble.paired_difference(
        predicted([0] * gained + [1] * lost + [1] * 20), predicted([1] * gained + [0] * lost + [1] * 20)
    )
    sentence = ensemble.describe(gain, "the plain image", "the average")
    assert all(word in sentence for word in words), sentence
