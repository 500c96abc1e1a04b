"""The whole path, from a folder of images to an evaluated classifier, through the commands that a user calls."""

import csv
import dataclasses
import io
import json
import re
import shutil
import sys
import threading
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import transfer_learning as tl
from tests.support.photos import SIZE, draw_photos
from tests.support.shortened import with_files
from transfer_learning import evaluate, predict, run
from transfer_learning.cli.parser import run_main
from transfer_learning.config import Phase, RunConfig
from transfer_learning.errors import ExitCode, UserError
from transfer_learning.evaluation import predictions
from transfer_learning.experiments.train import run_experiment
from transfer_learning.machine.monitor import Monitor, read_hardware
from transfer_learning.recipes import resolve
from transfer_learning.storage.run_directory import RunDir

FILES = set(
    "config.json environment.json log.txt notes.json foresight.json manifest.csv ignored.csv history.csv timings.csv "
    "hardware.csv model.keras model.tflite evaluation.json classification_report.txt report.html csv_log.csv "
    "predictions/val.csv predictions/test.csv figures/curves.png figures/confusion_matrix.png "
    "figures/confusion_matrix_normalised.png figures/samples.png figures/reliability.png figures/hardware.png".split()
)


@pytest.fixture(scope="module")
def finished(small_config, tmp_path_factory):
    """A run through the command, with the output that it printed."""
    run_dir = RunDir(tmp_path_factory.mktemp("runs") / "finished")
    arguments = [
        *("--dataset", small_config.dataset, "--weights", small_config.weights),
        *("--cache-dir", small_config.cache_dir, "--run-dir", str(run_dir.path)),
        *f"--backbone small_cnn --image-size {SIZE} --head 16 --batch-size 8 --tensorboard --csv-log".split(),
        *"--frozen.epochs 8 --frozen.learning-rate 0.01".split(),
        *"--fine-tune.epochs 4 --fine-tune.learning-rate 0.001".split(),
    ]
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, with_files():
        patch.setattr("sys.stdout", output)
        assert run_main(run.main, arguments) == 0
    return run_dir, output.getvalue()


def test_every_file_of_a_run_is_there(finished):
    run_dir, output = finished
    found = {str(path.relative_to(run_dir.path)) for path in run_dir.path.rglob("*") if path.is_file()}
    assert FILES <= found, FILES - found
    others = {name for name in found - FILES if name.split("/")[0] not in ("checkpoint", "tensorboard", ".lock")}
    assert others <= {"figures/mistakes.png"}
    assert len(list(run_dir.checkpoint.iterdir())) == 2
    assert f"\nReport: {run_dir.report}\n" in output


def test_everything_printed_is_in_the_log_too(finished):
    run_dir, output = finished
    log = run_dir.log.read_text()
    assert len(output.splitlines()) > 20
    for line in output.splitlines():
        assert line.removeprefix("warning: ") in log
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO ", log)


def test_each_automatic_choice_is_printed_and_kept_with_its_reason(finished):
    run_dir, output = finished
    notes = [note["text"] for note in json.loads(run_dir.notes.read_text())]
    assert all(note in output for note in notes)
    for words in ("Augmentation", "Device: ", "Precision ", "seed 0", "Strategy one (one device, "):
        assert any(words in note for note in notes), words


def test_the_evaluation_has_what_it_promises(finished):
    run_dir, output = finished
    evaluation = json.loads(run_dir.evaluation.read_text())
    low, high = evaluation["accuracy_interval"]
    assert 0 <= low <= evaluation["accuracy"] <= high <= 1
    assert f"test accuracy {evaluation['accuracy']:.2%}" in output
    table = predictions.read(run_dir.predictions("test"))
    assert evaluation["num_examples"] == len(table) == np.sum(evaluation["confusion_matrix"])
    assert evaluation["accuracy"] == (table["label"] == table["predicted"]).mean()
    assert set(evaluation["per_class"]) == {"circle", "cross", "stripes"} == set(evaluation["class_names"])
    assert len(evaluation["weights_sha256"]) == 64
    for phase, epochs in (("frozen", 8), ("fine_tune", 4)):
        result = evaluation[phase]
        assert 1 <= result["epochs"] <= epochs and result["val_loss"] > 0 and result["seconds"] > 0


def test_the_history_has_one_row_per_epoch_over_both_phases(finished):
    history = pd.read_csv(finished[0].history)
    assert list(history["epoch"]) == list(range(1, len(history) + 1))
    assert list(dict.fromkeys(history["phase"])) == ["frozen", "fine_tune"]
    assert history[["loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"]].notna().all(axis=None)


def test_the_environment_says_what_a_result_rests_on(finished):
    environment = json.loads(finished[0].environment.read_text())
    assert environment["versions"]["tensorflow"] and environment["device"]["precision"] == "float32"
    assert environment["dataset"]["num_images"] == 42 and len(environment["dataset"]["fingerprint"]) == 64
    assert len(environment["sessions"]) == 1


def test_the_hardware_is_watched_and_shown_by_the_report_and_by_tensorboard(finished):
    table = read_hardware(finished[0].hardware)
    assert set(table["session"]) == {1} and (table["memory_available_mb"] > 0).all()
    shown = EventAccumulator(str(finished[0].tensorboard / "hardware")).Reload()
    assert len(shown.Scalars("hardware/memory_available_mb")) == len(table)
    report = finished[0].report.read_text()
    assert "Resource usage</h2>" in report and "used by the run" in report and "hardware.png" not in report


def test_watching_each_train_step_changes_no_bit(small_config, tmp_path, monkeypatch):
    config = dataclasses.replace(
        small_config, frozen=Phase(epochs=1), fine_tune=Phase(epochs=2, learning_rate=1e-4, unfreeze="block5")
    )
    stages, rows = [], []
    enter, trained = Monitor.stage, Monitor.trained

    def stage(self, name):
        stages.append(name)
        return enter(self, name)

    def sampled(self, num_images, learning_rate=None):
        trained(self, num_images, learning_rate)
        rows.append({"num_images": num_images, **self.sample()})

    results = []
    for name in ("alone", "watched"):
        monkeypatch.setattr(Monitor, "_watch", lambda self: None)
        run_dir = RunDir(tmp_path / name)
        evaluation = run_experiment(config, run_dir)
        results.append(
            (evaluation["weights_sha256"], run_dir.history.read_bytes(), run_dir.predictions("test").read_bytes())
        )
        monkeypatch.setattr(Monitor, "stage", stage)
        monkeypatch.setattr(Monitor, "trained", sampled)
    assert results[0] == results[1]
    assert stages == ["decode", "frozen", "fine_tune", "evaluate"]
    for phase in ("frozen", "fine_tune"):
        settings, of_phase = config.phase(phase), [row for row in rows if row["stage"] == phase]
        num_train = (pd.read_csv(run_dir.manifest)["split"] == "train").sum()
        assert sum(row["num_images"] for row in of_phase) == settings.epochs * num_train
        for row in of_phase:  # the beginning of an epoch has neither
            assert (row["images_per_second"] is None) == (row["num_images"] == 0)
            assert row["learning_rate"] == (settings.learning_rate if row["num_images"] else None)
    assert len(read_hardware(run_dir.hardware)) == 1 + len(rows)
    assert "monitor" not in {thread.name for thread in threading.enumerate()}


def test_a_run_that_fails_before_its_first_checkpoint_leaves_no_files(small_config, tmp_path, capsys):
    config = dataclasses.replace(small_config, test_fraction=0.0, val_fraction=0.0, monitor="loss", tensorboard=True)
    with pytest.raises(UserError, match="nothing could be evaluated"):
        run_experiment(config, RunDir(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_better_than_chance_classifier_comes_out(finished):
    """The shapes are easy, so a path that loses labels, order or preprocessing shows."""
    assert json.loads(finished[0].evaluation.read_text())["accuracy"] > 0.6


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluate_gives_the_same_predictions_again(finished, split, capsys):
    run_dir = finished[0]
    before = run_dir.predictions(split).read_bytes()
    assert run_main(evaluate.main, [str(run_dir.path), "--split", split]) == 0
    assert run_dir.predictions(split).read_bytes() == before
    again = json.loads(run_dir.evaluation_of(split).read_text())
    assert again["split"] == split and again["num_examples"] == before.count(b"\n") - 1
    assert f"{split} accuracy {again['accuracy']:.2%}" in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "difference"), [([], 1e-4), (["--exact"], 0.0)])
def test_predict_agrees_with_the_test_predictions_whatever_is_asked(flags, difference, finished, photos, capsys):
    run_dir = finished[0]
    table = predictions.read(run_dir.predictions("test")).set_index("id")
    assert run_main(predict.main, [str(run_dir.path), str(photos), *flags]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert len(rows) == 42 and "Predicted 42 images, 0 unreadable." in captured.err
    by_id = {row["file"].removeprefix(f"{photos}/"): row for row in rows}
    for id, expected in table.iterrows():
        assert by_id[id]["class"] == expected["predicted"]
        assert abs(np.float32(by_id[id]["confidence"]) - np.float32(expected["confidence"])) <= difference


def test_predict_gives_an_unreadable_image_a_row_with_a_reason_or_leaves_it_out(finished, photos, tmp_path, capsys):
    bad, good = tmp_path / "bad.png", photos / "circle" / "000.png"
    bad.write_bytes(b"no image")
    assert run_main(predict.main, [str(finished[0].path), str(good), str(bad)]) == 0
    captured = capsys.readouterr()
    first, second = csv.DictReader(io.StringIO(captured.out))
    assert first["class"] and first["problem"] == "" and "cannot be decoded" in second["problem"]
    assert (second["file"], second["class"], second["confidence"]) == (str(bad), "", "")
    assert "Predicted 1 image, 1 unreadable (1 not an image)." in captured.err
    assert run_main(predict.main, [str(finished[0].path), str(good), str(bad), "--skip-unreadable"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 2
    assert "Predicted 1 image, skipped 1 (1 not an image)." in captured.err
    (tmp_path / "note.txt").touch()
    assert run_main(predict.main, [str(finished[0].path), str(good), str(tmp_path), "--skip-unreadable"]) == 0
    assert "(1 not an image); 1 other file ignored: 1 not named like an image (.txt)." in capsys.readouterr().err


def test_predict_writes_classes_in_order_to_a_file_and_reads_names_from_standard_input(
    finished, photos, tmp_path, capsys, monkeypatch
):
    run_dir, output = finished[0], tmp_path / "found.parquet"
    names = [str(photos / "circle" / "000.png"), str(tmp_path / "missing.png")]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("\n".join(names).encode())))
    arguments = ["-", f"{photos}/cr*/00[01].png", "--top-k", "9", "--output", str(output)]
    assert run_main(predict.main, [str(run_dir.path), *arguments]) == 0
    assert capsys.readouterr().out == ""
    table = pd.read_parquet(output)
    assert list(table["file"]) == [*names, *(f"{photos}/cross/00{number}.png" for number in (0, 1))]
    assert table["problem"][1] == "there is no such file" and np.isnan(table["confidence"][1])
    assert list(table.columns[-2:]) == ["class_3", "confidence_3"]
    readable = table.drop(index=1)
    columns = ["confidence", "confidence_2", "confidence_3"]
    assert (readable[columns].sum(axis=1) - 1).abs().max() < 1e-6
    assert readable["confidence"].ge(readable["confidence_2"]).all()
    threshold = json.loads(run_dir.evaluation.read_text())["rejection"]["threshold"]
    assert (readable["rejected"] == (readable["confidence"] < threshold)).all()


def test_predict_tta_flip_is_that_of_evaluate(finished, photos, tmp_path, capsys):
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(finished[0].path, copy.path)
    assert run_main(evaluate.main, [str(copy.path), "--tta", "flip"]) == 0
    expected = predictions.read(copy.predictions("test", tta=True)).set_index("id")
    output = tmp_path / "found.jsonl"
    arguments = [*(str(photos / id) for id in expected.index), "--tta", "flip", "--output", str(output)]
    assert run_main(predict.main, [str(copy.path), *arguments]) == 0
    found = pd.read_json(output, lines=True)
    assert list(found["class"]) == list(expected["predicted"])
    assert np.allclose(found["confidence"], expected["confidence"], atol=1e-6)


def test_the_python_api_takes_paths_bytes_and_pixels(finished, photos, tmp_path):
    path = photos / "circle" / "000.png"
    with Image.open(path) as image:
        pixels = np.asarray(image)
    found = tl.load_run(finished[0].path).predict([path, path.read_bytes(), pixels, b"no image"])
    assert list(found["file"]) == [str(path), "", "", ""] and len(set(found["confidence"][:3])) == 1
    assert "cannot be decoded" in found["problem"][3] and found["class"][3] == ""
    assert len(tl.load_run(finished[0].path).predict(pixels)) == 1


def test_a_finished_run_is_not_run_again(finished, refused, capsys, monkeypatch):
    path = str(finished[0].path)
    before = {file: file.stat().st_mtime_ns for file in finished[0].path.rglob("*")}
    assert run_main(run.main, ["--resume", path]) == 0
    assert "is finished" in capsys.readouterr().out
    monkeypatch.setattr(resolve, "config_from_values", lambda *_, **__: pytest.fail("settings were measured"))
    assert "holds a finished run" in refused(run.main, "--dataset", "digits", "--run-dir", path)
    assert {file: file.stat().st_mtime_ns for file in finished[0].path.rglob("*")} == before


def test_changed_images_are_not_evaluated_as_if_they_were_the_same(small_config, weights_file, tmp_path, refused):
    photos, run_dir = draw_photos(tmp_path / "photos"), RunDir(tmp_path / "run")
    config = dataclasses.replace(small_config, dataset=str(photos), fine_tune=Phase())
    run_experiment(config, run_dir)
    (photos / "cross" / "000.png").unlink()
    assert "are not those that" in refused(evaluate.main, run_dir.path)


def only(**changes):
    """Changes of the small config that leave one epoch of one phase, unless they name another."""
    return {"frozen": Phase(epochs=1, learning_rate=1e-2), "fine_tune": Phase()} | changes


FINE_TUNE = {"frozen": Phase(), "fine_tune": Phase(epochs=1, learning_rate=1e-3, unfreeze="all")}


KINDS = [
    only(),
    only(**FINE_TUNE),
    only(**FINE_TUNE, weights="none"),
    only(precision="mixed_float16"),
    only(fine_tune=Phase(epochs=1, optimizer="adamw", weight_decay=0.1, schedule="cosine", unfreeze="0.3")),
    only(input_size=8, resize="pad", head=()),
]
MORE_KINDS = [
    only(frozen=Phase(epochs=1, augmentation="light")),
    only(**FINE_TUNE, gradient_accumulation_steps=4, class_weights="balanced", label_smoothing=0.1),
    only(frozen=Phase(epochs=2, optimizer="sgd", schedule="plateau", warmup_epochs=1.0)),
    only(fine_tune=Phase(epochs=1, learning_rate=1e-3, unfreeze="block4"), find_learning_rate=True),
    only(test_fraction=0.0),
    only(val_fraction=0.0, monitor="loss"),
]


@pytest.mark.parametrize(
    "changes", [*KINDS, *(pytest.param(changes, marks=pytest.mark.long) for changes in MORE_KINDS)], ids=str
)
def test_every_kind_of_config_runs_to_its_report(small_config, tmp_path, changes):
    with with_files():
        config = dataclasses.replace(small_config, inference_file=False, **changes)
        evaluation = run_experiment(config, RunDir(tmp_path / "run"))
    assert (tmp_path / "run" / "report.html").exists()
    assert evaluation["split"] == ("val" if changes.get("test_fraction") == 0 else "test")
    for name in ("frozen", "fine_tune"):
        assert (evaluation[name] is not None) == (changes[name].epochs > 0)


def test_cached_features_are_not_taken_for_those_of_images_decoded_in_another_way(small_config, tmp_path):
    """The same files and the same network: only the decoding differs."""
    draw_photos(tmp_path / "photos", shape=(SIZE, 2 * SIZE))
    losses = []
    for number, resize in enumerate(["squash", "crop"]):
        config = dataclasses.replace(
            small_config, **only(), dataset=str(tmp_path / "photos"), resize=resize, cache_dir=str(tmp_path / "cache")
        )
        losses.append(run_experiment(config, RunDir(tmp_path / str(number)))["frozen"]["loss"])
    assert losses[0] != losses[1]


def test_callbacks_of_keras_are_driven_as_by_fit(small_config, tmp_path):
    class Recorder(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.calls, self.logs = [], []

        def on_train_begin(self, logs=None):
            self.calls.append("train_begin")

        def on_epoch_begin(self, epoch, logs=None):
            self.calls.append(("epoch_begin", epoch))

        def on_train_batch_end(self, batch, logs=None):
            self.calls.append(("batch_end", batch))
            self.logs.append(logs)

        def on_epoch_end(self, epoch, logs=None):
            self.calls.append(("epoch_end", epoch))
            self.logs.append(logs)
            assert self.model.optimizer.learning_rate > 0

        def on_train_end(self, logs=None):
            self.calls.append("train_end")

    recorder = Recorder()
    config = dataclasses.replace(
        small_config,
        batch_size=16,
        frozen=Phase(epochs=2),
        fine_tune=Phase(epochs=1, learning_rate=1e-3, unfreeze="block5"),
    )
    run_experiment(config, RunDir(tmp_path / "run"), callbacks=[recorder])
    epochs = [[("epoch_begin", n), ("batch_end", 0), ("batch_end", 1), ("epoch_end", n)] for n in range(3)]
    assert recorder.calls == ["train_begin", *epochs[0], *epochs[1], *epochs[2], "train_end"]
    assert set(recorder.logs[0]) == {"loss", "accuracy"}
    assert set(recorder.logs[2]) == {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}


def test_a_nan_loss_ends_the_run_with_one_sentence_and_its_own_exit_code(small_config, tmp_path, capsys):
    config = dataclasses.replace(small_config, frozen=Phase(epochs=3, learning_rate=1e30, optimizer="sgd"))
    run_dir = RunDir(tmp_path / "run")

    def main(arguments):
        run_experiment(config, run_dir)

    assert run_main(main, []) == ExitCode.DIVERGED, "by which a search for a learning rate knows it"
    assert "lower --frozen.learning-rate" in capsys.readouterr().err
    assert list(run_dir.checkpoint.iterdir()), "the last good state is there"


def test_the_config_of_a_run_is_the_one_that_was_asked_for(finished):
    config = RunConfig.from_json(finished[0].config.read_text())
    assert config.head == (16,) and config.batch_size == 8 and config.fine_tune.epochs == 4
