"""The public Python API: `train` and `load_run` do what the commands do, without a command line."""

import subprocess
import sys

import pandas as pd
import pytest

import transfer_learning as tl
from tests.support import ROOT
from tests.support.photos import SIZE
from transfer_learning.errors import UserError
from transfer_learning.experiments import api
from transfer_learning.recipes import resolve
from transfer_learning.storage.files import read_json


@pytest.fixture(scope="module")
def options(small_config, tmp_path_factory):
    return {
        "backbone": small_config.backbone,
        "weights": small_config.weights,
        "image_size": SIZE,
        "head": (16,),
        "cache_dir": tmp_path_factory.mktemp("cache"),
        "frozen": {"epochs": 1},
        "run_dir": tmp_path_factory.mktemp("runs") / "a",
    }


@pytest.fixture(scope="module")
def trained(small_config, options):
    return tl.train(small_config.dataset, epochs=2, **options)


def test_options_are_fields_of_the_config(trained, small_config, options):
    config = trained.config
    assert (config.dataset, config.backbone, config.image_size) == (small_config.dataset, "small_cnn", SIZE)
    assert (config.frozen.epochs, config.fine_tune.epochs, config.head) == (1, 2, (16,))
    assert trained.run_dir.path == options["run_dir"] and trained.run_dir.is_finished


def test_a_run_has_its_evaluation_its_report_and_predicts(trained, photos):
    assert 0 <= trained.evaluation["accuracy"] <= 1 and trained.evaluation["split"] == "test"
    assert trained.report.read_text().startswith("<!doctype html>")
    images = sorted(photos.rglob("*.*"))[:3]
    table = trained.predict(images)
    assert isinstance(table, pd.DataFrame) and list(table.columns[:3]) == ["file", "class", "confidence"]
    assert list(table["file"]) == list(map(str, images))
    assert set(table["class"]) <= set(trained.class_names)


def test_the_same_call_returns_the_finished_run_and_another_config_is_refused(trained, small_config, options):
    before = trained.run_dir.report.stat().st_mtime_ns
    again = tl.train(small_config.dataset, epochs=2, **options)
    assert again.evaluation == trained.evaluation
    assert trained.run_dir.report.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="fine_tune.epochs is 2, not 3"):
        tl.train(small_config.dataset, epochs=3, **options)


def test_an_occupied_directory_and_another_config_are_refused_before_settings_are_measured(
    trained, small_config, options, tmp_path, monkeypatch
):
    monkeypatch.setattr(resolve, "config_from_values", lambda *_, **__: pytest.fail("settings were measured"))
    monkeypatch.setattr(api, "config_from_values", lambda *_, **__: pytest.fail("settings were measured"))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="holds other files"):
        tl.train(small_config.dataset, **options | {"run_dir": tmp_path})
    with pytest.raises(UserError, match="seed is 0, not 7"):
        tl.train(small_config.dataset, epochs=2, seed=7, **options)


def test_automatic_choices_are_in_the_log_of_the_run(trained):
    log = trained.run_dir.log.read_text()
    for note in read_json(trained.run_dir.notes):
        assert note["text"] in log
    assert log.count("Batch size ") == 1 and f"Run directory: {trained.run_dir.path}" in log


def test_load_run_opens_a_finished_run(trained):
    run = tl.load_run(trained.run_dir.path)
    assert run.evaluation == trained.evaluation
    with pytest.raises(UserError, match="no run directory"):
        tl.load_run(trained.run_dir.path / "figures" / "missing")


def test_a_run_is_found_after_the_working_directory_changed(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.run_dir.path.parent)
    run = tl.load_run(trained.run_dir.path.name)
    monkeypatch.chdir(tmp_path)
    assert run.evaluation == trained.evaluation and run.config == trained.config


def test_an_unknown_option_is_named(small_config):
    with pytest.raises(UserError, match="unknown field epoch"):
        tl.train(small_config.dataset, epoch=3)


def test_several_workers_are_those_of_the_command(small_config, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"index": 1}}')
    with pytest.raises(UserError, match='TF_CONFIG names 2 workers; start `transfer-learning run`.*strategy="one"'):
        tl.train(small_config.dataset)


def test_importing_the_package_imports_neither_keras_nor_numpy():
    code = (
        "import os, sys, transfer_learning as tl\n"
        "print(os.environ['KERAS_BACKEND'], sorted({'tensorflow', 'keras', 'numpy', 'rich'} & set(sys.modules)), tl.train)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tensorflow [] <function train")
