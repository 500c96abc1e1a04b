"""What the loop does when training goes wrong: a NaN loss, a device without enough memory."""

import dataclasses
import errno
import math

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from transfer_learning.config import Phase
from transfer_learning.errors import Diverged, UserError
from transfer_learning.experiments import train
from transfer_learning.experiments.train import run_experiment
from transfer_learning.storage.files import read_json
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training import checkpoint, loop, phases
from transfer_learning.training.train_step import EpochMetrics


@pytest.fixture(scope="module")
def config(small_config):
    """Both phases train on images or activations, four steps per epoch, a checkpoint after each."""
    return dataclasses.replace(
        small_config,
        dropout=0.0,  # would be drawn again for each part of a batch
        checkpoint_seconds=0.0,
        frozen=Phase(epochs=1, learning_rate=1e-2),
        fine_tune=Phase(epochs=2, learning_rate=1e-3, unfreeze="block4", augmentation="light"),
    )


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    """A run with which nothing went wrong: its directory and its evaluation."""
    run_dir = RunDir(tmp_path_factory.mktemp("runs") / "unbroken")
    return run_dir, run_experiment(config, run_dir)


def steps_per_epoch(run_dir):
    return int(pd.read_csv(run_dir.history)["updates"].iloc[0])


@pytest.mark.parametrize(
    ("phase", "step", "seconds"),
    [
        ("frozen", 1, 0.0),
        ("fine_tune", 6, 60.0),
        pytest.param("frozen", 1, 60.0, marks=pytest.mark.long),
        pytest.param("fine_tune", 6, 0.0, marks=pytest.mark.long),
        pytest.param("fine_tune", 0, 0.0, marks=pytest.mark.long),
        pytest.param("fine_tune", 0, 60.0, marks=pytest.mark.long),
    ],
)
def test_a_nan_loss_stops_the_run_and_no_checkpoint_has_it(phase, step, seconds, config, tmp_path, monkeypatch):
    """The learning rate of one step is NaN, so its weights are, and the loss of the next step."""
    config = dataclasses.replace(config, checkpoint_seconds=seconds)
    run_dir, original = RunDir(tmp_path / "run"), loop.learning_rate

    def spoilt(settings, in_phase, *others):
        is_it = settings == config.phase(phase) and in_phase == step
        return math.nan if is_it else original(settings, in_phase, *others)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", spoilt)
        patch.setattr(phases, "BYTES_PER_EXECUTION", 1)
        what = f"The loss is nan from step {step + 2} on" if seconds else f"A weight .* after step {step + 1}"
        with pytest.raises(Diverged, match=f"{what} of phase {phase} .*lower --.*learning-rate"):
            run_experiment(config, run_dir)
    arrays, values = checkpoint.load(run_dir.checkpoint)
    assert all(np.isfinite(array).all() for group in ("weights", "metrics", "best") for array in arrays[group])
    assert all(math.isfinite(row["val_loss"]) for row in values["state"]["history"])
    assert values["state"]["best_value"] is None or math.isfinite(values["state"]["best_value"])
    assert run_experiment(config, run_dir), "without the cause, the last good state goes on"


@pytest.mark.parametrize(("value", "monitor"), [(math.nan, "val_accuracy"), (math.inf, "val_loss")])
def test_a_nan_or_infinite_val_loss_stops_the_run_whatever_is_monitored(value, monitor, config, tmp_path, monkeypatch):
    config, run_dir, seen = dataclasses.replace(config, monitor=monitor), RunDir(tmp_path / "run"), []
    recorder = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda active, after_batch: (value, 0.9))
        with pytest.raises(Diverged, match=rf"The val_loss is {value} after step 4 of phase frozen \(epoch 1\)"):
            run_experiment(config, run_dir, callbacks=[recorder])
    state = checkpoint.load(run_dir.checkpoint)[1]["state"]
    assert state["history"] == [] and state["best_value"] is None and seen == []


def test_nan_weights_after_the_last_step_of_an_epoch_name_that_epoch(config, tmp_path, monkeypatch):
    """Without validation images no val_loss shows it."""
    config = dataclasses.replace(config, monitor="loss", val_fraction=0.0, checkpoint_seconds=60.0)
    original, num_steps = loop.learning_rate, []

    def spoilt(settings, in_phase, steps_per_epoch, *others):
        num_steps.append(steps_per_epoch)
        is_last = in_phase == steps_per_epoch - 1
        return math.nan if is_last else original(settings, in_phase, steps_per_epoch, *others)

    monkeypatch.setattr(loop, "learning_rate", spoilt)
    with pytest.raises(Diverged) as error:
        run_experiment(config, RunDir(tmp_path / "run"))
    assert f"A weight is NaN or infinite after step {num_steps[0]} of phase frozen (epoch 1)" in str(error.value)


def test_train_steps_are_not_waited_for(config, tmp_path, monkeypatch):
    """Reading a metric waits for the device: its number does not depend on that of the steps."""
    reads, result = [], EpochMetrics.result
    monkeypatch.setattr(EpochMetrics, "result", lambda metrics: reads.append(1) or result(metrics))
    monkeypatch.setattr(loop, "LOSS_CHECK_SECONDS", math.inf)
    counts = []
    for batch_size in (4, 16):
        sizes = dataclasses.replace(config, batch_size=batch_size, checkpoint_seconds=3600.0)
        run_experiment(sizes, run_dir := RunDir(tmp_path / str(batch_size)))
        counts.append((steps_per_epoch(run_dir), len(reads)))
        reads.clear()
    (many, of_many), (few, of_few) = counts
    assert many > few and of_many == of_few


def short_of_memory(monkeypatch, most, after_calls=0):
    """A device with memory for `most` images of a train step, from a certain call on."""
    original, calls = phases.make_train_step, 0

    def make_train_step(*arguments):
        settings = arguments[4]
        train_steps = original(*arguments)

        def limited(inputs, labels, rates):
            nonlocal calls
            calls += 1
            if calls > after_calls and settings.batch_size // settings.gradient_accumulation_steps > most:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
            return train_steps(inputs, labels, rates)

        return limited

    monkeypatch.setattr(phases, "make_train_step", make_train_step)


@pytest.mark.parametrize(
    ("most", "parts"), [(4, 2), *(pytest.param(*pair, marks=pytest.mark.long) for pair in ((3, 4), (1, 8)))]
)
def test_when_memory_runs_out_a_batch_is_computed_in_parts(most, parts, config, unbroken, tmp_path, monkeypatch):
    (run_dir, _), limited = unbroken, tmp_path / "limited"
    with monkeypatch.context() as patch:
        short_of_memory(patch, most, after_calls=steps_per_epoch(run_dir) + 2)
        evaluation = run_experiment(config, RunDir(limited))
    messages = [note["text"] for note in read_json(RunDir(limited).notes) if "Memory ran out" in note["text"]]
    assert len(messages) == int(math.log2(parts)), "each halving is logged, and in the report"
    assert f"each batch of 8 is computed in {parts} parts" in messages[-1]
    assert "from step 3 of epoch 2 on" in messages[0], "the last checkpoint is where it goes on"
    state = checkpoint.load(RunDir(limited).checkpoint)[1]["state"]
    assert state["gradient_accumulation_steps"] == parts
    history, expected = (pd.read_csv(path.history) for path in (RunDir(limited), run_dir))
    assert history["updates"].tolist() == expected["updates"].tolist()
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-3)
    assert evaluation["num_examples"]


def test_a_run_that_ran_out_of_memory_is_resumed_to_the_bit(config, tmp_path, monkeypatch):
    results = []
    for name, stops in (("unbroken", False), ("stopped", True)):
        run_dir = RunDir(tmp_path / name)
        short_of_memory(monkeypatch, 4)
        if stops:
            stop_after(monkeypatch, 6)
            with pytest.raises(UserError, match="stopped here"):
                run_experiment(config, run_dir)
            stop_after(monkeypatch, None)
        results.append((run_experiment(config, run_dir)["weights_sha256"], run_dir.history.read_bytes()))
    assert results[0] == results[1]


def stop_after(monkeypatch, num_saves):
    original, saves = checkpoint.save, 0

    def save(*arguments):
        nonlocal saves
        saves += 1
        original(*arguments)
        if saves == num_saves:
            raise UserError("stopped here")

    monkeypatch.setattr(checkpoint, "save", save)


def test_when_a_single_image_does_not_fit_it_is_a_user_error(config, tmp_path, monkeypatch):
    short_of_memory(monkeypatch, 0)
    with pytest.raises(UserError, match="The memory is not enough .* smaller --image-size"):
        run_experiment(config, RunDir(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "error"),
    [("estimate_run", MemoryError()), ("calibrate_and_evaluate", tf.errors.ResourceExhaustedError(None, None, "OOM"))],
)
def test_too_little_memory_outside_of_training_is_a_user_error(name, error, config, tmp_path, monkeypatch):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(train, name, fail)
    brief = dataclasses.replace(config, frozen=Phase(), fine_tune=dataclasses.replace(config.fine_tune, epochs=1))
    with pytest.raises(UserError, match="The memory is not enough"):
        run_experiment(brief, RunDir(tmp_path / "run"))


@pytest.mark.parametrize("failing", [*(pytest.param(number, marks=pytest.mark.long) for number in (1, 8)), 21])
def test_a_full_disk_ends_the_run_with_one_sentence_and_it_resumes_to_the_bit(
    failing, config, unbroken, tmp_path, monkeypatch, refused
):
    (unbroken_dir, expected), run_dir = unbroken, RunDir(tmp_path / "run")
    original, calls = checkpoint.sync_to_disk, 0

    def full(path):
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(path)

    def begin(_):
        run_experiment(config, run_dir)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sync_to_disk", full)
        line = refused(begin)
    assert line.startswith("error: The disk is full (") and line.endswith("continue the run with --resume.")
    assert run_experiment(config, run_dir)["weights_sha256"] == expected["weights_sha256"]
    assert run_dir.history.read_bytes() == unbroken_dir.history.read_bytes()
