"""A run that ends with the backbone it began with is evaluated by cached features, which the saved model has to confirm."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tests.support.logs import log_messages
from transfer_learning.evaluation.ood import NUM_IMAGES
from transfer_learning.experiments import evaluate
from transfer_learning.experiments.train import run_experiment
from transfer_learning.models.classifier import load_model
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training.phase_builder import PhaseBuilder


@pytest.fixture
def through_the_network(monkeypatch):
    """How many images each call of the whole network predicted."""
    counts, original = [], evaluate.predicted_logits

    def watched(classifier, images, rows, *others):
        counts.append(len(rows))
        return original(classifier, images, rows, *others)

    monkeypatch.setattr(evaluate, "predicted_logits", watched)
    monkeypatch.setattr(evaluate, "NUM_CHECKED", 2)
    return counts


def predictions(run_dir):
    paths = {split: run_dir.predictions(split) for split in ("val", "test")}
    return {split: pd.read_csv(path) for split, path in paths.items() if path.exists()}


def everything(run_dir):
    return [*map(len, predictions(run_dir).values()), NUM_IMAGES, len(predictions(run_dir)["test"])]


def test_only_a_sample_goes_through_the_network_unless_its_features_are_wrong(
    small_config, through_the_network, tmp_path, monkeypatch
):
    config = dataclasses.replace(small_config, fine_tune=dataclasses.replace(small_config.fine_tune, epochs=0))
    by_features = run_experiment(config, first := RunDir(tmp_path / "features"))
    assert through_the_network == [2]

    right, messages = PhaseBuilder.features, log_messages()

    def wrong(phases, images):
        features, rows = right(phases, images)
        return np.roll(features[rows], 1, axis=1), np.arange(len(rows))

    monkeypatch.setattr(PhaseBuilder, "features", wrong)
    by_pixels = run_experiment(config, second := RunDir(tmp_path / "pixels"))
    assert through_the_network[1:] == [2, *everything(second)]
    assert sum("so all are computed from their pixels" in message for message in messages) == 1
    for split, table in predictions(first).items():
        pd.testing.assert_frame_equal(table, predictions(second)[split], atol=1e-5)
    for kind, found in by_features["rejection"]["others"].items():
        assert found["auroc"] == pytest.approx(by_pixels["rejection"]["others"][kind]["auroc"], abs=0.02)


def test_a_saved_model_with_other_weights_is_found_and_evaluated_itself(
    small_config, through_the_network, tmp_path, monkeypatch
):
    config = dataclasses.replace(small_config, fine_tune=dataclasses.replace(small_config.fine_tune, epochs=0))
    save, messages, saved = evaluate.save_model, log_messages(), []

    def save_others(classifier, path):
        bias = classifier.model.weights[-1]
        right = bias.numpy()
        if not saved:
            bias.assign(right + np.arange(len(right), dtype=np.float32))
        save(classifier, path)
        saved.append(bias.numpy())
        bias.assign(right)

    monkeypatch.setattr(evaluate, "save_model", save_others)
    evaluation = run_experiment(config, run_dir := RunDir(tmp_path / "run"))
    assert through_the_network == [2, *everything(run_dir)]
    assert sum("so all are computed from their pixels" in message for message in messages) == 1
    classifier = load_model(run_dir.read_config(), run_dir.model, evaluation["weights_sha256"])
    np.testing.assert_array_equal(classifier.model.weights[-1].numpy(), saved[0])


def test_a_run_whose_backbone_changed_uses_the_network(small_config, through_the_network, tmp_path):
    fine_tune = dataclasses.replace(small_config.fine_tune, learning_rate=1e-2)  # and no validation images that choose
    config = dataclasses.replace(small_config, fine_tune=fine_tune, monitor="loss", val_fraction=0.0)
    run_experiment(config, run_dir := RunDir(tmp_path / "run"))
    assert through_the_network == [len(predictions(run_dir)["test"])]
