"""Label issues and outliers, found by features of a backbone; a person reviews them in corrections.csv."""

import warnings
from typing import NamedTuple

import numpy as np

from transfer_learning.errors import needs_extra

NUM_FOLDS = 5
NUM_COMPONENTS = 128  # principal components of the features: more take longer and do not help
NUM_NEIGHBOURS = 5
FAR = 5.0  # median absolute deviations above the median distance of a class: an outlier


class LabelIssues(NamedTuple):
    """The result for the labels of n images."""

    is_issue: np.ndarray  # bool (n,)
    suggestion: np.ndarray  # int64 (n,), the most probable class; -1 for images of classes that are too small
    probability: np.ndarray  # float64 (n,), of that class, 0 to 1, by a classifier that was not trained on the image
    quality: np.ndarray  # float64 (n,), probability of the given label, 0 to 1
    too_small: list[int]  # classes with fewer images (groups of near-duplicates count once) than folds


def find_label_issues(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> LabelIssues:
    """Finds labels (int, from 0 on) that are probably wrong by features float32 (n, width), with confident learning.

    Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021, as cleanlab
    implements it (`find_label_issues` with `filter_by="both"`), on cross-validated probabilities of a logistic
    regression. Near-duplicates, which share a number in `groups` (-1: none), share a fold, since they would support
    each other's wrong label.
    """
    with needs_extra("audit"):
        import cleanlab  # noqa: F401
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    count = len(labels)
    groups = np.where(groups < 0, np.arange(count) + groups.max(initial=0) + 1, groups)
    num_groups = {label: len(set(groups[labels == label])) for label in np.unique(labels).tolist()}
    too_small = [label for label, number in num_groups.items() if number < NUM_FOLDS]
    rated = np.flatnonzero(~np.isin(labels, too_small))
    classes, targets = np.unique(labels[rated], return_inverse=True)
    found = LabelIssues(np.zeros(count, bool), np.full(count, -1), np.zeros(count), np.ones(count), too_small)
    if len(classes) < 2:
        return found
    scaled = (features[rated] - features[rated].mean(axis=0)) / (features[rated].std(axis=0) + 1e-6)
    components = PCA(min(NUM_COMPONENTS, *scaled.shape), random_state=0).fit_transform(scaled)
    components /= components[:, 0].std() + 1e-6
    folds = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # folds without a class, whose probability is 0 there
        options = {"groups": groups[rated], "cv": folds, "method": "predict_proba"}
        probabilities = cross_val_predict(LogisticRegression(max_iter=1000), components, targets, **options)
        issues = confident_learning(targets, probabilities)
    found.is_issue[rated] = issues.is_issue
    found.suggestion[rated] = classes[issues.suggestion]
    found.probability[rated] = issues.probability
    found.quality[rated] = issues.quality
    return found


def confident_learning(labels: np.ndarray, probabilities: np.ndarray) -> LabelIssues:
    """Finds labels, int (n,), that are probably wrong by probabilities (n, classes) of classifiers that were not trained
    on the image; see `find_label_issues`. Raises MissingExtra without the package cleanlab.
    """
    with needs_extra("audit"):
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    return LabelIssues(
        find_label_issues(labels, probabilities, filter_by="both", n_jobs=1),
        probabilities.argmax(axis=1),
        probabilities.max(axis=1),
        get_label_quality_scores(labels, probabilities),
        [],
    )


def distances_to_class(directions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean distance of each image to its nearest neighbours of the same class, float64 (n,).

    Source: Angiulli and Pizzuti, "Fast Outlier Detection in High Dimensional Spaces", 2002.

    Args:
        directions: float32 (n, width), of length 1, see `near_duplicates.directions`.
        labels: int (n,).

    Returns:
        Cosine distances, 0 to 2; NaN for classes with too few images.
    """
    from sklearn.neighbors import NearestNeighbors

    distances = np.full(len(labels), np.nan)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) > 2 * NUM_NEIGHBOURS:
            neighbours = NearestNeighbors(n_neighbors=NUM_NEIGHBOURS, metric="cosine", algorithm="brute")
            found, _ = neighbours.fit(directions[members]).kneighbors()  # without the image itself
            distances[members] = found.mean(axis=1)
    return distances


def outliers(distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns bool (n,): whether the distance is far above the median of its class; see FAR."""
    far = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        of_class = np.flatnonzero((labels == label) & np.isfinite(distances))
        if len(of_class):
            middle = np.median(distances[of_class])
            spread = np.median(np.abs(distances[of_class] - middle))
            far[of_class] = distances[of_class] > middle + FAR * spread
    return far & (distances > 0)
