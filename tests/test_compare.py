"""The verb `compare`, on small images: a search for rates, stops between and inside runs, the results, what is refused."""

import csv
import json
import os
import re
import shutil
import signal
import threading
import time

import keras
import pandas as pd
import pytest
from conftest import SIZE
from test_report import Page

from transfer_learning import compare
from transfer_learning.command_line import run_main
from transfer_learning.comparison_dir import ComparisonDir
from transfer_learning.config import with_values
from transfer_learning.errors import ExitCode, Stopped, UserError
from transfer_learning.evaluation import comparison, predictions
from transfer_learning.experiment import run_experiment
from transfer_learning.run_dir import RunDir
from transfer_learning.training.stopping import StopRequest

# Searched with seed 0, in turns; then seed 1 with the best rates.
SEARCHED = [
    "warm-0.001-seed0", "cold-0.001-seed0", "cold-0.01-seed0", "warm-0.01-seed0", "warm-1e+30-seed0", "cold-1e+30-seed0",
]  # fmt: skip


def arguments(small_config, path, *more):
    return [
        "--dataset", small_config.dataset, "--cache-dir", small_config.cache_dir, "--image-size", str(SIZE),
        "--batch-size", "8", "--backbone", "small_cnn", "--head", "none", "--frozen.epochs", "0", "--fine-tune.open", "all",
        "--epochs", "3", "--fine-tune.schedule", "constant", "--fine-tune.optimizer", "adam",
        "--fine-tune.weight-decay", "0", "--fine-tune.warmup-epochs", "0", "--config", f"warm=--weights {small_config.weights}",
        "--config", "cold=--weights none", "--run-dir", str(path), *more,
    ]  # fmt: skip


class Children:
    """Runs in this process what would be processes, and stops where it is told."""

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
    """A comparison that was stopped between two runs, then inside one, and continued twice; with all that it printed."""
    directory = ComparisonDir(tmp_path_factory.mktemp("runs") / "finished")
    given = arguments(small_config, directory.path, "--seeds", "2", "--learning-rates", "1e-3,1e-2,1e30", "--reach", "0.3,1")
    children = Children()
    children.stop_before, children.stop_inside = 2, 3
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "run_child", children)
        patch.setattr("builtins.print", lambda *values, **_: printed.append(" ".join(map(str, values))))
        codes = [run_main(compare.main, words) for words in (given, ["--resume", str(directory.path)], given)]
    return directory, children.started, codes, "\n".join(printed)


def results(directory):
    return json.loads(directory.results.read_text())


def test_a_stopped_comparison_goes_on_and_trains_nothing_twice(finished, small_config, tmp_path):
    directory, started, codes, printed = finished
    assert codes == [ExitCode.TERMINATED, ExitCode.INTERRUPTED, ExitCode.DONE]
    line = f"continue the comparison with: python -m transfer_learning.compare --resume {directory.path}"
    assert f"Stopped by SIGTERM; {line}" in printed and f"Stopped by SIGINT; {line}" in printed
    begun = list(dict.fromkeys(started))
    assert begun[: len(SEARCHED)] == SEARCHED
    assert len(begun) == len(SEARCHED) + 2 and all(name.endswith("-seed1") for name in begun[-2:])
    assert [name for name in begun if started.count(name) == 2] == ["cold-0.01-seed0"], "the one that was stopped inside"
    broken = RunDir(directory.path / "cold-0.01-seed0")
    unbroken = RunDir(tmp_path / "unbroken")
    run_experiment(broken.read_config(), unbroken)
    for file in ("history", "predictions"):
        one, other = (getattr(run_dir, file) for run_dir in (broken, unbroken))
        if file == "predictions":
            one, other = one("test"), other("test")
        assert one.read_bytes() == other.read_bytes()


def test_the_rate_is_chosen_from_the_histories_alone(finished, tmp_path, monkeypatch):
    directory = finished[0]
    for rows in results(directory)["search"].values():
        histories = {
            row["learning_rate"]: pd.read_csv(directory.path / row["run"] / "history.csv") for row in rows if not row["problem"]
        }
        chosen = [row["learning_rate"] for row in rows if row["is_chosen"]]
        assert chosen == [comparison.chosen_rate(histories, "val_loss")]
        assert [row["best"] for row in rows if not row["problem"]] == [table["val_loss"].min() for table in histories.values()]

    # Where nothing is left that tells of test images, the same are chosen.
    without_test = ComparisonDir(shutil.copytree(directory.path, tmp_path / "copy"))
    for path in without_test.path.glob("*/*"):
        if path.name in ("evaluation.json", "classification_report.txt", "predictions", "figures", "model.keras"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setattr(compare, "run_child", None)
    _, search = compare.best_rates(without_test.read_plan(), without_test, StopRequest())
    assert search == results(directory)["search"]


def test_a_rate_that_diverges_is_set_aside_with_its_sentence_and_not_tried_again(finished, monkeypatch, capsys):
    directory, started, _, printed = finished
    for name in ("warm", "cold"):
        assert started.count(f"{name}-1e+30-seed0") == 1
        assert f"{name}, learning rate 1e+30, seed 0: The loss is" in printed
        problem = results(directory)["search"][name][-1]["problem"]
        assert "the training has diverged" in problem and problem in Page(directory.page).text
    monkeypatch.setattr(compare, "run_child", None)  # which nothing may call
    assert run_main(compare.main, ["--resume", str(directory.path)]) == 0
    assert "warm, learning rate 1e+30, seed 0: it diverged before." in capsys.readouterr().out


def test_the_run_of_the_chosen_rate_is_the_first_seeds_run(finished):
    for name, rows in results(finished[0])["search"].items():
        chosen = next(row["run"] for row in rows if row["is_chosen"])
        assert results(finished[0])["sides"][name]["runs"][0]["directory"] == chosen


def test_the_results_are_those_of_the_runs(finished):
    directory = finished[0]
    found = results(directory)
    assert found["seeds"] == [0, 1] and found["epochs"] == 3 and found["split"] == "test"
    assert found["environment"]["device"] and found["environment"]["tensorflow"]
    right = {}
    for name, side in found["sides"].items():
        tables = [predictions.read(directory.path / run["directory"] / "predictions" / "test.csv") for run in side["runs"]]
        right[name] = [(table["label"] == table["predicted"]).to_numpy() for table in tables]
        assert side["accuracy"] == pytest.approx(sum(row.mean() for row in right[name]) / 2)
        model = directory.path / side["runs"][0]["directory"] / "model.keras"
        assert side["num_bytes"] == model.stat().st_size
        network = keras.models.load_model(model)
        assert side["num_parameters"] == network.count_params()
        assert [row["epoch"] for row in side["curves"]] == [1, 2, 3]
        seconds = [row["seconds"] for row in side["curves"]]
        assert 0 < seconds[0] < seconds[1] < seconds[2]
        timings = pd.read_csv(directory.path / side["runs"][1]["directory"] / "timings.csv")
        assert side["runs"][1]["seconds"] >= timings["seconds"].sum()
    (pair,) = found["pairs"]
    for row, warm, cold in zip(pair["seeds"], right["warm"], right["cold"], strict=True):
        assert (row["only_first"], row["only_second"]) == ((warm & ~cold).sum(), (cold & ~warm).sum())


def test_it_ends_with_a_table_that_stands_in_the_page_and_the_path_of_the_page(finished):
    directory, _, _, printed = finished
    assert printed.endswith(f"Page: {directory.page}")
    found, page = results(directory), Page(directory.page)
    for name, side in found["sides"].items():
        assert re.search(rf"warm +cold\n-+\nnetwork +small_cnn +small_cnn", printed)
        percent = f"{100 * side['accuracy']:.1f} %"
        assert percent in printed and percent in page.text
        assert f"{side['num_parameters']:,}" in page.text and name in page.text
    for words in (
        "test accuracy, n = ", "mean of 2 seeds", "95 % interval", "range over the seeds", "validation accuracy 30 %",
        "validation accuracy 100 %", "parameters", "size of model.keras", "time an epoch", "training images a second",
        found["conclusions"][0], found["seconds_counted"][10:],
    ):  # fmt: skip
        assert words in printed, words
        assert " ".join(words.split()) in page.text, words


def test_the_page_needs_no_other_file_and_shows_the_figure(finished):
    directory = finished[0]
    page = Page(directory.page)
    assert not {"script", "link", "iframe", "object", "a"} & set(page.tags)
    assert len(page.pictures()) == 1 and page.pictures()[0].startswith("data:image/png;base64,")
    assert directory.figure.read_bytes().startswith(b"\x89PNG")
    content = directory.page.read_text()
    assert "http" not in content and "url(" not in content


def test_the_table_has_a_row_a_run(finished):
    directory = finished[0]
    with open(directory.table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["side"], row["seed"]) for row in rows] == [("warm", "0"), ("warm", "1"), ("cold", "0"), ("cold", "1")]
    for row in rows:
        assert float(row["test_accuracy"]) <= 1 and row["epochs"] == "3"
        assert (row["epoch_of_0.3"] == "") == (row["seconds_to_0.3"] == "")


def test_another_comparison_in_its_directory_is_refused_with_what_differs(finished, small_config, capsys):
    directory = finished[0]
    for more, words in (
        (["--learning-rates", "1e-3", "--batch-size", "16"], ["batch_size of warm is 8, not 16", "--learning-rates is 0.001,0.01"]),
        (["--learning-rates", "1e-3,1e-2,1e30", "--seed", "4"], ["--seed is 0, not 4"]),
        (["--learning-rates", "1e-3,1e-2,1e30", "--config", "third=--dropout 0.5 --weights none"], ["warm, cold, not warm, cold, third"]),
    ):
        assert run_main(compare.main, arguments(small_config, directory.path, *more)) == 2
        error = capsys.readouterr().err
        assert all(word in error for word in [*words, "choose another --run-dir"]), error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "nowhere"], "nowhere holds no comparison"),
        (["--resume", "nowhere", "--epochs", "3"], "leave every flag out"),
        (["--resume", "nowhere", "--batch-size", "8"], "leave every flag out"),
        (["--dataset", "digits", "--run-dir", "full"], "holds something else"),
        (["--dataset", "digits", "--monitor", "loss", "--learning-rates", "1e-3"], "judged on validation images"),
    ],
)
def test_what_cannot_be_begun_is_one_sentence(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert run_main(compare.main, words) == 2
    assert message in capsys.readouterr().err


def test_the_same_command_has_the_same_directory_and_another_one_another(photos):
    def path(*more):
        return compare.begun(compare.parse(["--dataset", "digits", *more]))[0].path

    assert path() == path("--seeds", "9") == path("--reach", "0.7")
    assert len({path(), path("--epochs", "3"), path("--learning-rates", "1e-3,1e-2"), path("--seed", "1")}) == 4
    assert path().name.startswith("compare-digits-")


def test_an_error_of_a_run_is_its_sentence_and_what_is_finished_is_kept(small_config, tmp_path, monkeypatch, capsys):
    calls = []

    def child(run_dir, stop):
        calls.append(run_dir)
        if len(calls) == 2:
            raise UserError("The memory is not enough.")

    monkeypatch.setattr(compare, "run_child", child)
    assert run_main(compare.main, arguments(small_config, tmp_path / "a")) == 2
    error = capsys.readouterr().err
    assert "error: The memory is not enough. What is finished is kept" in error
    assert f"python -m transfer_learning.compare --resume {tmp_path / 'a'}" in error
    assert len(calls) == 2 and (tmp_path / "a" / "plan.json").exists()


def test_runs_on_other_images_are_not_compared(finished, tmp_path, monkeypatch, capsys):
    directory = ComparisonDir(shutil.copytree(finished[0].path, tmp_path / "copy"))
    run_dir = RunDir(directory.path / results(directory)["sides"]["cold"]["runs"][1]["directory"])
    environment = json.loads(run_dir.environment.read_text())
    environment["dataset"]["fingerprint"] = "0" * 64
    run_dir.environment.write_text(json.dumps(environment))
    monkeypatch.setattr(compare, "run_child", None)
    assert run_main(compare.main, ["--resume", str(directory.path)]) == 2
    assert "were not trained on the same images" in capsys.readouterr().err


def test_a_damaged_plan_is_named(tmp_path, capsys):
    for content, message in (("{", "is damaged"), ("{}", "is not what `compare` writes"), ('{"sides": {"a": {}}}', "config of a in")):
        (tmp_path / "plan.json").write_text(content)
        assert run_main(compare.main, ["--resume", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Real processes


def test_the_sentence_of_a_real_process_comes_back_once(tmp_path, capfd):
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    run_dir.config.write_text("{}")
    with StopRequest() as stop, pytest.raises(UserError, match="is not a config that this version reads"):
        compare.run_child(run_dir, stop)
    assert "is not a config" not in capfd.readouterr().err


def test_ctrl_c_reaches_the_process_that_trains_which_saves_and_goes_on_later(small_config, tmp_path, capfd):
    run_dir = RunDir(tmp_path / "run")
    config = with_values(small_config, {"checkpoint_seconds": 0.0, "fine_tune.epochs": 40, "cache_dir": str(tmp_path / "cache")})
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
        compare.run_child(run_dir, stop)
    thread.join()
    printed = capfd.readouterr()
    assert "Stopped by SIGINT" in printed.out and "Traceback" not in printed.out + printed.err
    assert any(run_dir.checkpoint.iterdir()) and not run_dir.is_finished
