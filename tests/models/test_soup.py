"""Mean weights and greedy soups against numbers computed with NumPy."""

import numpy as np
import pytest

from transfer_learning.models.classifier import build_classifier
from transfer_learning.models.soup import Step, greedy_soup, mean_weights

NAMES = ("a", "b", "c")


def weights_of(seed, dtype=np.float32):
    random = np.random.default_rng(seed)
    return [random.normal(size=shape).astype(dtype) for shape in ((3, 4), (4,), ())]


def test_a_soup_of_three_is_their_mean():
    candidates = [weights_of(seed) for seed in range(3)]
    for value, parts in zip(mean_weights(candidates), zip(*candidates, strict=True), strict=True):
        assert value.dtype == np.float32
        assert np.array_equal(value, np.mean(np.array(parts, np.float64), axis=0).astype(np.float32))


@pytest.mark.parametrize("times", [1, 2, 3, 7])
def test_a_soup_of_a_network_with_itself_is_that_network_to_the_bit(small_config, times):
    classifier = build_classifier(small_config, NAMES)
    before = classifier.weights_digest()
    classifier.model.set_weights(mean_weights([classifier.model.get_weights()] * times))
    assert classifier.weights_digest() == before


def test_nothing_that_was_given_is_changed():
    candidates = [weights_of(0), weights_of(1)]
    mean_weights(candidates)
    assert all(np.array_equal(old, new) for old, new in zip(candidates[0], weights_of(0), strict=True))


def test_a_greedy_soup_leaves_out_what_makes_it_worse():
    """One weight; the nearer the soup is to 10 the better it is."""
    asked = []

    def one_by_one():
        for value in (9.0, 30.0, 11.0, 10.0):
            asked.append(value)
            yield [np.float32([value])]

    def accuracy_of(weights):
        assert len(asked) == len(tried) + 1, "a network is loaded when its turn comes"
        tried.append(float(weights[0][0]))
        return 1 - abs(tried[-1] - 10) / 100

    tried = []
    weights, steps = greedy_soup(one_by_one(), accuracy_of)
    assert tried == [9.0, 19.5, 10.0, 10.0]
    assert weights[0] == [10.0]
    assert [step.is_taken for step in steps] == [True, False, True, True]
    assert steps[0] == Step(0.99, True)


def test_a_member_that_changes_nothing_is_added():
    _, steps = greedy_soup([[np.float32([1.0])], [np.float32([2.0])]], lambda weights: 0.5)
    assert [step.is_taken for step in steps] == [True, True]
