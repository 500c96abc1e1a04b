"""A run with a head on all stages, from the closed form to the saved model."""

import dataclasses
import json
from unittest.mock import Mock

import keras
import numpy as np
import pandas as pd
import pytest

from tests.support.logs import log_messages
from transfer_learning.errors import Stopped, UserError
from transfer_learning.experiments import evaluate
from transfer_learning.experiments.ensembles import evaluate_again
from transfer_learning.experiments.finished_run import FinishedRun
from transfer_learning.experiments.soups import make_soup
from transfer_learning.experiments.train import run_experiment
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training import final_weights


class StopAtEpoch(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Stopped(15)


@pytest.fixture(scope="module")
def config(small_config, tmp_path_factory):
    fine_tune = dataclasses.replace(small_config.fine_tune, ema_decay=0.5, augmentation="mixup")
    head = {"head": (), "head_features": "all", "head_init": "lda", "refit": True}
    return dataclasses.replace(
        small_config, fine_tune=fine_tune, cache_dir=str(tmp_path_factory.mktemp("cache")), **head
    )


@pytest.fixture(scope="module", autouse=True)
def enough_validation_images():
    """The few of the small config are as many as all candidates need."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(final_weights, "FEW", 2)
        yield


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    run_dir = RunDir(tmp_path_factory.mktemp("runs") / "finished")
    return run_dir, run_experiment(config, run_dir)


def test_keras_alone_reads_the_model_that_was_evaluated(finished):
    run_dir, evaluation = finished
    model = keras.models.load_model(run_dir.model)  # without our code: no layer of our own is inside
    table = pd.read_csv(run_dir.predictions("test"))
    assert len(table) and evaluation["weights_sha256"] == json.loads(run_dir.evaluation.read_text())["weights_sha256"]
    assert model.count_params() == evaluation["num_parameters"]
    assert np.isfinite(model.predict(np.zeros((1, *model.input_shape[1:])), verbose=0)).all()


def test_features_are_computed_once_also_if_fine_tuning_starts_from_another_head(finished):
    run_dir, _ = finished
    log, num_images = run_dir.log.read_text(), pd.read_csv(run_dir.manifest)["split"].isin(("train", "val")).sum()
    assert "Fine-tuning starts from ridge regression" in log
    assert log.count(f"Computing the features of {num_images} images") == 1


@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.long), 3])  # in each phase
def test_a_stopped_run_ends_with_the_same_bits(epoch, config, finished, tmp_path):
    run_dir = RunDir(tmp_path / "stopped")
    with pytest.raises(Stopped):
        run_experiment(config, run_dir, callbacks=[StopAtEpoch(epoch)])
    evaluation = run_experiment(config, run_dir)
    assert evaluation["weights_sha256"] == finished[1]["weights_sha256"]
    assert (
        evaluation["final_weights"] == finished[1]["final_weights"]
    )  # also of the moving average and closed-form heads
    assert run_dir.history.read_bytes() == finished[0].history.read_bytes()


def test_fine_tuned_weights_that_are_worse_are_not_shipped_and_end_early(config, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(final_weights, "FEW", 20)
    monkeypatch.setattr(evaluate, "predicted_logits", whole := Mock(side_effect=evaluate.predicted_logits))
    fine_tune = dataclasses.replace(config.fine_tune, epochs=6, learning_rate=0.2, unfreeze="all")
    run_dir = RunDir(tmp_path / "worse")
    messages = log_messages()
    evaluation = run_experiment(dataclasses.replace(config, fine_tune=fine_tune), run_dir)
    chosen = next(row for row in evaluation["final_weights"] if row["chosen"])
    assert chosen["fine_tuned"] == 0.0
    assert evaluation["frozen"]["val_loss"] < evaluation["fine_tune"]["val_loss"]
    assert evaluation["fine_tune"]["epochs"] == 3
    assert any("Fine-tuning ends after 3 of 6 epochs" in message for message in messages)
    assert any(message.startswith("Final weights: the frozen phase") for message in messages)
    assert not any("made val_loss worse" in message for message in messages)
    assert "Final weights" in run_dir.report.read_text()
    assert whole.call_count == 1, "the cached features are those of the weights that are shipped; a sample checks them"
    # The head is fitted to the validation images, too, and what is said of them is by the head without them.
    assert evaluation["is_refitted"] and "The head was fitted again" in run_dir.report.read_text()
    assert (
        evaluation["calibrated_on"] == "left-out" and "% of the leave-one-out predictions" in run_dir.report.read_text()
    )
    recorded, run, said = run_dir.predictions("val").read_text(), FinishedRun(run_dir), log_messages()
    run.data("val")
    assert any("better than on new images" in message for message in said)
    with pytest.raises(UserError, match="also fitted on the validation images"):
        evaluate_again(run, "val")
    assert run_dir.predictions("val").read_text() == recorded
    with pytest.raises(UserError, match="was also fitted on them; train the runs with --no-refit"):
        make_soup([run, run], RunDir(tmp_path / "soup"))


def test_all_parts_of_the_way_the_moving_average_and_closed_form_heads_are_compared(finished):
    *rows, average, halfway, end = finished[1]["final_weights"]
    assert [row["fine_tuned"] for row in rows] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert average["is_average"] and not any(row["is_average"] for row in [*rows, halfway, end])
    assert halfway["is_solved"] and end["is_solved"] and "50 %, closed-form head" in finished[0].report.read_text()
    assert rows[0]["val_loss"] <= finished[1]["frozen"]["val_loss"] * 1.0001  # calibrated
    assert rows[-1]["val_accuracy"] == pytest.approx(finished[1]["fine_tune"]["val_accuracy"])
    assert sum(row["chosen"] for row in finished[1]["final_weights"]) == 1
