"""The numbers of an evaluation, against numbers worked out by hand."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from transfer_learning.evaluation import intervals, metrics, predictions


def table_of(true, predicted, class_names, confidence=0.9):
    """Predictions with the given classes; what confidence leaves is spread evenly."""
    rest = (1 - confidence) / (len(class_names) - 1)
    probabilities = np.full((len(true), len(class_names)), rest)
    probabilities[np.arange(len(true)), predicted] = confidence
    return predictions.table([str(i) for i in range(len(true))], np.array(true, int), probabilities, class_names)


def numbers(result, class_name):
    """What is measured of a class, without the intervals."""
    return {name: value for name, value in result["per_class"][class_name].items() if not name.endswith("_interval")}


def test_two_classes_by_hand():
    result = metrics.evaluate(table_of([0, 0, 0, 1, 1], [0, 0, 1, 1, 0], ["ok", "no"], confidence=0.8))
    assert result["accuracy"] == 0.6
    assert result["num_examples"] == 5
    assert result["confusion_matrix"] == [[2, 1], [1, 1]]
    assert result["class_names"] == ["ok", "no"]
    assert numbers(result, "ok") == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert numbers(result, "no") == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2})
    assert result["macro_f1"] == pytest.approx((2 / 3 + 0.5) / 2)
    assert result["log_loss"] == pytest.approx(-(3 * np.log(0.8) + 2 * np.log(0.2)) / 5, rel=1e-6)
    assert result["accuracy_interval"] == pytest.approx([0.23072, 0.88238], abs=1e-5)
    assert "top_5_accuracy" not in result


@pytest.mark.parametrize(
    ("num_right", "num_examples", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0), (899, 1000, 0.8788, 0.9162)],
)
def test_the_interval_is_wilsons(num_right, num_examples, low, high):
    true = [0] * num_examples
    predicted = [0] * num_right + [1] * (num_examples - num_right)
    result = metrics.evaluate(table_of(true, predicted, ["a", "b"]))
    assert result["accuracy_interval"] == pytest.approx([low, high], abs=1e-4)
    assert result["accuracy_interval"][0] <= result["accuracy"] <= result["accuracy_interval"][1]


def test_a_class_without_examples_is_listed_and_spoils_no_mean():
    names = ["a", "b", "absent", "never right"]
    predictions_table = table_of([0, 0, 1], [0, 3, 1], names)
    result = metrics.evaluate(predictions_table)
    assert list(result["per_class"]) == names
    assert numbers(result, "absent") == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert all(value is None for name, value in result["per_class"]["absent"].items() if name.endswith("_interval"))
    assert numbers(result, "never right") == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert result["per_class"]["never right"]["recall_interval"] is None
    assert result["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    text = metrics.classification_report(predictions_table)
    assert text.endswith("No example and no prediction of: absent\n")
    macro = next(line for line in text.splitlines() if "macro avg" in line)
    assert macro.split()[4] == f"{result['macro_f1']:.4f}"


@pytest.mark.parametrize("num_classes", [2, 5, 6, 10, 100])
def test_is_plain_json_of_every_class(num_classes):
    names = [f"class {i}" for i in range(num_classes)]
    random = np.random.default_rng(0)
    true = random.integers(num_classes, size=50)
    result = metrics.evaluate(table_of(true, random.integers(num_classes, size=50), names))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert len(result["per_class"]) == num_classes
    assert np.sum(result["confusion_matrix"]) == 50
    assert ("top_5_accuracy" in result) == (num_classes > 5)


def test_top_5_counts_the_five_most_probable():
    names = list("abcdefg")
    probabilities = np.tile([0.3, 0.2, 0.15, 0.14, 0.11, 0.06, 0.04], (7, 1))
    table = predictions.table(names, np.arange(7), probabilities, names)
    result = metrics.evaluate(table)
    assert result["top_5_accuracy"] == pytest.approx(5 / 7)
    assert result["top_5_interval"] == pytest.approx([0.3589, 0.9178], abs=1e-4), "Wilson's for 5 of 7"
    description = metrics.describe(result | {"split": "test"})
    assert description.startswith("test accuracy 14.29% (95 % interval ")
    assert "n = 7), top-5 71.43%, macro F1 " in description
    of_known = metrics.describe(result | {"split": "train"})
    assert of_known.startswith("train accuracy 14.29% (images it was trained on, n = 7), top-5 71.43%")


def test_top_5_is_absent_for_five_classes():
    result = metrics.evaluate(table_of([0, 1], [0, 1], list("abcde")))
    assert "top_5_interval" not in result and "top-5" not in metrics.describe(result | {"split": "val"})


def test_a_large_table_is_measured_in_parts_as_if_it_were_one(monkeypatch):
    names = [f"class {number}" for number in range(40)]
    random = np.random.default_rng(0)
    chances = random.dirichlet(np.full(40, 0.3), 100)
    table = predictions.table([str(i) for i in range(100)], random.integers(40, size=100), chances, names)
    whole = metrics.evaluate(table)
    monkeypatch.setattr(metrics, "PART", 7)
    in_parts = metrics.evaluate(table)
    assert in_parts.pop("log_loss") == pytest.approx(whole.pop("log_loss"), rel=1e-6)
    assert in_parts == whole and 0 < whole["top_5_accuracy"] < 1


def test_rows_are_true_classes_in_the_order_given_not_the_alphabet():
    names = ["10", "9", "1"]
    result = metrics.evaluate(table_of([0, 0, 2], [1, 1, 0], names))
    assert result["confusion_matrix"] == [[0, 2, 0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("names", [["id", "label"], ["nan", "None"], ["0", "00"], ["a\nb", 'c"d,']], ids=repr)
def test_odd_class_names_are_names(names):
    table = table_of([0, 1, 1], [0, 1, 0], names)
    assert list(metrics.evaluate(table)["per_class"]) == names
    assert names[0] in metrics.classification_report(table)


def test_certain_and_wrong_is_a_finite_loss():
    table = predictions.table(["x"], np.array([0]), [[0.0, 1.0]], ["a", "b"])
    assert 10 < metrics.evaluate(table)["log_loss"] < 1000


def random_result(num_images, num_classes, share_right, seed=0):
    random = np.random.default_rng(seed)
    true = random.integers(num_classes, size=num_images)
    predicted = np.where(random.random(num_images) < share_right, true, random.integers(num_classes, size=num_images))
    names = [f"class {i}" for i in range(num_classes)]
    return true, predicted, metrics.evaluate(table_of(true, predicted, names))


@pytest.mark.parametrize(
    ("num_images", "num_classes", "share_right"),
    [(1, 2, 1.0), (1, 2, 0.0), (2, 3, 1.0), (9, 9, 0.5), (60, 3, 1.0), (60, 3, 0.0), (300, 10, 0.8), (500, 40, 0.3)],
)
def test_every_interval_holds_its_number_and_has_a_width(num_images, num_classes, share_right):
    *_, result = random_result(num_images, num_classes, share_right)
    rows = [
        (result["macro_f1"], result["macro_f1_interval"]),
        (result["accuracy"], result["accuracy_resampled_interval"]),
    ]
    for row in result["per_class"].values():
        rows += [(row[name], row[f"{name}_interval"]) for name in ("precision", "recall", "f1")]
    for value, interval in rows:
        assert value is None or interval is None or 0 <= interval[0] <= value + 1e-9 <= interval[1] + 2e-9 <= 1 + 3e-9
        assert interval is None or interval[0] < interval[1]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_intervals_are_those_of_images_drawn_again_one_by_one():
    """The same by scikit-learn on each of many draws, with other random numbers."""
    true, predicted, result = random_result(200, 4, 0.7)
    random, drawn = np.random.default_rng(1), []
    for _ in range(1000):
        rows = random.integers(200, size=200)
        drawn.append(
            [
                f1_score(true[rows], predicted[rows], average="macro"),
                accuracy_score(true[rows], predicted[rows]),
                *f1_score(true[rows], predicted[rows], average=None, labels=range(4)),
            ]
        )
    expected = np.percentile(drawn, [2.5, 97.5], axis=0).T
    found = [result["macro_f1_interval"], result["accuracy_resampled_interval"]]
    found += [row["f1_interval"] for row in result["per_class"].values()]
    assert np.array(found) == pytest.approx(expected, abs=0.02)
    assert result["accuracy_resampled_interval"] == pytest.approx(result["accuracy_interval"], abs=0.01)


def test_precision_and_recall_are_shares_with_wilsons_intervals():
    row = metrics.evaluate(table_of([0] * 8 + [1] * 4, [0] * 6 + [1] * 6, ["a", "b"]))["per_class"]
    assert row["a"]["recall_interval"] == intervals.wilson_interval(6, 8)
    assert row["a"]["precision_interval"] == intervals.wilson_interval(6, 6)
    assert row["b"]["precision_interval"] == intervals.wilson_interval(4, 6)


@pytest.mark.parametrize(("num_right", "num_wrong", "low", "high"), [(10, 0, 0.8389, 1.0), (0, 10, 0.0, 0.4345)])
def test_without_mistakes_the_interval_of_f1_comes_out_of_a_share(num_right, num_wrong, low, high):
    """Of ten images that are of the class or are taken for it, Wilson's interval is 0.7225 to 1, or 0 to 0.2775."""
    assert intervals.f1_interval(num_right, num_wrong) == pytest.approx([low, high], abs=1e-4)


def test_the_same_predictions_have_the_same_intervals():
    *_, first = random_result(100, 3, 0.8)
    assert random_result(100, 3, 0.8)[-1] == first


def test_a_single_draw_counts_each_image_once():
    """No randomness: the statistic of the images themselves is what scikit-learn says of them."""
    true, predicted, result = random_result(500, 7, 0.6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "resampled_interval", lambda pairs, measure: (measure(pairs, axis=-1),) * 2)
        once = metrics.resampled_intervals(true, predicted, 7)
    assert once["macro_f1"][0] == pytest.approx(result["macro_f1"]) and once["accuracy"][0] == result["accuracy"]
    assert [low for low, _ in once["f1"]] == pytest.approx([row["f1"] for row in result["per_class"].values()])
