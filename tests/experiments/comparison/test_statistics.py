"""Several runs against each other: spread, convergence, the choice of a rate, intervals and tests, at their edges."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from transfer_learning.errors import Diverged, UserError
from transfer_learning.evaluation import predictions
from transfer_learning.experiments.comparison import statistics
from transfer_learning.experiments.comparison.statistics import Run

NAN = float("nan")


def history(*val_accuracies, phases=None, **columns):
    """A history of an epoch a value; an epoch takes 10 seconds."""
    num_epochs = len(val_accuracies)
    values = {
        "phase": phases or ["fine_tune"] * num_epochs,
        "epoch": np.arange(1, num_epochs + 1),
        "loss": 1.0,
        "accuracy": 0.5,
        "val_loss": 1.0,
        "val_accuracy": val_accuracies,
        "seconds": 10.0 * np.arange(1, num_epochs + 1),
    }
    return pd.DataFrame(values | columns)


def timings(seconds, phases=None, epochs=None):
    return pd.DataFrame(
        {
            "phase": phases or ["fine_tune"] * len(seconds),
            "epoch": epochs or range(1, len(seconds) + 1),
            "seconds": seconds,
            "images_per_second": [100.0] * len(seconds),
        }
    )


def table(right, num_classes=3):
    """Predictions of as many images, of which those are right that `right` says."""
    right = np.asarray(right, bool)
    labels = np.arange(len(right)) % num_classes
    predicted = np.where(right, labels, (labels + 1) % num_classes)
    ids = [f"{number}.png" for number in range(len(right))]
    return predictions.table(ids, labels, np.eye(num_classes)[predicted], list("abcdef")[:num_classes])


number_of_run = itertools.count().__next__


def run(right, seed=0, val_accuracies=(0.4, 0.9)):
    name = f"{number_of_run()}-seed{seed}"
    return Run(name, seed, history(*val_accuracies), timings([10.0] * len(val_accuracies)), table(right))


# ---------------------------------------------------------------------------------------------------------------------
# Time


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (timings([1.0, 2.0, 8.0], ["frozen", "frozen", "fine_tune"]), [31.0, 33.0, 43.0]),
        (
            timings([7.0, 1.0, 2.0, 8.0], ["frozen"] * 3 + ["fine_tune"], [1, 1, 2, 3]),
            [31.0, 33.0, 43.0],
        ),  # begun again
        (timings([1.0, 8.0], ["frozen", "fine_tune"], [1, 3]), [31.0, 31.0, 41.0]),  # a row lost to a kill
    ],
)
def test_seconds_grow_from_the_preparation_of_the_first_phase_on(rows, expected):
    of_both = history(0.1, 0.2, 0.3, phases=["frozen", "frozen", "fine_tune"])
    preparation = {"frozen": 30.0, "fine_tune": 2.0}
    assert statistics.with_seconds(of_both, rows, preparation)["seconds"].tolist() == expected


def test_curves_are_means_and_ranges_over_the_runs_that_trained_so_long():
    found = statistics.curves([history(0.2, 0.4, 0.9), history(0.4, 0.6), history(0.3, NAN, 0.5)])
    assert found["epoch"].tolist() == [1, 2, 3] and found["num_runs"].tolist() == [3, 3, 2]
    np.testing.assert_allclose(found["val_accuracy"], [0.3, 0.5, 0.7])
    assert found["val_accuracy_low"].tolist() == [0.2, 0.4, 0.5]
    assert found["val_accuracy_high"].tolist() == [0.4, 0.6, 0.9]
    assert found["seconds"].tolist() == [10.0, 20.0, 30.0]


def test_curves_without_validation_images_have_no_validation_values():
    found = statistics.curves([history(NAN, NAN), history(NAN, NAN)])
    assert found[["val_accuracy", "val_accuracy_low", "val_accuracy_high"]].isna().all(axis=None)
    assert found["accuracy"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("val_accuracies", "accuracy", "expected"),
    [
        ((0.4, 0.8, 0.9), 0.8, (2, 20.0)),  # exactly it
        ((0.9, 0.2, 0.9), 0.8, (1, 10.0)),  # at once, whatever follows
        ((0.4, 0.7), 0.8, None),
        ((NAN, NAN), 0.5, None),
        ((NAN, 0.6), 0.5, (2, 20.0)),
        ((1.0,), 1.0, (1, 10.0)),
    ],
)
def test_an_accuracy_is_reached_at_the_end_of_the_first_epoch_that_has_it(val_accuracies, accuracy, expected):
    assert statistics.reached(history(*val_accuracies), accuracy) == expected


@pytest.mark.parametrize(
    ("curves", "expected"),
    [
        ([(0.4, 0.8), (0.8,), (0.1, 0.2, 0.8)], {"num_runs": 3, "epoch": 2.0, "epoch_range": [1, 3], "seconds": 20.0}),
        ([(0.4, 0.8), (0.8,)], {"num_runs": 2, "epoch": 1.5, "epoch_range": [1, 2], "seconds": 15.0}),
        ([(0.4, 0.8), (0.8,), (0.1, 0.2)], {"num_runs": 2, "epoch": 2.0, "epoch_range": [1, 2], "seconds": 20.0}),
        ([(0.4, 0.8), (0.1,), (0.1, 0.2)], {"num_runs": 1, "epoch": None, "epoch_range": [2, 2], "seconds": None}),
        ([(0.8,), (0.1,)], {"num_runs": 1, "epoch": None, "epoch_range": [1, 1], "seconds": None}),
        ([(0.4,), (NAN,)], {"num_runs": 0, "epoch": None, "epoch_range": None, "seconds": None}),
        ([(0.9,)], {"num_runs": 1, "epoch": 1.0, "epoch_range": [1, 1], "seconds": 10.0}),
    ],
)
def test_a_seed_that_never_reaches_an_accuracy_counts_as_the_last_in_the_median(curves, expected):
    runs = [run([True, False], seed, curve) for seed, curve in enumerate(curves)]
    found = statistics.summary(runs, [0.8])["reached"]
    assert len(found) == 1 and found[0]["accuracy"] == 0.8
    assert {name: found[0][name] for name in expected} == expected


# ---------------------------------------------------------------------------------------------------------------------
# The search for a rate


@pytest.mark.parametrize(
    ("monitor", "values", "expected"),
    [
        ("val_loss", {1e-4: [0.9, 0.5], 1e-3: [0.4, 0.8], 1e-2: [0.6, 0.6]}, 1e-3),
        ("val_accuracy", {1e-4: [0.9, 0.5], 1e-3: [0.4, 0.8], 1e-2: [0.6, 0.6]}, 1e-4),
        ("val_loss", {1e-2: [0.4], 1e-3: [0.4], 1e-4: [0.5]}, 1e-3),  # of equals the lowest
        ("val_accuracy", {1e-2: [0.4], 1e-3: [0.4]}, 1e-3),
        ("val_loss", {1e-3: [0.7, NAN], 1e-2: [NAN, float("inf")]}, 1e-3),
        ("val_loss", {1e-2: [9.0]}, 1e-2),  # all others diverged
    ],
)
def test_the_rate_with_the_best_epoch_is_chosen(monitor, values, expected):
    histories = {rate: history(*[0.5] * len(column), **{monitor: column}) for rate, column in values.items()}
    assert statistics.best_rate(histories, monitor) == expected


def test_the_best_epoch_is_one_of_the_last_phase():
    phases = ["frozen", "fine_tune"]
    histories = {
        1e-4: history(0.5, 0.5, phases=phases, val_loss=[0.1, 0.6]),
        1e-3: history(0.5, 0.5, phases=phases, val_loss=[0.9, 0.5]),
    }
    assert statistics.best_rate(histories, "val_loss") == 1e-3


@pytest.mark.parametrize("histories", [{}, {1e-3: history(NAN, val_loss=NAN)}])
def test_a_search_in_which_every_rate_diverged_raises_diverged(histories):
    with pytest.raises(Diverged, match="lower --learning-rates"):
        statistics.best_rate(histories, "val_loss")


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy


@pytest.mark.parametrize(("num_right", "num_images"), [(0, 5), (5, 5), (1, 1), (41, 246), (9000, 10000)])
def test_the_interval_of_one_run_is_wilsons(num_right, num_images):
    expected = binomtest(num_right, num_images).proportion_ci(0.95, "wilson")
    low, high = statistics.mean_accuracy_interval(num_right / num_images, num_images)
    assert (low, high) == (pytest.approx(expected.low, abs=1e-12), pytest.approx(expected.high, abs=1e-12))


def test_accuracy_is_the_mean_over_seeds_with_their_range():
    found = statistics.summary([run([1, 1, 1, 0]), run([1, 1, 0, 0]), run([1, 0, 0, 0])], [])
    assert found["accuracy"] == 0.5 and found["accuracy_range"] == [0.25, 0.75] and found["num_images"] == 4
    low, high = found["accuracy_interval"]
    assert low < 0.25 < 0.75 < high, "seeds do not stand for images"
    assert [row["accuracy"] for row in found["runs"]] == [0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("only_first", "only_second", "same"), [(0, 0, 4), (1, 0, 0), (5, 5, 0), (9, 2, 30), (0, 40, 1)]
)
def test_with_one_seed_the_p_value_is_that_of_mcnemars_test(only_first, only_second, same):
    differences = np.array([1] * only_first + [-1] * only_second + [0] * same)
    apart = only_first + only_second
    expected = binomtest(only_first, apart).pvalue if apart else 1.0
    assert statistics.sign_flip_p(differences) == pytest.approx(expected, rel=1e-9)
    first = table([1] * only_first + [0] * only_second + [1] * same)
    second = table([0] * only_first + [1] * only_second + [1] * same)
    found = statistics.paired([Run("a", 4, None, None, first)], [Run("b", 4, None, None, second)])
    assert found["seeds"] == [
        {"seed": 4, "only_first": only_first, "only_second": only_second, "p_value": pytest.approx(expected)}
    ]
    assert found["p_value"] == pytest.approx(expected)
    assert found["difference"] == pytest.approx((only_first - only_second) / (apart + same))


@pytest.mark.parametrize("differences", [[3, -1, 2, 0, 1, 1, -2], [2, 2, 2], [1, -1], [3, 3, -3, 1, 0, 0, 2, 2, 1]])
def test_with_several_seeds_all_sign_assignments_are_counted(differences):
    differences = np.array(differences)
    sums = [np.dot(signs, differences) for signs in itertools.product((-1, 1), repeat=len(differences))]
    expected = np.mean(np.abs(sums) >= abs(differences.sum()))
    assert statistics.sign_flip_p(differences) == pytest.approx(expected, rel=1e-12)


def test_seeds_with_the_same_mistakes_do_not_lower_the_p_value():
    first, second = [1] * 8 + [0] * 2, [0] * 4 + [1] * 4 + [0, 1]
    once = statistics.paired([run(first)], [run(second)])
    thrice = statistics.paired([run(first, seed) for seed in range(3)], [run(second, seed) for seed in range(3)])
    assert once["p_value"] == pytest.approx(thrice["p_value"]) and once["interval"] == pytest.approx(thrice["interval"])
    assert thrice["difference"] == pytest.approx(once["difference"]) and len(thrice["seeds"]) == 3


def test_the_interval_contains_the_difference_and_is_reproducible():
    rng = np.random.default_rng(3)
    first, second = rng.random(300) < 0.8, rng.random(300) < 0.6
    found = statistics.paired([run(first)], [run(second)])
    low, high = found["interval"]
    assert low < found["difference"] < high
    # About 1.96 standard errors to each side
    error = np.std(first.astype(float) - second, ddof=1) / np.sqrt(300)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert statistics.paired([run(first)], [run(second)]) == found


@pytest.mark.parametrize(
    ("first", "second", "interval"),
    [
        (
            [1, 1, 1],
            [0, 0, 0],
            [1 - 2 * 0.5615, 1.0],
        ),  # of three images as many as 0.5615 may be otherwise, says Wilson
        ([1, 1, 0], [1, 1, 0], [-0.5615, 0.5615]),
        ([1], [0], [-1.0, 1.0]),
    ],
)
def test_the_interval_of_a_constant_difference_or_of_one_image(first, second, interval):
    assert statistics.paired([run(first)], [run(second)])["interval"] == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize("other", [table([1, 1, 0]), table([1, 1], num_classes=2).assign(label=["b", "a"])])
def test_runs_that_were_evaluated_on_different_images_are_refused(other):
    one, other = Run("one", 0, None, None, table([1, 1], num_classes=2)), Run("other", 0, None, None, other)
    with pytest.raises(UserError, match="same images"):
        statistics.paired([one], [other])
    with pytest.raises(UserError, match="same images"):
        statistics.summary([one, other], [])


def test_p_values_of_several_pairs_are_corrected():
    variants = {"a": [run([1] * 9 + [0])], "b": [run([0] * 10)], "c": [run([1] * 8 + [0, 1])]}
    found = statistics.pairs(variants)
    assert [(pair["first"], pair["second"]) for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    alone = statistics.pairs({name: variants[name] for name in "ab"})
    assert found[0]["p_value"] == pytest.approx(3 * alone[0]["p_value"])
    assert found[1]["p_value"] == 1.0


def test_a_summary_is_valid_json_without_validation_images():
    import json

    found = statistics.summary([run([1, 0], val_accuracies=(NAN, NAN))], [0.5])
    text = json.dumps(found, allow_nan=False)
    assert found["best_val_accuracy"] is None and '"val_accuracy": null' in text
    assert found["epoch_seconds"] == {"fine_tune": 10.0} and found["images_per_second"] == {"fine_tune": 100.0}
