"""The command `compare` on small images: learning-rate search, stops between and inside runs, results, refusals."""

import csv
import io
import json
import logging
import os
import re
import shutil
import signal
import threading
import time

import keras
import numpy as np
import pandas as pd
import pytest

from tests.support.html import Page
from tests.support.photos import SIZE, draw_photos
from transfer_learning import compare
from transfer_learning.cli.console import UNPRINTED, console, set_up_logging
from transfer_learning.cli.parser import command_line, run_main
from transfer_learning.config import with_values
from transfer_learning.datasets.sources.cifar10 import CLASS_NAMES
from transfer_learning.errors import Diverged, ExitCode, Stopped, UserError
from transfer_learning.evaluation import predictions
from transfer_learning.experiments.comparison import run as comparison_run
from transfer_learning.experiments.comparison.directory import ComparisonDir
from transfer_learning.experiments.train import run_experiment
from transfer_learning.models.backbones import build_backbone
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training.stopping import StopRequest


def arguments(small_config, path, *more):
    return [
        *("--dataset", small_config.dataset, "--cache-dir", small_config.cache_dir, "--run-dir", str(path)),
        *f"--image-size {SIZE} --batch-size 8 --backbone small_cnn --head none --frozen.epochs 0 --epochs 2".split(),
        *"--fine-tune.unfreeze all --fine-tune.schedule constant --fine-tune.optimizer adam".split(),
        *"--fine-tune.weight-decay 0 --fine-tune.warmup-epochs 0".split(),
        *("--config", f"warm=--weights {small_config.weights}", "--config", "cold=--weights none"),
        *more,
    ]


class Children:
    """Runs in this process what would be child processes; stops before or inside the child with a given number."""

    def __init__(self):
        self.started = []
        self.stop_before = self.stop_inside = None  # the number of a child, from 1 on

    def __call__(self, run_dir, stop):
        if len(self.started) + 1 == self.stop_before:
            self.stop_before = None
            raise Stopped(signal.SIGTERM)
        self.started.append(run_dir.path.name)
        callbacks = []
        if len(self.started) == self.stop_inside:
            self.stop_inside = None
            callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: os.kill(os.getpid(), signal.SIGINT))]
        run_experiment(run_dir.read_config(), run_dir, callbacks)


@pytest.fixture(scope="module")
def finished(small_config, tmp_path_factory):
    """A comparison that was stopped between two runs, then inside one, and continued twice; with its output."""
    directory = ComparisonDir(tmp_path_factory.mktemp("runs") / "finished")
    given = arguments(small_config, directory.path, "--seeds", "2", "--reach", "0.3,1")
    children = Children()
    children.stop_before, children.stop_inside = 2, 3
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison_run, "run_child", children)
        patch.setattr(console, "_file", output)
        codes = [run_main(compare.main, words) for words in (given, ["--resume", str(directory.path)], given)]
    return directory, children.started, codes, output.getvalue()


def results(directory):
    return json.loads(directory.results.read_text())


def test_a_stopped_comparison_continues_and_trains_nothing_twice(finished, tmp_path, monkeypatch):
    directory, started, codes, printed = finished
    assert codes == [ExitCode.TERMINATED, ExitCode.INTERRUPTED, ExitCode.DONE]
    line = f"continue the comparison with: {command_line('compare', '--resume', str(directory.path))}"
    assert f"Stopped by SIGTERM; {line}" in printed and f"Stopped by SIGINT; {line}" in printed
    # Alternating, and the stopped run a second time
    assert started == ["warm-seed0", "cold-seed0", "cold-seed1", "cold-seed1", "warm-seed1"]
    broken, unbroken = RunDir(directory.path / "cold-seed1"), RunDir(tmp_path / "unbroken")
    run_experiment(broken.read_config(), unbroken)
    for file in (lambda run_dir: run_dir.history, lambda run_dir: run_dir.predictions("test")):
        assert file(broken).read_bytes() == file(unbroken).read_bytes()


def test_a_finished_comparison_is_printed_again_without_training(finished, monkeypatch, capsys):
    directory = finished[0]
    before = directory.results.read_bytes(), directory.page.read_bytes()
    monkeypatch.setattr(comparison_run, "run_child", None)  # must not be called
    assert run_main(compare.main, ["--resume", str(directory.path)]) == 0
    assert capsys.readouterr().out.count("trained before") == 4
    assert (directory.results.read_bytes(), directory.page.read_bytes()) == before


def test_the_results_are_computed_from_the_files_of_the_runs(finished):
    directory = finished[0]
    found = results(directory)
    assert found["seeds"] == [0, 1] and found["epochs"] == 2 and found["split"] == "test"
    assert found["command"].startswith("transfer-learning compare --dataset ")
    assert found["environment"]["device"] and found["environment"]["tensorflow"]
    right = {}
    for name, variant in found["variants"].items():
        tables = [
            predictions.read(directory.path / run["directory"] / "predictions" / "test.csv") for run in variant["runs"]
        ]
        right[name] = [(table["label"] == table["predicted"]).to_numpy() for table in tables]
        assert variant["accuracy"] == pytest.approx(sum(row.mean() for row in right[name]) / 2)
        model = directory.path / variant["runs"][0]["directory"] / "model.keras"
        assert variant["num_bytes"] == model.stat().st_size
        network = keras.models.load_model(model)
        assert variant["num_parameters"] == network.count_params()
        assert [row["epoch"] for row in variant["curves"]] == [1, 2]
        seconds = [row["seconds"] for row in variant["curves"]]
        assert 0 < seconds[0] < seconds[1]
        timings = pd.read_csv(directory.path / variant["runs"][1]["directory"] / "timings.csv")
        assert variant["runs"][1]["seconds"] >= timings["seconds"].sum()
    (pair,) = found["pairs"]
    for row, warm, cold in zip(pair["seeds"], right["warm"], right["cold"], strict=True):
        assert (row["only_first"], row["only_second"]) == ((warm & ~cold).sum(), (cold & ~warm).sum())


def test_the_printed_table_is_also_in_the_page_whose_path_is_printed_last(finished):
    directory, _, _, printed = finished
    assert printed.endswith(f"Report: {directory.page}\n")
    found, page = results(directory), Page(directory.page)
    for name, variant in found["variants"].items():
        assert re.search(r"warm +cold *\n *backbone +small_cnn +small_cnn", printed)
        percent = f"{100 * variant['accuracy']:.1f} %"
        assert percent in printed and percent in page.text
        assert f"{variant['num_parameters']:,}" in page.text and name in page.text
    assert found["command"] in page.text
    assert found["reasons"] and all(reason in page.text for reason in found["reasons"])
    for words in (
        "test accuracy, n = ",
        "mean of 2 seeds",
        "95 % interval",
        "range over the seeds",
        "reaches 30 % validation accuracy",
        "reaches 100 % validation accuracy",
        "parameters",
        "size of model.keras",
        "time per epoch",
        "training images/s",
        found["conclusions"][0],
        "Time to an accuracy includes training",
    ):
        assert words in printed, words
        assert " ".join(words.split()) in page.text, words


def test_the_page_needs_no_other_file_and_shows_the_figure(finished):
    directory = finished[0]
    page = Page(directory.page)
    assert not {"script", "link", "iframe", "object", "a"} & set(page.tags)
    assert len(page.pictures()) == 1 and page.pictures()[0].startswith("data:image/webp;base64,")
    assert directory.figure.read_bytes().startswith(b"\x89PNG")
    content = directory.page.read_text()
    assert "http" not in content and "url(" not in content


def test_the_csv_file_has_one_row_per_run(finished):
    directory = finished[0]
    with open(directory.table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["seed"]) for row in rows] == [
        ("warm", "0"),
        ("warm", "1"),
        ("cold", "0"),
        ("cold", "1"),
    ]
    for row in rows:
        assert float(row["test_accuracy"]) <= 1 and row["epochs"] == "2"
        assert (row["epoch_of_0.3"] == "") == (row["seconds_to_0.3"] == "")


def test_another_plan_in_the_same_directory_is_refused_with_its_differences(finished, small_config, refused):
    directory = finished[0]
    for more, words in (
        (["--learning-rates", "1e-3", "--batch-size", "16"], ["batch_size of warm is 8, not 16", "is none, not 0.001"]),
        (["--seed", "4"], ["--seed is 0, not 4"]),
        (["--config", "third=--dropout 0.5 --weights none"], ["warm, cold, not warm, cold, third"]),
    ):
        error = refused(compare.main, *arguments(small_config, directory.path, *more))
        assert all(word in error for word in [*words, "choose another --run-dir"]), error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "nowhere"], "nowhere holds no comparison"),
        (["--resume", "nowhere", "--epochs", "3"], "give no other flags"),
        (["--resume", "nowhere", "--batch-size", "8"], "give no other flags"),
        (["--dataset", "digits", "--run-dir", "full"], "is not empty"),
        (
            ["--dataset", "digits", "--monitor", "loss", "--learning-rates", "1e-3"],
            "compares rates on validation images",
        ),
    ],
)
def test_impossible_comparisons_are_refused_with_one_sentence(words, message, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert message in refused(compare.main, *words)


def test_the_default_directory_depends_on_the_runs_of_the_plan(photos):
    def path(*more):
        return compare.open_comparison(compare.parse(["--dataset", "digits", *more]))[0].path

    assert path() == path("--seeds", "9") == path("--target-accuracies", "0.7")
    assert len({path(), path("--epochs", "3"), path("--learning-rates", "1e-3,1e-2"), path("--seed", "1")}) == 4
    assert path().name.startswith("compare-digits-")


def test_the_error_of_a_run_ends_the_comparison_with_the_command_to_continue(
    small_config, tmp_path, monkeypatch, refused
):
    calls = []

    def child(run_dir, stop):
        calls.append(run_dir)
        if len(calls) == 2:
            raise UserError("The memory is not enough.")

    monkeypatch.setattr(comparison_run, "run_child", child)
    error = refused(compare.main, *arguments(small_config, tmp_path / "a"))
    assert "error: The memory is not enough. Finished runs are not lost" in error
    assert command_line("compare", "--resume", str(tmp_path / "a")) in error
    assert len(calls) == 2 and (tmp_path / "a" / "plan.json").exists()


def test_runs_on_different_images_are_not_compared(finished, tmp_path, monkeypatch, refused):
    directory = ComparisonDir(shutil.copytree(finished[0].path, tmp_path / "copy"))
    run_dir = RunDir(directory.path / results(directory)["variants"]["cold"]["runs"][1]["directory"])
    environment = json.loads(run_dir.environment.read_text())
    environment["dataset"]["fingerprint"] = "0" * 64
    run_dir.environment.write_text(json.dumps(environment))
    monkeypatch.setattr(comparison_run, "run_child", None)
    assert "were not trained on the same images" in refused(compare.main, "--resume", directory.path)


def test_a_damaged_plan_is_named(tmp_path, refused):
    contents = {
        "{": "is damaged",
        "{}": "is not a plan that `compare` wrote",
        '{"variants": {"a": {"epochs": 1}}}': "the config of a in",
    }
    for content, message in contents.items():
        (tmp_path / "plan.json").write_text(content)
        assert message in refused(compare.main, "--resume", tmp_path)


@pytest.mark.long
def test_cifar10_from_its_images_to_the_page(tmp_path, monkeypatch, capsys):
    for split, num_per_class in (("train", 4), ("test", 2)):
        draw_photos(tmp_path / "data" / "cifar10" / split, CLASS_NAMES, num_per_class, seed=len(split), shape=(32, 32))
    build_backbone("resnet18", 32, "none").save_weights(tmp_path / "resnet18.weights.h5")
    monkeypatch.setattr(comparison_run, "run_child", Children())
    given = [
        *"--dataset cifar10 --epochs 1 --seeds 1 --batch-size 8".split(),
        *("--weights", tmp_path / "resnet18.weights.h5", "--data-dir", tmp_path / "data"),
        *("--cache-dir", tmp_path / "cache", "--run-dir", tmp_path / "compared"),
    ]
    assert run_main(compare.main, [str(word) for word in given]) == 0
    found = results(ComparisonDir(tmp_path / "compared"))
    assert (found["dataset"], found["split"], found["num_images"]) == ("cifar10", "test", 20)
    pretrained, scratch = found["variants"].values()
    assert (pretrained["num_parameters"], scratch["num_parameters"]) == (11_191_242, 1_205_802)
    assert pretrained["num_bytes"] > 11e6 * 4 and scratch["num_bytes"] < pretrained["num_bytes"] / 8
    assert "pretrained vs. scratch" in Page(tmp_path / "compared" / "compare.html").text


# ---------------------------------------------------------------------------------------------------------------------
# The learning-rate search, with made-up runs

RATES = ["--learning-rates", "1e-4,1e-3,1e-2"]
# By rate: validation losses of two epochs and test accuracy, which is best where validation is worst
RESULTS = {1e-4: ([0.9, 0.8], 1.0), 1e-3: ([0.9, 0.3], 0.25), 1e-2: ([0.5, 0.7], 0.75)}


class MadeUp:
    """Writes the files of a run without training; rate 1e-2 diverges for the variant with random weights."""

    def __init__(self):
        self.started = []

    def __call__(self, run_dir, stop):
        self.started.append(run_dir.path.name)
        config = run_dir.read_config()
        if config.weights == "none" and config.fine_tune.learning_rate == 1e-2:
            raise Diverged("The loss is nan from update 3 on, so the training has diverged; start a new run.")
        val_losses, accuracy = RESULTS[config.fine_tune.learning_rate]
        labels = np.arange(8) % 2
        predicted = np.where(np.arange(8) < 8 * accuracy, labels, 1 - labels)
        table = predictions.table([f"{number}.png" for number in range(8)], labels, np.eye(2)[predicted], ["a", "b"])
        predictions.write(table, run_dir.predictions("test"))
        epochs = {"phase": "fine_tune", "epoch": [1, 2]}
        history = pd.DataFrame(epochs | {"loss": 1.0, "accuracy": 0.5, "val_loss": val_losses, "val_accuracy": 0.6})
        history.to_csv(run_dir.history, index=False)
        pd.DataFrame(epochs | {"seconds": 3.0, "images_per_second": 9.0}).to_csv(run_dir.timings, index=False)
        run_dir.environment.write_text(
            json.dumps(
                {
                    "device": {"name": "Abacus 3000", "threads": 2, "precision": "float32"},
                    "git_commit": "",
                    "versions": {},
                    "dataset": {"fingerprint": "ab" * 32},
                    "sessions": [{}],
                }
            )
        )
        evaluation = {
            "split": "test",
            "num_parameters": 1234,
            "frozen": None,
            "fine_tune": {"preparation_seconds": 4.0},
        }
        run_dir.evaluation.write_text(json.dumps(evaluation))
        run_dir.model.write_bytes(b"model")
        run_dir.report.write_text("a page")


@pytest.fixture
def searched(small_config, tmp_path, monkeypatch, capsys):
    """A finished comparison with a search, the runs that were started and the output."""
    children, directory = MadeUp(), ComparisonDir(tmp_path / "searched")
    monkeypatch.setattr(comparison_run, "run_child", children)
    assert run_main(compare.main, arguments(small_config, directory.path, *RATES, "--seeds", "2")) == 0
    return directory, children, capsys.readouterr().out


def test_each_rate_is_tried_once_and_the_best_run_is_that_of_the_first_seed(searched):
    directory, children, _ = searched
    assert children.started == [
        "warm-0.0001-seed0",
        "cold-0.0001-seed0",
        "cold-0.001-seed0",
        "warm-0.001-seed0",
        "warm-0.01-seed0",
        "cold-0.01-seed0",
        "cold-0.001-seed1",
        "warm-0.001-seed1",
    ]
    for name, variant in results(directory)["variants"].items():
        assert [run["directory"] for run in variant["runs"]] == [f"{name}-0.001-seed{seed}" for seed in (0, 1)]
        assert variant["learning_rates"] == {"fine_tune": 1e-3}


def test_the_best_rate_is_chosen_by_validation_images_only(searched, monkeypatch):
    directory, children, printed = searched
    search = results(directory)["search"]
    assert [row["best"] for row in search["warm"]] == [0.8, 0.3, 0.5]
    assert [row["is_chosen"] for row in search["warm"]] == [False, True, False], "the one with the lowest test accuracy"
    assert "warm: learning rate 0.001 has the best val_loss." in printed
    # With nothing but the histories, the choice is the same.
    for run_dir in (RunDir(path) for path in directory.path.iterdir() if path.is_dir()):
        for path in (run_dir.evaluation, run_dir.predictions("test"), run_dir.model):
            path.unlink(missing_ok=True)
    children.started.clear()
    variants, again = comparison_run.search_learning_rates(directory.read_plan(), directory, StopRequest())
    assert again == search and children.started == []
    assert [config.fine_tune.learning_rate for config in variants.values()] == [1e-3, 1e-3]


def test_a_rate_that_diverges_is_reported_with_its_error_and_not_tried_again(searched, capsys):
    directory, children, printed = searched
    assert "cold, learning rate 0.01, seed 0: The loss is nan" in printed
    assert "The loss is nan from update 3 on" in Page(directory.page).text
    assert results(directory)["search"]["cold"][2]["best"] is None
    children.started.clear()
    assert run_main(compare.main, ["--resume", str(directory.path)]) == 0
    assert children.started == []
    assert "cold, learning rate 0.01, seed 0: diverged before." in capsys.readouterr().out


def test_more_seeds_are_added_to_a_finished_comparison(searched):
    directory, children, _ = searched
    children.started.clear()
    assert (
        run_main(compare.main, ["--resume", str(directory.path), "--seeds", "3", "--target-accuracies", "0.6,0.7"]) == 0
    )
    assert children.started == ["warm-0.001-seed2", "cold-0.001-seed2"]
    found = results(directory)
    assert found["seeds"] == [0, 1, 2]
    # 4 seconds of preparation and 3 of the first epoch
    assert found["variants"]["warm"]["reached"] == [
        {
            "accuracy": 0.6,
            "num_runs": 3,
            "epoch": 1.0,
            "epoch_range": [1, 1],
            "seconds": 7.0,
            "seconds_range": [7.0, 7.0],
        },
        {"accuracy": 0.7, "num_runs": 0, "epoch": None, "epoch_range": None, "seconds": None, "seconds_range": None},
    ]
    text = Page(directory.page).text
    assert "reaches 60 % validation accuracy in epoch 1, 7.0 s epoch 1, 7.0 s" in text
    assert "reaches 70 % validation accuracy in not reached not reached" in text


def test_without_validation_images_there_is_no_time_to_an_accuracy(small_config, tmp_path, monkeypatch, capsys):
    made_up = MadeUp()

    def child(run_dir, stop):
        made_up(run_dir, stop)
        pd.read_csv(run_dir.history).assign(val_loss=np.nan, val_accuracy=np.nan).to_csv(run_dir.history, index=False)

    monkeypatch.setattr(comparison_run, "run_child", child)
    more = ["--seeds", "1", "--val-fraction", "0", "--monitor", "loss", "--fine-tune.learning-rate", "1e-3"]
    assert run_main(compare.main, arguments(small_config, tmp_path / "a", *more)) == 0
    for text in (capsys.readouterr().out, Page(tmp_path / "a" / "compare.html").text):
        assert "not reached" not in text and "no validation images" in text


def test_a_best_rate_at_the_end_of_the_range_is_remarked(small_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison_run, "run_child", MadeUp())
    given = arguments(small_config, tmp_path / "a", "--learning-rates", "1e-4,1e-3", "--seeds", "1")
    assert run_main(compare.main, given) == 0
    assert (
        "The best learning rate of warm, 0.001, is the highest one tried; try higher ones, too."
        in capsys.readouterr().out
    )


def test_a_divergence_outside_of_the_search_ends_the_comparison_with_exit_code_4(
    small_config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(comparison_run, "run_child", MadeUp())
    given = arguments(small_config, tmp_path / "a", "--fine-tune.learning-rate", "1e-2")
    assert run_main(compare.main, given) == ExitCode.DIVERGED
    error = capsys.readouterr().err
    assert "error: The loss is nan from update 3 on" in error
    assert "start a new comparison" in error and "--resume" not in error, "it would diverge again"


# ---------------------------------------------------------------------------------------------------------------------
# Real processes


def test_the_error_message_of_a_real_child_is_raised_and_not_printed(tmp_path, capfd):
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    run_dir.config.write_text("{}")
    with StopRequest() as stop, pytest.raises(UserError, match="names no dataset, so it is not the config of a run"):
        comparison_run.run_child(run_dir, stop)
    assert "is not a config" not in capfd.readouterr().err


def test_children_are_quiet_as_their_parent_and_print_the_device_once(tmp_path, monkeypatch):
    started = []

    class Done:
        returncode, poll = 0, lambda self: 0

        def __init__(self, command, env, **options):
            self.stderr = io.StringIO()
            started.append(("--quiet" in command, UNPRINTED in env))

    monkeypatch.setattr(comparison_run.subprocess, "Popen", Done)
    for name, level in (("first", logging.INFO), ("second", logging.INFO), ("third", logging.WARNING)):
        run_dir = RunDir(tmp_path / name)
        run_dir.path.mkdir()
        set_up_logging(level)
        comparison_run.run_child(run_dir, StopRequest())
        run_dir.log.touch()
    set_up_logging()
    assert started == [(False, False), (False, True), (True, True)]


def test_ctrl_c_reaches_the_child_which_saves_before_it_ends(small_config, tmp_path, capfd):
    run_dir = RunDir(tmp_path / "run")
    more = {"checkpoint_seconds": 0.0, "fine_tune.epochs": 40, "cache_dir": str(tmp_path / "cache")}
    config = with_values(small_config, more)
    run_dir.path.mkdir()
    run_dir.config.write_text(config.to_json())

    def interrupt_once_it_trains():
        deadline = time.monotonic() + 120
        while not any(path.name >= "000003" for path in run_dir.checkpoint.glob("*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_once_it_trains)
    thread.start()
    with pytest.raises(Stopped), StopRequest() as stop:
        comparison_run.run_child(run_dir, stop)
    thread.join()
    printed = capfd.readouterr()
    assert "Stopped by SIGINT" in printed.out + printed.err and "Traceback" not in printed.out + printed.err
    assert any(run_dir.checkpoint.iterdir()) and not run_dir.is_finished
