"""Images that their features speak against: labels that are probably wrong, and pictures like no other of their class.

Both are only doubts. A person decides, by the table that `corrections.py` reads.
"""

import warnings
from typing import NamedTuple

import numpy as np

from transfer_learning.errors import needs_extra

NUM_FOLDS = 5
NUM_COMPONENTS = 128  # principal ones of the features: more take longer and tell no more
NUM_NEIGHBOURS = 5
FAR = (
    5.0  # an outlier is so many median absolute deviations further from its neighbours than its class is in the median
)


class LabelIssues(NamedTuple):
    """What was found about the labels of n images; the arrays are in their order."""

    is_doubtful: np.ndarray  # bool (n,)
    suggestion: np.ndarray  # int64 (n,), the most probable class; -1 where the image was not judged
    probability: np.ndarray  # float64 (n,), of that class, 0 to 1, by a classifier that has not seen the image
    quality: np.ndarray  # float64 (n,), probability of the given label: the lowest is the most doubtful
    too_small: list[int]  # classes with fewer images, or groups of them, than folds, which were not judged


def find_label_issues(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> LabelIssues:
    """Finds labels that are probably wrong, by confident learning.

    A logistic regression on the features tells each image's class from images of other folds alone; near-duplicates share
    a fold, since they would vouch for each other's wrong label. Northcutt, Jiang and Chuang, "Confident Learning:
    Estimating Uncertainty in Dataset Labels", 2021, as cleanlab implements it (`find_label_issues`, where it prunes by class
    and by noise rate at once).

    Args:
        features: float32 (n, width).
        labels: int (n,), from 0 on.
        groups: int (n,); images of one number share a fold; each of -1 stands alone.
    """
    with needs_extra("audit"):
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    count = len(labels)
    groups = np.where(groups < 0, np.arange(count) + groups.max(initial=0) + 1, groups)
    num_groups = {label: len(set(groups[labels == label])) for label in np.unique(labels).tolist()}
    too_small = [label for label, number in num_groups.items() if number < NUM_FOLDS]
    judged = np.flatnonzero(~np.isin(labels, too_small))
    classes, targets = np.unique(labels[judged], return_inverse=True)
    found = LabelIssues(np.zeros(count, bool), np.full(count, -1), np.zeros(count), np.ones(count), too_small)
    if len(classes) < 2:
        return found
    scaled = (features[judged] - features[judged].mean(axis=0)) / (features[judged].std(axis=0) + 1e-6)
    components = PCA(min(NUM_COMPONENTS, *scaled.shape), random_state=seed).fit_transform(scaled)  # they know no labels
    components /= components[:, 0].std() + 1e-6
    folds = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of groups that leave a fold without a class: its probability there is 0
        probabilities = cross_val_predict(
            LogisticRegression(max_iter=1000),
            components,
            targets,
            groups=groups[judged],
            cv=folds,
            method="predict_proba",
        )
        found.is_doubtful[judged] = find_label_issues(targets, probabilities, filter_by="both", n_jobs=1)
    found.suggestion[judged] = classes[probabilities.argmax(axis=1)]
    found.probability[judged] = probabilities.max(axis=1)
    found.quality[judged] = get_label_quality_scores(targets, probabilities)
    return found


def distances_to_class(directions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How far each image lies from others of its class: the mean distance to its nearest ones, float64 (n,).

    Source: Angiulli and Pizzuti, "Fast Outlier Detection in High Dimensional Spaces", 2002.

    Args:
        directions: float32 (n, width), of length 1, see `near_duplicates.directions`.
        labels: int (n,).

    Returns:
        Cosine distances, 0 to 2; not-a-number where the class holds too few images to tell.
    """
    from sklearn.neighbors import NearestNeighbors

    distances = np.full(len(labels), np.nan)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) > 2 * NUM_NEIGHBOURS:
            neighbours = NearestNeighbors(n_neighbors=NUM_NEIGHBOURS, metric="cosine", algorithm="brute")
            found, _ = neighbours.fit(directions[members]).kneighbors()  # of the others, not of itself
            distances[members] = found.mean(axis=1)
    return distances


def outliers(distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns bool (n,): whose distance is far above the median of its class; see FAR."""
    far = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        of_class = np.flatnonzero((labels == label) & np.isfinite(distances))
        if len(of_class):
            middle = np.median(distances[of_class])
            spread = np.median(np.abs(distances[of_class] - middle))
            far[of_class] = distances[of_class] > middle + FAR * spread
    return far & (distances > 0)
