"""Label issues by features: wrong labels are found by images that they did not teach, outliers by their own class."""

import numpy as np
import pytest

from transfer_learning.datasets.audit.label_issues import NUM_FOLDS, distances_to_class, find_label_issues, outliers
from transfer_learning.datasets.audit.near_duplicates import directions


def clusters(num_per_class=60, num_classes=4, width=24, spread=0.6, seed=0):
    """Features about a centre for each class, and the labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), num_per_class)
    centres = rng.normal(size=(num_classes, width))
    return (centres[labels] + spread * rng.normal(size=(len(labels), width))).astype(np.float32), labels


def alone(count):
    return np.full(count, -1)


def test_wrong_labels_are_found_with_the_right_one_and_right_ones_are_left_alone():
    features, right = clusters()
    labels = right.copy()
    wrong = np.arange(3, 240, 24)
    labels[wrong] = (labels[wrong] + 1) % 4
    issues = find_label_issues(features, labels, alone(240))
    found = set(np.flatnonzero(issues.is_issue))
    assert found <= set(wrong) and len(found) >= 0.8 * len(wrong)
    assert (issues.suggestion == right).mean() > 0.99 and (issues.probability[wrong] > 0.6).all()
    assert set(np.argsort(issues.quality)[: len(wrong)]) == set(wrong) and issues.too_small == []


def test_near_duplicates_with_the_same_wrong_label_do_not_vouch_for_each_other():
    features, right = clusters(num_per_class=20, spread=1.2)
    copies = np.repeat(features[:1], 6, axis=0)  # an image of class 0, six times more, all labelled 1
    features, labels = np.concatenate([features, copies]), np.concatenate([right, np.ones(6, int)])
    together = np.concatenate([alone(80), np.zeros(6, int)])
    apart, grouped = find_label_issues(features, labels, alone(86)), find_label_issues(features, labels, together)
    assert (grouped.quality[80:] < 0.5 * apart.quality[80:]).all() and (grouped.suggestion[80:] == 0).all()


def test_classes_of_too_few_images_are_not_rated():
    features, labels = clusters(num_per_class=20, num_classes=3)
    few = np.concatenate([np.arange(40), np.arange(40, 40 + NUM_FOLDS - 1)])
    issues = find_label_issues(features[few], labels[few], alone(len(few)))
    assert issues.too_small == [2] and (issues.suggestion[40:] == -1).all() and not issues.is_issue[40:].any()
    assert (issues.suggestion[:40] >= 0).all()
    one_class = find_label_issues(features[:20], labels[:20], alone(20))
    assert (one_class.suggestion == -1).all() and not one_class.is_issue.any()


def test_the_same_images_give_the_same_label_issues():
    features, labels = clusters(num_per_class=15, spread=2)
    first, second = (find_label_issues(features, labels, alone(60)) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_an_image_that_is_far_from_its_class_is_an_outlier():
    features, labels = clusters(num_per_class=40, spread=0.4)
    features[7] = -features[7]
    distances = distances_to_class(directions(features), labels)
    assert outliers(distances, labels).nonzero()[0].tolist() == [7] and distances.shape == (160,)


@pytest.mark.parametrize("count", [1, 2, 10])
def test_a_class_of_too_few_images_has_no_outliers(count):
    features, labels = clusters(num_per_class=40)
    few = np.concatenate([np.arange(40), np.arange(40, 40 + count)])
    distances = distances_to_class(directions(features[few]), labels[few])
    assert np.isnan(distances[40:]).all() and np.isfinite(distances[:40]).all()
    assert not outliers(distances, labels[few])[40:].any()
