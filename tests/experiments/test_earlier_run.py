"""`run --from RUN_DIR`: a run that starts from a finished one, and is compared with it on the same images."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tests.experiments.test_train import StopAtEpoch
from tests.support.logs import log_messages
from tests.support.photos import draw_photos
from transfer_learning import run
from transfer_learning.config import with_values
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.errors import Stopped, UserError
from transfer_learning.experiments.train import run_experiment
from transfer_learning.models.classifier import build_classifier, load_model, predicted_logits
from transfer_learning.models.standardization import standardized
from transfer_learning.recipes.presets import CLOSED_FORM_ONLY
from transfer_learning.recipes.resolve import config_from_values
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training.phase_builder import PhaseBuilder, find_cuts

HEADS = {"hidden": {"head": (8,)}, "all": {"head": (), "head_features": "all", "head_init": "lda"}}


@pytest.fixture(scope="module")
def more_photos(tmp_path_factory):
    """The photos of all tests and a class more."""
    return draw_photos(tmp_path_factory.mktemp("data") / "more", ("circle", "cross", "stripes", "dots"))


@pytest.fixture(scope="module")
def finished_runs(small_config, tmp_path_factory):
    runs = {name: RunDir(tmp_path_factory.mktemp("runs") / name) for name in HEADS}
    for name, run_dir in runs.items():
        run_experiment(dataclasses.replace(small_config, **HEADS[name]), run_dir)
    return runs


@pytest.fixture(params=HEADS)
def each_finished(request, finished_runs):
    return finished_runs[request.param]


@pytest.fixture(scope="module")
def finished(finished_runs):
    return finished_runs["all"]


@pytest.fixture(scope="module")
def of_hidden(finished_runs):
    """For what does not depend on the head: the run that takes less time."""
    return finished_runs["hidden"]


def continued(finished, **values):
    return config_from_values({"weights": str(finished.path), **values})[0]


def logits_of(classifier, data):
    examples = data.split("test")
    return predicted_logits(classifier, examples.inputs, examples.rows)


def test_all_settings_but_the_given_ones_are_those_of_the_earlier_run(finished):
    old = finished.read_config()
    config = continued(finished, **{"fine_tune.epochs": 7})
    expected = dataclasses.replace(old, weights=str(finished.path))
    assert config == dataclasses.replace(expected, fine_tune=dataclasses.replace(old.fine_tune, epochs=7))


def test_with_the_same_classes_the_run_starts_from_the_same_predictions(each_finished):
    finished = each_finished
    config = continued(finished)
    data = load_prepared(config)
    before = logits_of(load_model(finished.read_config(), finished.model), data)
    classifier = plain = build_classifier(config, data.class_names)
    assert classifier.copied == data.class_names
    np.testing.assert_array_equal(logits_of(classifier, data), before)
    if config.head_features != "last":  # standardized again, to the same function
        classifier = standardized(plain)
        builder = PhaseBuilder(config, classifier, data, find_cuts(config, classifier), {})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("transfer_learning.training.copied_head._loss", lambda *_: 0.0)
            builder.build("frozen")
        np.testing.assert_allclose(logits_of(classifier, data), before, rtol=1e-3, atol=1e-3)


def test_classes_of_the_earlier_run_that_are_gone_are_named(finished):
    said = log_messages()
    classifier = build_classifier(continued(finished), ("Circle", "cross", "dots", "stripes"))
    assert classifier.copied == ("cross", "stripes")
    assert said[1:] == [f"The new run does not know 1 class of {finished.path}, without training images here: circle."]


@pytest.fixture(scope="module")
def with_a_class_more(finished_runs, more_photos, tmp_path_factory):
    """By head: config, run directory, evaluation and messages of a run that started from that one, with four classes."""
    runs = {}
    for name, finished in finished_runs.items():
        config, run_dir = continued(finished, dataset=str(more_photos)), RunDir(tmp_path_factory.mktemp("runs") / name)
        messages = log_messages()
        runs[name] = config, run_dir, run_experiment(config, run_dir), messages
    return runs


@pytest.mark.parametrize("head", HEADS)
def test_a_class_more_is_filled_in_and_the_runs_are_compared_where_both_know_the_class(
    head, finished_runs, with_a_class_more
):
    config, run_dir, evaluation, messages = with_a_class_more[head]
    old = json.loads(finished_runs[head].evaluation.read_text())
    assert evaluation["class_names"] == ["circle", "cross", "dots", "stripes"]
    result = evaluation["earlier_run"]
    assert result["copied_classes"] == ["circle", "cross", "stripes"] and result["num_trained_on"] == 0
    manifest = load_prepared(config).manifest
    tested = manifest[manifest["split"] == "test"]
    assert result["num_other_classes"] == (tested["label"] == "dots").sum() > 0
    comparison = result["comparison"]
    assert comparison["num_examples"] == (tested["label"] != "dots").sum()
    assert comparison["accuracy_before"] == old["accuracy"] and result["weights_sha256"] == old["weights_sha256"]
    assert any("of classes that it does not know" in message for message in messages)
    assert any("The head starts from an earlier run: " in message for message in messages)
    assert "Comparison with the earlier run" in run_dir.report.read_text()


def test_images_that_the_earlier_run_trained_on_are_left_out_also_by_its_successors(of_hidden, tmp_path):
    second = RunDir(tmp_path / "second")  # its own images are others
    shutil.copytree(of_hidden.path, second.path)
    second.config.write_text(dataclasses.replace(of_hidden.read_config(), weights=str(of_hidden.path)).to_json())
    second.manifest.write_text("id,sha256,label,split\n")
    values = {"test_fraction": 0.5, "val_fraction": 0.0, "monitor": "loss", "frozen.epochs": 1, "fine_tune.epochs": 0}
    config, messages = continued(second, **values), log_messages()
    result = run_experiment(config, RunDir(tmp_path / "run"))["earlier_run"]
    data = load_prepared(config)
    tested = len(data.split("test"))
    assert 0 < result["num_trained_on"] < tested
    assert result["comparison"]["num_examples"] == tested - result["num_trained_on"]
    assert any("was trained or validated on" in message and "accuracy is too high" in message for message in messages)


def test_with_more_images_of_the_same_classes_those_that_are_tested_stay_so(of_hidden, tmp_path):
    more = draw_photos(tmp_path / "more")  # the photos of the earlier run
    for file in draw_photos(tmp_path / "new", num_per_class=20, seed=5).rglob("*.png"):
        file.rename(more / file.parent.name / f"new_{file.name}")
    config = continued(of_hidden, dataset=str(more), **{"frozen.epochs": 1, "fine_tune.epochs": 0})
    evaluation = run_experiment(config, RunDir(tmp_path / "run"))
    old, new = (load_prepared(one).manifest for one in (of_hidden.read_config(), config))
    split_of = new.set_index("sha256")["split"]
    assert (split_of[old["sha256"]].to_numpy() == old["split"].to_numpy()).all()
    assert (new["split"] == "train").sum() > 2 * (old["split"] == "train").sum()
    result = evaluation["earlier_run"]
    assert result["num_trained_on"] == result["num_other_classes"] == 0
    assert result["comparison"]["num_examples"] == evaluation["num_examples"] > (old["split"] == "test").sum()


@pytest.fixture(scope="module")
def of_few(small_config, tmp_path_factory):
    """A finished run with the settings of the automatic recipe for few images."""
    folder, fine_tune = tmp_path_factory.mktemp("few"), dataclasses.replace(small_config.fine_tune, epochs=0)
    config = dataclasses.replace(
        small_config, head=(), dropout=0.0, folds=2, val_fraction=0.0, monitor="loss", refit=True
    )
    config = dataclasses.replace(config, dataset=str(draw_photos(folder / "photos", num_per_class=6)))
    config = with_values(dataclasses.replace(config, fine_tune=fine_tune), CLOSED_FORM_ONLY)
    run_experiment(config, RunDir(folder / "run"))
    return RunDir(folder / "run")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"folds": 0}),  # the images that the weights know cannot validate
        ({"frozen.epochs": 5}, {"folds": 0, "frozen.learning_rate": 3e-4}),
        ({"head": (8,)}, {"folds": 0, "frozen.epochs": 45, "frozen.patience": 5, "frozen.learning_rate": 1e-3}),
        ({"dataset": "", "val_fraction": 0.0}, {"folds": 0}),
        (
            {"dataset": ""},
            {
                "folds": 0,
                "val_fraction": 0.15,
                "monitor": "val_loss",
                "frozen.epochs": 15,
                "frozen.learning_rate": 3e-4,
            },
        ),
    ],
)
def test_settings_of_a_run_on_few_images_are_not_those_of_one_from_it(values, expected, of_few, photos):
    values = {name: str(photos) if name == "dataset" else value for name, value in values.items()}
    config, reasons = config_from_values({"weights": str(of_few.path), **values}, measure=True)
    old = dataclasses.replace(of_few.read_config(), weights=str(of_few.path))
    assert config == with_values(old, values | expected)
    assert any("No folds: " in reason for reason in reasons)


def test_a_run_from_one_on_few_images_learns_from_more(of_few, more_photos, tmp_path):
    config, messages = continued(of_few, dataset=str(more_photos)), log_messages()
    evaluation = run_experiment(config, RunDir(tmp_path / "run"))
    assert evaluation["calibrated_on"] == "validation" and evaluation["earlier_run"]["comparison"]
    assert any("closed form" in message or "for all classes" in message for message in messages)


def test_a_run_without_a_test_image_is_not_compared_on_those_that_it_has_trained_on(of_hidden, tmp_path):
    new = draw_photos(tmp_path / "new", num_per_class=1, seed=9)
    config = continued(of_hidden, dataset=str(new), **{"frozen.epochs": 1, "fine_tune.epochs": 0})
    evaluation = run_experiment(config, RunDir(tmp_path / "run"))
    assert evaluation["split"] == "train" and evaluation["earlier_run"]["comparison"] is None


def test_without_an_image_that_is_left_nothing_is_compared(of_hidden, tmp_path):
    alone = draw_photos(tmp_path / "alone", ("new", "newer", "newest"), seed=3)
    config = continued(of_hidden, dataset=str(alone), **{"frozen.epochs": 1, "fine_tune.epochs": 0})
    result = run_experiment(config, RunDir(tmp_path / "run"))
    assert result["earlier_run"]["comparison"] is None and result["earlier_run"]["copied_classes"] == []
    assert "There is no image on which the two runs can be compared" in RunDir(tmp_path / "run").report.read_text()


def test_a_stopped_run_ends_with_the_same_bits_also_where_the_earlier_run_moved(finished, with_a_class_more, tmp_path):
    config, unbroken, wanted, _ = with_a_class_more["all"]
    stopped = RunDir(tmp_path / "stopped")
    for epoch in (1, 3):  # in each phase
        with pytest.raises(Stopped):
            run_experiment(config, stopped, callbacks=[StopAtEpoch(epoch)])
    moved = shutil.copytree(finished.path, tmp_path / "moved")  # the content counts, not the place
    found = run_experiment(dataclasses.replace(config, weights=str(moved)), stopped)
    assert found["weights_sha256"] == wanted["weights_sha256"]
    assert stopped.history.read_bytes() == unbroken.history.read_bytes()
    assert found["earlier_run"]["comparison"] == wanted["earlier_run"]["comparison"]


def test_a_resumed_run_notices_another_earlier_run_in_the_same_place(finished, with_a_class_more, tmp_path):
    place = tmp_path / "earlier"
    shutil.copytree(finished.path, place)
    config, run_dir = continued(RunDir(place)), RunDir(tmp_path / "run")
    with pytest.raises(Stopped):
        run_experiment(config, run_dir, callbacks=[StopAtEpoch(1)])
    shutil.rmtree(place)
    shutil.copytree(with_a_class_more["all"][1].path, place)
    with pytest.raises(UserError, match="has other initial weights than when"):
        run_experiment(config, run_dir)


def test_a_bad_start_is_one_sentence(finished, tmp_path, refused):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(finished.config, unfinished)
    path = str(finished.path)
    for arguments, words in (
        (["--from", path, "--backbone", "resnet50"], "was trained with --backbone small_cnn, and --backbone resnet50"),
        (["--from", str(unfinished)], "is unfinished; continue it with run --resume"),
        (["--from", str(tmp_path)], "is not a run directory"),
        (["--from", str(tmp_path / "nowhere")], "There is no run directory"),
        (["--from", path, "--weights", "none"], "both name weights"),
        (["--from", path, "--preset", "best"], "--preset best chooses settings"),
        (["--from", path, "--resume", path], "give one of them"),
    ):
        assert words in refused(run.main, *arguments)
