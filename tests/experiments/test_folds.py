"""`run --folds K`: each image is predicted by a head that was not trained on it."""

import dataclasses
import json
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest

from tests.experiments.test_train import StopAtEpoch
from tests.support.logs import log_messages
from transfer_learning import run
from transfer_learning.config import Phase
from transfer_learning.datasets.corrections import read_corrections
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.errors import Stopped, UserError
from transfer_learning.evaluation import predictions
from transfer_learning.experiments import folds, train
from transfer_learning.experiments.train import run_experiment
from transfer_learning.recipes.resolve import config_from_values
from transfer_learning.storage.run_directory import RunDir


@pytest.fixture(scope="module")
def config(small_config):
    """A frozen run whose head trains on all images that are not tested."""
    frozen = Phase(epochs=2, learning_rate=1e-2)
    values = {"head": (), "frozen": frozen, "fine_tune": Phase(unfreeze="all"), "folds": 3, "val_fraction": 0.0}
    return dataclasses.replace(small_config, **values)


@pytest.fixture(scope="module")
def data(config):
    return load_prepared(config)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    run_dir, messages = RunDir(tmp_path_factory.mktemp("runs") / "finished"), log_messages()
    return run_dir, run_experiment(config, run_dir), messages


class NeverStop:
    is_received = False

    def raise_if_received(self):
        pass

    def deferred(self):
        return nullcontext()


def test_every_image_that_is_trained_on_is_predicted_once(finished, data):
    run_dir, evaluation, messages = finished
    table = predictions.read(run_dir.predictions("folds"))
    assert list(table["id"]) == list(data.split("train").ids)
    assert list(table.columns) == list(predictions.read(run_dir.predictions("test")).columns)
    result = json.loads(run_dir.evaluation.read_text())["folds"]
    assert result["accuracy"] == (table["label"] == table["predicted"]).mean() and result["is_shipped_head"]
    of_folds = [row["accuracy"] for row in result["per_fold"]]
    assert len(of_folds) == result["num_folds"] == 3 and sum(row["num_examples"] for row in result["per_fold"]) == len(
        table
    )
    assert result["accuracy_spread"] == pytest.approx(np.std(of_folds, ddof=1))
    assert any(message.startswith("3 folds: out-of-fold accuracy ") for message in messages)
    assert "Cross-validation" in run_dir.report.read_text()


def test_without_validation_images_the_folds_set_the_rejection_threshold(finished):
    _, evaluation, messages = finished
    assert not finished[0].predictions("val").exists() and evaluation["rejection"]["threshold"] > 0
    assert any("out-of-fold predictions" in message for message in messages)
    assert "% of the out-of-fold predictions" in finished[0].report.read_text()
    assert not any("nan" in message for message in messages)


def test_the_labels_of_a_fold_do_not_change_its_predictions(config, data, monkeypatch):
    rows, places = folds.divide(config, data)
    monkeypatch.setattr(folds, "divide", lambda *_: (rows, places))
    before = folds.predict_folds(config, data, {}, NeverStop())
    manifest = data.manifest.copy()
    own = rows[places == 0]
    manifest.loc[own, "label"] = np.roll(manifest.loc[own, "label"], 1)
    after = folds.predict_folds(config, dataclasses.replace(data, manifest=manifest), {}, NeverStop())
    for fold in range(3):
        is_same = np.array_equal(before.logits[places == fold], after.logits[places == fold])
        assert is_same == (fold == 0)


def test_images_of_one_group_and_equal_files_share_a_fold(config, data):
    manifest = data.manifest.copy()
    train_rows = np.flatnonzero(manifest["split"] == "train")
    manifest.loc[train_rows[:2], "group"] = "pair"
    manifest.loc[train_rows[3], "sha256"] = manifest.loc[train_rows[2], "sha256"]
    rows, places = folds.divide(config, dataclasses.replace(data, manifest=manifest))
    assert list(rows) == list(train_rows) and places[0] == places[1] and places[2] == places[3]
    of_class = pd.crosstab(manifest.loc[rows, "label"].to_numpy(), places)
    assert (of_class > 0).all(axis=None)


def test_a_stopped_run_ends_with_the_same_bits_and_folds_do_not_change_the_model(
    config, finished, tmp_path, monkeypatch
):
    run_dir = RunDir(tmp_path / "stopped")
    with pytest.raises(Stopped):
        run_experiment(config, run_dir, callbacks=[StopAtEpoch(1)])
    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate_folds", stop)
        with pytest.raises(Stopped):
            run_experiment(run_dir.read_config(), run_dir)
    evaluation = run_experiment(run_dir.read_config(), run_dir)
    assert run_dir.predictions("folds").read_bytes() == finished[0].predictions("folds").read_bytes()
    assert run_dir.predictions("test").read_bytes() == finished[0].predictions("test").read_bytes()
    assert evaluation["folds"] == finished[1]["folds"]
    without = dataclasses.replace(config, folds=0, monitor="loss")
    alone = run_experiment(without, RunDir(tmp_path / "without"))
    assert alone["weights_sha256"] == evaluation["weights_sha256"] == finished[1]["weights_sha256"]


def stop(*_):
    raise Stopped(15)


def test_a_run_that_fine_tunes_keeps_its_validation_images_and_says_what_the_folds_are(small_config, tmp_path):
    config, messages = dataclasses.replace(small_config, head=(), head_features="all", folds=2), log_messages()
    evaluation = run_experiment(config, RunDir(tmp_path / "run"))
    data = load_prepared(config)
    assert len(data.split("val")) and evaluation["folds"]["num_examples"] == len(data.split("train")) + len(
        data.split("val")
    )
    assert not evaluation["folds"]["is_shipped_head"]
    assert any("2 folds (head on frozen features, before fine-tuning)" in message for message in messages)
    assert "These heads use frozen features" in RunDir(tmp_path / "run").report.read_text()


def test_the_folds_of_a_run_that_ends_with_the_closed_form_are_of_closed_forms(config, tmp_path):
    results = []
    for rate in (1e-2, 1e-1):  # at which it trains heads that are not shipped
        frozen = dataclasses.replace(config.frozen, learning_rate=rate)
        run_dir = RunDir(tmp_path / str(rate))
        results.append(run_experiment(dataclasses.replace(config, refit=True, frozen=frozen), run_dir))
    assert len({result["weights_sha256"] for result in results}) == 1
    assert results[0]["folds"] == results[1]["folds"] and results[0]["folds"]["is_shipped_head"]


def test_wrong_labels_are_listed_for_review(config, data, tmp_path):
    rows, places = folds.divide(config, data)
    labels = data.split("train").labels.copy()
    logits = 8 * np.eye(3, dtype=np.float32)[labels]
    labels[4] = (labels[4] + 1) % 3
    result = folds.evaluate_folds(folds.OutOfFold(rows, labels, logits, places), config, data, RunDir(tmp_path))
    assert result["num_label_issues"] == 1
    assert read_corrections(tmp_path / "label_issues.csv").actions == {data.split("train").ids[4]: "keep"}


def test_a_frozen_run_trains_on_the_validation_images_too(config, photos):
    values = {"dataset": str(photos), "backbone": "small_cnn", "weights": config.weights, "folds": 3, "image_size": 16}
    found, reasons = config_from_values({**values, "fine_tune.epochs": 0})
    assert found.val_fraction == 0 and any(
        "No validation images: the head trains on all images" in reason for reason in reasons
    )
    assert config_from_values({**values, "fine_tune.epochs": 1})[0].val_fraction > 0
    assert config_from_values({**values, "fine_tune.epochs": 0, "val_fraction": 0.2})[0].val_fraction == 0.2


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--folds", "1"], "--folds 1 leaves nothing to train on"),
        (["--folds", "3", "--frozen.epochs", "0"], "--folds 3 trains heads as the frozen phase does"),
        (["--folds", "40"], "--folds 40 needs 40 images (or groups) of each class"),
    ],
)
def test_bad_folds_are_one_sentence(flags, words, config, here, refused):
    common = ["--dataset", config.dataset, "--backbone", "small_cnn", "--weights", config.weights, "--image-size", "16"]
    assert words in refused(run.main, *common, "--cache-dir", config.cache_dir, *flags)


def test_folds_of_weights_that_have_seen_the_images_are_refused(config, finished, tmp_path):
    with pytest.raises(UserError, match="leave one of them out"):
        run_experiment(dataclasses.replace(config, weights=str(finished[0].path)), RunDir(tmp_path / "run"))
