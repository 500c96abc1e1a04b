"""Runs and comparisons of version 0.1 are still read, used and continued; see old_runs/make_fixtures.py."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.old_runs import tiny_backbone
from transfer_learning import compare, evaluate, predict, report, run
from transfer_learning.cli.parser import run_main
from transfer_learning.experiments.comparison import run as comparison_run
from transfer_learning.experiments.train import run_experiment
from transfer_learning.models.backbones import BACKBONES
from transfer_learning.storage.run_directory import RunDir

OLD = Path(__file__).parent / "old_runs"
EXPECTED = json.loads((OLD / "expected.json").read_text())
A, B = "runs/finished_a", "runs/finished_b"


@pytest.fixture
def old(tmp_path, monkeypatch, short_runs):
    """A copy of the old runs as the working directory, with their backbone in the table."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.setitem(BACKBONES, "tiny", tiny_backbone.row())


def read(path):
    return json.loads(Path(path).read_text())


@pytest.mark.parametrize("name", ["finished_a", "finished_b"])
def test_a_finished_run_is_predicted_with_evaluated_and_reported(name, old, capsys):
    expected, path = EXPECTED[name], f"runs/{name}"
    before = {split: pd.read_csv(RunDir(path).predictions(split)) for split in ("val", "test")}
    assert run_main(predict.main, [path, *(row["file"] for row in expected["predict"])]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for row, wanted in zip(rows, expected["predict"], strict=True):
        assert (row["file"], row["class"]) == (wanted["file"], wanted["class"])
        assert float(row["confidence"]) == pytest.approx(wanted["confidence"], abs=1e-5)
    files = [*(row["file"] for row in expected["predict"]), "photos/dots/000.png"]
    assert run_main(predict.main, [path, *files, "--reject"]) == 0
    assert [r["class"] for r in csv.DictReader(io.StringIO(capsys.readouterr().out))] == expected["predict_unknown"]
    for split in ("val", "test"):
        assert run_main(evaluate.main, [path, "--split", split]) == 0
        assert read(f"{path}/evaluation_{split}.json")["accuracy"] == expected["accuracy"][split]
        pd.testing.assert_frame_equal(pd.read_csv(RunDir(path).predictions(split)), before[split], atol=1e-5)
    assert run_main(report.main, [path]) == 0
    assert "<h2>" in Path(path, "report.html").read_text()
    assert run_main(run.main, ["--resume", path]) == 0 and "is finished" in capsys.readouterr().out


def test_finished_runs_are_averaged_and_compared(old):
    assert run_main(evaluate.main, [A, B, "--run-dir", "runs/ensemble"]) == 0
    assert read("runs/ensemble/evaluation_test.json")["accuracy"] == EXPECTED["ensemble"]["accuracy"]
    assert run_main(evaluate.main, [A, B, "--paired", "--run-dir", "runs/paired"]) == 0
    assert run_main(evaluate.main, [A, B, "--soup", "--run-dir", "runs/soup"]) == 0
    soup, expected = read("runs/soup/evaluation.json"), EXPECTED["soup"]
    assert soup["weights_sha256"] == expected["weights_sha256"] and soup["accuracy"] == expected["accuracy"]
    assert run_main(predict.main, ["runs/soup", "photos/circle/000.png"]) == 0


def test_a_stopped_run_continues_to_the_same_result(old, capsys):
    assert run_main(run.main, ["--resume", "runs/unfinished"]) == 0
    out = capsys.readouterr().out
    assert "Continuing after epoch 3 and 2 train steps." in out
    found, wanted = pd.read_csv("runs/unfinished/history.csv"), pd.read_csv("expected_history.csv")
    same_machine = "The runtime has changed" not in out
    if same_machine:
        assert Path("runs/unfinished/history.csv").read_bytes() == Path("expected_history.csv").read_bytes()
        assert read("runs/unfinished/evaluation.json")["weights_sha256"] == EXPECTED["unfinished"]["weights_sha256"]
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-3)
    assert read("runs/unfinished/evaluation.json")["accuracy"] == pytest.approx(
        EXPECTED["unfinished"]["accuracy"], abs=0.1
    )


def test_a_finished_run_is_the_start_of_another(old):
    arguments = ["--from", A, "--run-dir", "runs/next", "--frozen.epochs", "2", "--fine-tune.epochs", "0"]
    assert run_main(run.main, [*arguments, "--frozen.warmup-epochs", "1"]) == 0
    result = read("runs/next/evaluation.json")["earlier_run"]
    assert result["weights_sha256"] == read(f"{A}/evaluation.json")["weights_sha256"]
    assert result["copied_classes"] == ["circle", "cross", "stripes"] and result["num_trained_on"] == 0
    assert result["comparison"]["accuracy_before"] == EXPECTED["finished_a"]["accuracy"]["test"]


def test_a_comparison_goes_on_with_another_seed(old, monkeypatch, capsys):
    started = []

    def child(run_dir, stop):
        started.append(run_dir.path.name)
        run_experiment(run_dir.read_config(), run_dir)

    monkeypatch.setattr(comparison_run, "run_child", None)
    assert run_main(compare.main, ["--resume", "runs/comparison"]) == 0
    variants = read("runs/comparison/comparison.json")["variants"]
    expected = EXPECTED["comparison"]["sides"]
    assert {name: row["accuracy"] for name, row in variants.items()} == {
        name: row["accuracy"] for name, row in expected.items()
    }
    monkeypatch.setattr(comparison_run, "run_child", child)
    assert run_main(compare.main, ["--resume", "runs/comparison", "--seeds", "2"]) == 0
    assert sorted(started) == ["cold-seed1", "warm-seed1"]
    accuracy = {n: row["accuracy"] for n, row in read("runs/comparison/comparison.json")["variants"].items()}
    for name, value in EXPECTED["comparison"]["accuracy_with_two_seeds"].items():
        assert np.isclose(accuracy[name], value, atol=0.1)
