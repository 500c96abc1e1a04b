"""The closed-form head: the solution of the equations it claims to solve, chosen by what it does not see."""

import dataclasses

import numpy as np
import pytest
import scipy.special
from sklearn.linear_model import Ridge

from tests.support.logs import log_messages
from transfer_learning.datasets.pipeline import Examples
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.models.classifier import build_classifier
from transfer_learning.training import closed_form
from transfer_learning.training.closed_form import closed_form_head, standardization
from transfer_learning.training.phase_builder import PhaseBuilder, find_cuts


def clouds(num_examples=300, width=20, num_classes=3, distance=1.5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_examples).astype(np.int32)
    centres = rng.normal(size=(num_classes, width)) * distance
    features = (rng.normal(size=(num_examples, width)) + centres[labels] + 5).astype(np.float32)
    return Examples(features, np.arange(num_examples), labels, np.arange(num_examples).astype(object))


def loss_of(kernel, bias, examples):
    logits = examples.inputs[examples.rows].astype(np.float64) @ kernel + bias
    return -scipy.special.log_softmax(logits, axis=1)[np.arange(len(examples)), examples.labels].mean()


@pytest.mark.parametrize("class_weights", [[1.0, 1.0, 1.0], [0.2, 1.0, 3.0]])
@pytest.mark.parametrize("chunk", [7, 100, 4096])
def test_it_is_scikit_learns_ridge_made_into_logits(chunk, class_weights, monkeypatch):
    monkeypatch.setattr(closed_form, "CHUNK", chunk)
    monkeypatch.setattr(closed_form, "PENALTIES", np.array([0.3]))
    monkeypatch.setattr(closed_form, "FACTORS", np.array([4.0]))
    examples = clouds()
    head = closed_form_head(examples, 3, class_weights)
    weights = np.array(class_weights)[examples.labels]
    mean = np.average(examples.inputs, axis=0, weights=weights)
    penalty = 0.3 * (weights[:, None] * (examples.inputs - mean) ** 2).sum() / 20
    fitted = Ridge(penalty).fit(examples.inputs.astype(np.float64), np.eye(3)[examples.labels], weights)
    np.testing.assert_allclose(head.kernel, 4 * fitted.coef_.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(head.bias, 4 * fitted.intercept_, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("class_weights", [[1.0, 1.0, 1.0], [0.2, 1.0, 3.0]])
def test_the_loss_is_that_of_fits_without_each_example(class_weights, monkeypatch):
    monkeypatch.setattr(closed_form, "FACTORS", np.array([4.0]))
    examples, weights = clouds(40, 6), np.array(class_weights)[clouds(40, 6).labels]
    mean = np.average(examples.inputs, axis=0, weights=weights)
    penalty = 0.3 * (weights[:, None] * (examples.inputs - mean) ** 2).sum() / 6
    monkeypatch.setattr(closed_form, "PENALTIES", np.array([0.3]))
    losses = []
    for left_out in range(40):
        rest = np.delete(np.arange(40), left_out)
        fitted = Ridge(penalty).fit(
            examples.inputs[rest].astype(np.float64), np.eye(3)[examples.labels[rest]], weights[rest]
        )
        logits = 4 * fitted.predict(examples.inputs[left_out : left_out + 1].astype(np.float64))
        losses.append(-scipy.special.log_softmax(logits, axis=1)[0, examples.labels[left_out]])
    assert closed_form_head(examples, 3, class_weights).loss == pytest.approx(
        np.average(losses, weights=weights), rel=1e-6
    )


@pytest.mark.parametrize(("width", "relative"), [(6, 0.3), (3000, 1e-4)])  # of wide features the fit is nearly perfect
def test_the_loss_with_groups_is_that_of_fits_without_each_group(width, relative, monkeypatch):
    monkeypatch.setattr(closed_form, "FACTORS", np.array([4.0]))
    monkeypatch.setattr(closed_form, "PENALTIES", np.array([relative]))
    examples, groups = clouds(40, width, distance=9 / width), np.arange(40) // 3 * 7
    penalty = relative * ((examples.inputs - examples.inputs.mean(axis=0)) ** 2).sum() / width
    losses = []
    for group in np.unique(groups):
        without, inside = groups != group, groups == group
        fitted = Ridge(penalty).fit(examples.inputs[without].astype(np.float64), np.eye(3)[examples.labels[without]])
        logits = 4 * fitted.predict(examples.inputs[inside].astype(np.float64))
        losses += list(-scipy.special.log_softmax(logits, axis=1)[np.arange(inside.sum()), examples.labels[inside]])
    blocks = () if width == 6 else (width,)
    if blocks:  # all variances alike, so that nothing is scaled
        monkeypatch.setattr(closed_form, "standardization", lambda *_: (np.zeros(width), np.ones(width)))
    head = closed_form_head(examples, 3, [1.0] * 3, "ridge", blocks, groups)
    assert head.loss == pytest.approx(np.mean(losses), rel=1e-3)


def test_lda_is_the_discriminant_analysis_with_a_shrunken_covariance(monkeypatch):
    monkeypatch.setattr(closed_form, "FACTORS", np.array([1.0]))
    monkeypatch.setattr(closed_form, "PENALTIES", np.array([0.3]))
    examples = clouds(200, 6)
    features, labels = examples.inputs.astype(np.float64), examples.labels
    centred = features - features.mean(axis=0)
    means, counts = np.stack([centred[labels == k].mean(axis=0) for k in range(3)]), np.bincount(labels)
    within = (centred - means[labels]).T @ (centred - means[labels]) + 0.3 * (centred**2).sum() / 6 * np.eye(6)
    directions = np.linalg.solve(within, means.T)
    directions -= directions.mean(axis=1, keepdims=True)
    head = closed_form_head(examples, 3, [1.0] * 3, "lda")
    factor = np.linalg.norm(head.kernel) / np.linalg.norm(directions)
    np.testing.assert_allclose(head.kernel, factor * directions, rtol=1e-3, atol=1e-4)
    offset = -0.5 * np.einsum("kd,dk->k", means, np.linalg.solve(within, means.T))
    expected = centred @ head.kernel + factor * (offset - offset.mean()) + np.log(counts / 200)
    np.testing.assert_allclose(features @ head.kernel + head.bias, expected, atol=1e-3)


@pytest.mark.parametrize("class_weights", [(1.0, 1.0, 1.0), (1.0, 3.0, 0.5)])
@pytest.mark.parametrize("groups", [None, np.arange(30) // 3])
@pytest.mark.parametrize("width", [6, 60])
def test_the_loss_of_lda_is_that_of_analyses_without_each_group(width, groups, class_weights, monkeypatch):
    monkeypatch.setattr(closed_form, "PENALTIES", np.array([0.03]))
    examples = clouds(30, width)
    features, labels = examples.inputs.astype(np.float64), examples.labels
    weights = np.array(class_weights)[labels]
    one_hot, center = weights[:, None] * np.eye(3)[labels], np.average(features, axis=0, weights=weights)
    penalty = 0.03 * (weights @ (features - center) ** 2).sum() / width
    raw = np.empty((30, 3))
    for group in np.unique(np.arange(30) if groups is None else groups):
        inside = (np.arange(30) if groups is None else groups) == group
        rest, classes = features[~inside], one_hot[~inside]
        means = classes.T @ rest / classes.sum(axis=0)[:, None]
        distances = rest - means[labels[~inside]]
        within = distances.T @ (weights[~inside, None] * distances) + penalty * np.eye(width)
        directions = np.linalg.solve(within, (means - center).T)
        offset = -0.5 * np.einsum("kd,dk->k", means - center, directions)
        raw[inside] = (features[inside] - center) @ directions + offset
    raw -= raw.mean(axis=1, keepdims=True)
    prior = np.log(one_hot.sum(axis=0) / weights.sum())
    losses = [
        np.average(
            -scipy.special.log_softmax(factor * raw / raw.std() + prior, axis=1)[np.arange(30), labels], weights=weights
        )
        for factor in closed_form.FACTORS
    ]
    head = closed_form_head(examples, 3, list(class_weights), "lda", groups=groups)
    assert head.loss == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize("kind", ["ridge", "lda"])
@pytest.mark.parametrize("num_examples", [15, 200])  # fewer than features, and more
def test_standardized_features_have_no_scale_and_either_equation_gives_the_head(num_examples, kind, monkeypatch):
    examples = clouds(num_examples, 20)
    mean, scale = standardization(examples, (12, 8))
    plain = dataclasses.replace(examples, inputs=((examples.inputs - mean) * scale).astype(np.float32))
    expected = closed_form_head(plain, 3, [1.0, 2.0, 1.0], kind)  # in the basis of the features, whatever their number
    other = closed_form_head(plain, 3, [1.0, 2.0, 1.0], "lda" if kind == "ridge" else "ridge")
    shared = closed_form_head(plain, 3, [1.0, 2.0, 1.0], kind, fit=other.fit)
    np.testing.assert_array_equal(shared.kernel, expected.kernel)  # both kinds have one regression
    scaled = examples.inputs * np.repeat([1e-3, 1e3], (12, 8)).astype(np.float32)
    head = closed_form_head(dataclasses.replace(examples, inputs=scaled), 3, [1.0, 2.0, 1.0], kind, (12, 8))
    logits = (scaled - head.mean) * head.scale @ head.kernel + head.bias
    np.testing.assert_allclose(logits, plain.inputs @ expected.kernel + expected.bias, rtol=0.02, atol=0.02)
    assert head.loss == pytest.approx(expected.loss, rel=1e-2)


def test_a_silent_channel_does_not_explode():
    examples = clouds(50)
    examples.inputs[:, 3], examples.inputs[7, 3] = 0.0, 1e-3
    _, scale = standardization(examples, (20,))
    assert scale[3] < 2 / examples.inputs.std(axis=0).mean()


@pytest.mark.parametrize("num_examples", [30, 300])  # fewer than features, and more
def test_it_predicts_what_it_has_not_seen(num_examples):
    everything = clouds(600, width=60)
    known, fresh = (
        Examples(everything.inputs, rows, everything.labels[rows], everything.ids[rows])
        for rows in np.split(np.arange(600), [num_examples])
    )
    head = closed_form_head(known, 3, [1.0] * 3)
    predicted = (fresh.inputs[fresh.rows] @ head.kernel + head.bias).argmax(axis=1)
    assert head.kernel.dtype == head.bias.dtype == np.float32
    assert (predicted == fresh.labels).mean() > 0.9 and loss_of(head.kernel, head.bias, fresh) < 0.35


def test_without_anything_to_learn_it_is_near_the_frequencies():
    examples = clouds(400, distance=0.0)
    head = closed_form_head(examples, 3, [1.0] * 3)
    assert head.loss == pytest.approx(np.log(3), abs=0.05)


@pytest.mark.parametrize("kind", ["ridge", "lda"])
@pytest.mark.parametrize("groups", [None, np.arange(40) // 2])
def test_the_only_example_of_a_class_does_not_choose_and_one_of_each_is_recognized(groups, kind):
    examples = clouds(40, 200, distance=3.0)
    known = examples.at(np.array([list(examples.labels).index(label) for label in range(3)]))
    head = closed_form_head(known, 3, [1.0] * 3, kind, (200,))
    logits = ((examples.inputs - head.mean) * head.scale) @ head.kernel + head.bias
    assert (logits.argmax(axis=1) == examples.labels).mean() > 0.9
    rare = np.flatnonzero(examples.labels == 2)
    rare = rare[rare // 2 == rare[0] // 2] if groups is not None else rare[:1]
    some = np.concatenate([np.flatnonzero(examples.labels < 2), rare])
    head = closed_form_head(examples.at(some), 3, [1.0] * 3, kind, (200,), groups if groups is None else groups[some])
    assert head.loss < 0.2 and 2 not in examples.labels[some][head.left_out[0]]


@pytest.mark.parametrize("kind", ["one class is missing", "a feature is constant", "all features are", "two examples"])
def test_edges(kind):
    examples = clouds(60)
    if kind == "one class is missing":
        examples = Examples(examples.inputs, examples.rows, np.minimum(examples.labels, 1), examples.ids)
    elif kind == "a feature is constant":
        examples.inputs[:, 3] = 7.0
    elif kind == "all features are":
        examples.inputs[:] = 7.0
    else:
        examples = Examples(examples.inputs, np.array([0, 1]), np.array([0, 1], np.int32), examples.ids[:2])
    for method in ("ridge", "lda"):
        for blocks in ((), (20,)):
            head = closed_form_head(examples, 3, [1.0] * 3, method, blocks, np.arange(len(examples)) // 2)
            assert np.isfinite(head.kernel).all() and np.isfinite(head.bias).all() and np.isfinite(head.loss)


@pytest.mark.parametrize(
    ("head", "head_init", "starts_there"), [((), "ridge", True), ((), "random", False), ((16,), "ridge", False)]
)
def test_a_linear_head_on_cached_features_starts_there(head, head_init, starts_there, small_config):
    config = dataclasses.replace(small_config, head=head, head_init=head_init)
    data = load_prepared(config)
    messages = log_messages()
    classifier = build_classifier(config, data.class_names)
    before = [np.array(weight) for weight in classifier.head.weights]
    active = PhaseBuilder(config, classifier, data, find_cuts(config, classifier), {}).build("frozen")
    assert any("starts from ridge regression" in sentence for sentence in messages) == starts_there
    if starts_there:
        expected = closed_form_head(active.train, 3, [1.0] * 3)
        np.testing.assert_array_equal(classifier.head.weights[0], expected.kernel)
        np.testing.assert_array_equal(classifier.head.weights[1], expected.bias)
    else:
        assert all(np.array_equal(old, new) for old, new in zip(before, classifier.head.weights, strict=True))
