"""The closed-form head of training and validation images, where fine-tuning was not worth it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.logs import log_messages
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.models.classifier import build_classifier, logits_of_features
from transfer_learning.models.standardization import NAME as STANDARDIZE
from transfer_learning.models.standardization import standardized
from transfer_learning.recipes.presets import CLOSED_FORM_ONLY
from transfer_learning.training import phase_builder, refit, solved_heads
from transfer_learning.training.closed_form import closed_form_head
from transfer_learning.training.phase_builder import (
    PhaseBuilder,
    find_cuts,
    initialize_head,
    left_out_of,
    set_closed_form,
)
from transfer_learning.training.phase_inputs import make_phase_inputs
from transfer_learning.training.refit import refit_head
from transfer_learning.training.state import TrainingState

FROZEN, FINE_TUNED = [[{"chosen": is_frozen}, {"chosen": not is_frozen}] for is_frozen in (True, False)]


@pytest.fixture(scope="module")
def trained(small_config):
    """The phases of a run whose frozen phase is over, and the features of its training and validation images."""
    config = dataclasses.replace(small_config, head=(), dropout=0.0, head_features="all", head_init="lda", refit=True)
    data = load_prepared(config)
    classifier = standardized(build_classifier(config, data.class_names))
    phases = PhaseBuilder(config, classifier, data, find_cuts(config, classifier), {})
    phases.build("frozen")
    return phases, make_phase_inputs(phases.cuts["frozen"], config.frozen, True, config, data, {})


def weights_of(phases):
    return [np.array(weight) for weight in phases.classifier.head.weights]


def solved(phases, examples):
    """Sets the head to the closed form of these examples, and returns how heads without each predict it."""
    return left_out_of(set_closed_form(phases.config, phases.classifier, examples, None), examples, None)


@pytest.mark.parametrize("final_weights", [FROZEN, []], ids=["the frozen phase was better", "no fine-tune phase"])
def test_the_head_is_fitted_to_training_and_validation_images(final_weights, trained, monkeypatch):
    phases, (train, val) = trained
    if not final_weights:
        fine_tune = dataclasses.replace(phases.config.fine_tune, epochs=0)
        phases = dataclasses.replace(phases, config=dataclasses.replace(phases.config, fine_tune=fine_tune))
    initialize_head(phases.config, phases.classifier, train)
    without, before = logits_of_features(phases.classifier, val.inputs, val.rows), weights_of(phases)
    val_logits, left_out = refit_head(phases, TrainingState(final_weights=final_weights))
    refitted = weights_of(phases)
    np.testing.assert_array_equal(val_logits, without)
    monkeypatch.setattr(solved_heads, "closed_form_head", None)  # a second run finds all heads in the cache
    initialize_head(phases.config, phases.classifier, train)
    again, left_out_again = refit_head(phases, TrainingState(final_weights=final_weights))
    for one, other in zip((again, *left_out_again), (val_logits, *left_out), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    for weight, expected in zip(weights_of(phases), refitted, strict=True):
        np.testing.assert_array_equal(weight, expected)
    both = train.joined(val)
    for result, expected in zip(left_out, solved(phases, both), strict=True):
        np.testing.assert_array_equal(result, expected)
    assert len(left_out[0]) == len(left_out[1]) == len(both)
    for found, expected, old in zip(refitted, weights_of(phases), before, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert not np.array_equal(found, old)


@pytest.mark.parametrize(
    ("changes", "final_weights"),
    [({}, FINE_TUNED), ({}, []), ({"refit": False}, FROZEN), ({"head_init": "random"}, FROZEN)],
    ids=["fine-tuned", "stopped before the choice", "not asked for", "no closed form"],
)
def test_other_heads_stay(changes, final_weights, trained):
    phases, (train, _) = trained
    initialize_head(phases.config, phases.classifier, train)
    before = weights_of(phases)
    phases = dataclasses.replace(phases, config=dataclasses.replace(phases.config, **changes))
    assert refit_head(phases, TrainingState(final_weights=final_weights)) == (None, None)
    assert all(np.array_equal(*pair) for pair in zip(weights_of(phases), before, strict=True))


def test_the_rate_of_a_run_without_training_leaves_the_closed_form_as_it_is(trained):
    """A head that an epoch has improved a little, but on every image, would be kept instead of fitted again."""
    phases, (train, _) = trained
    active = phases.build("frozen")
    before = weights_of(phases)
    batches = [(train.inputs[train.rows[start : start + 8]], train.labels[start : start + 8]) for start in (0, 8, 16)]
    for inputs, labels in batches:
        active.train_steps(inputs, labels, [CLOSED_FORM_ONLY["frozen.learning_rate"]])
    for weight, old in zip(weights_of(phases), before, strict=True):
        np.testing.assert_allclose(weight, old, rtol=0, atol=1e-7)


def test_without_validation_images_the_closed_form_is_calibrated_by_leaving_out(trained):
    phases, (train, _) = trained
    manifest = phases.data.manifest[phases.data.manifest["split"] != "val"]
    phases = dataclasses.replace(phases, data=dataclasses.replace(phases.data, manifest=manifest))
    expected = solved(phases, train)
    for trained_by, is_logged in ((0.0, False), (1e-7, False), (0.1, True)):
        logits, said = phases.classifier.head.get_layer("logits"), log_messages()
        logits.kernel.assign_add(np.full(logits.kernel.shape, trained_by))
        val_logits, left_out = refit_head(phases, TrainingState(final_weights=FROZEN))
        assert val_logits is None
        assert all(np.array_equal(*pair) for pair in zip(left_out, expected, strict=True))
        assert any("The head is the closed form again" in message for message in said) == is_logged
        assert not any("The head starts from" in message for message in said)  # it ends


def test_images_whose_class_has_no_others_do_not_calibrate(trained):
    phases, (train, _) = trained
    first = np.unique(train.labels, return_index=True)[1]
    assert solved(phases, train.at(first)) is None
    some = train.at(np.append(first, np.flatnonzero(train.labels == 0)[1]))
    assert solved(phases, some)[1].tolist() == [0, 0]


def test_validation_images_that_evaluate_the_run_are_not_trained_on(trained):
    phases, _ = trained
    manifest = phases.data.manifest[phases.data.manifest["split"] != "test"]
    without = dataclasses.replace(phases.data, manifest=manifest)
    assert without.eval_split == "val"
    assert refit_head(dataclasses.replace(phases, data=without), TrainingState(final_weights=FROZEN)) == (None, None)


@pytest.mark.parametrize("is_few", [False, True])
def test_a_head_that_training_has_made_clearly_better_stays_if_enough_images_show_it(is_few, trained, monkeypatch):
    phases, (_, val) = trained
    monkeypatch.setattr(refit, "FEW", len(val) + is_few)
    manifest, classes = phases.data.manifest.copy(), phases.data.class_names
    is_val = manifest["split"] == "val"
    others = dict(zip(classes, classes[1:] + classes[:1], strict=True))
    manifest.loc[is_val, "label"] = manifest.loc[is_val, "label"].map(others)
    phases = dataclasses.replace(phases, data=dataclasses.replace(phases.data, manifest=manifest))
    config, head = phases.config, phases.classifier.head
    _, val = make_phase_inputs(phases.cuts["frozen"], config.frozen, True, config, phases.data, {})
    by_heart = closed_form_head(val, len(classes), [1.0] * len(classes))
    head.get_layer(STANDARDIZE).set_weights([np.zeros(len(by_heart.kernel)), np.ones(len(by_heart.kernel))])
    head.get_layer("logits").set_weights([by_heart.kernel, by_heart.bias])
    before = weights_of(phases)
    val_logits, _ = refit_head(phases, TrainingState(final_weights=FROZEN))
    assert (val_logits is not None) == is_few
    assert all(np.array_equal(*pair) for pair in zip(weights_of(phases), before, strict=True)) != is_few


def test_a_head_that_a_tiny_rate_has_made_better_on_every_image_does_not_stay(trained, monkeypatch):
    """Without it the head lacks the validation images of a large dataset because of a gain of 1e-8."""
    phases, (train, val) = trained
    monkeypatch.setattr(refit, "FEW", len(val))
    phases.start_head = []
    losses = iter([np.full(len(val), 0.5), np.full(len(val), 0.5 - 1e-8)])
    monkeypatch.setattr(refit, "calibrated_losses", lambda *_: next(losses))
    val_logits, left_out = refit_head(phases, TrainingState(final_weights=FROZEN))
    assert len(val_logits) == len(val) and len(left_out[0]) == len(train) + len(val)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_after_fine_tuning_the_head_can_be_solved_on_the_present_backbone(num_workers, trained, monkeypatch):
    phases, _ = trained
    classifier, split = phases.classifier, phases.data.split("train")
    layer = next(layer for layer in classifier.backbone.layers if layer.weights)
    before = layer.get_weights()
    layer.set_weights([1.5 * weight for weight in before])
    images = split.inputs[split.rows].astype(np.float32)
    features = np.asarray(classifier.extractor(images))
    initialize_head(phases.config, classifier, dataclasses.replace(split, inputs=features, rows=np.arange(len(split))))
    expected = weights_of(phases)
    if num_workers == 2:  # the sum adds what the other worker would have computed

        def sum_with_other(array, seconds):
            own, start = phases.workers.part(len(array)), next(starts)
            total = array.copy()
            total[own.stop :] += features[start + own.stop : start + len(array)]
            return total

        starts = iter(range(0, len(split), 16))
        monkeypatch.setattr(phase_builder, "IMAGES_PER_SUM", 16)
        workers = SimpleNamespace(part=lambda count: slice(0, count // 2), count=2, sum=sum_with_other)
        phases = dataclasses.replace(phases, workers=workers)
    phases.solve_head()
    layer.set_weights(before)
    for weight, value in zip(weights_of(phases), expected, strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-3, atol=1e-3)


def test_a_closed_form_after_fine_tuning_is_fitted_to_validation_images_too_and_they_calibrate_the_head_before(
    trained, monkeypatch
):
    phases, (train, val) = dataclasses.replace(trained[0]), trained[1]
    computed, outputs = [], phase_builder.outputs
    monkeypatch.setattr(phase_builder, "outputs", lambda *args: computed.append(len(args[3])) or outputs(*args))
    phases.solve_head()
    for variable in phases.classifier.head.get_layer("logits").weights:
        variable.assign(variable / 4)
    without, before = logits_of_features(phases.classifier, val.inputs, val.rows), weights_of(phases)
    trained_before = phases.train_logits()
    val_logits, left_out = refit_head(phases, TrainingState(final_weights=[{"chosen": True, "is_solved": True}]))
    assert left_out is None
    np.testing.assert_allclose(val_logits, without, atol=1e-4)
    assert computed == [len(train), len(val)]  # no image twice
    *standardization, kernel, bias = weights_of(phases)
    assert phases.train_logits().std() == pytest.approx(np.std(trained_before), rel=1e-4)  # as confident as before
    initialize_head(phases.config, phases.classifier, train.joined(val))
    *expected, solved_kernel, solved_bias = weights_of(phases)
    factor = kernel.std() / solved_kernel.std()
    for weight, value, old in zip(
        (*standardization, kernel, bias), (*expected, factor * solved_kernel, factor * solved_bias), before, strict=True
    ):
        np.testing.assert_allclose(weight, value, rtol=1e-3, atol=1e-3)
        assert not np.array_equal(weight, old)


@pytest.mark.parametrize(
    ("changes", "is_candidate"),
    [({}, True), ({"refit": False}, False), ({"head_init": "random"}, False)],
    ids=["refit", "not asked for", "no closed form"],
)
def test_a_head_is_solved_after_fine_tuning_where_the_config_refits_closed_forms(
    changes, is_candidate, trained, monkeypatch
):
    phases = dataclasses.replace(trained[0], config=dataclasses.replace(trained[0].config, **changes))
    assert phases.may_solve_head == is_candidate
    monkeypatch.setattr(phase_builder, "MAX_FEATURE_BYTES", 1e3)
    assert not phases.may_solve_head  # too many features for the memory
