"""`python -m benchmarks`: order, medians, ratios, continuing after a stop, missing and failing tools, tables."""

import json
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import accuracy, measure, sets, tables
from benchmarks.cases import CASES, FIGURES, Case, Entry
from tests.support import ROOT
from tests.support.photos import draw_photos
from transfer_learning.cli.parser import run_main
from transfer_learning.datasets.dataset import Dataset, Example
from transfer_learning.experiments.measurements import MeasurementFailed, number, run_child
from transfer_learning.machine.resources import usable_cores

OURS, THEIRS, ABSENT = (
    Entry("ours", "ours", "work"),
    Entry("theirs", "theirs", "work"),
    Entry("absent", "absent", "work", packages=("no_such_package",)),
)
CASE = Case("frozen", "some work", "seconds", (OURS, THEIRS, ABSENT))
RATE = Case("extraction", "some rate", "images_per_second", (OURS, THEIRS))


@pytest.fixture
def children(monkeypatch):
    """The programs that were run, in order; each takes a second more than the one before."""
    ran = []

    def run_child(python, module, arguments, environment):
        module = module.removeprefix("benchmarks.")
        ran.append(module)
        return {
            "seconds": float(len(ran)),
            "images_per_second": 100.0 / len(ran),
            "wall_seconds": len(ran) + 5.0,
            "cpu_seconds": 2.0,
            "peak_mb": 123.4,
            "evaluate_seconds": 1.0 if module == "ours" else None,
            "val_accuracy": 0.5,
        }

    monkeypatch.setattr(measure, "run_child", run_child)
    for module in (measure, command):
        monkeypatch.setattr(module, "CASES", (CASE,))
    return ran


def arguments(folder, *more):
    return ["--out", str(folder / "out.json"), "--work-dir", str(folder / "work"), *more]


def test_every_second_round_is_in_reverse_order():
    assert [(repeat, entry.name) for repeat, entry in measure.abba([OURS, THEIRS], 3)] == [
        (0, "ours"),
        (0, "theirs"),
        (1, "theirs"),
        (1, "ours"),
        (2, "ours"),
        (2, "theirs"),
    ]


def test_medians_and_ranges():
    assert tables.summary([3.0, 10.0, 1.25]) == "3.00 (1.25-10.0)"
    assert tables.summary([1234.5]) == "1,234 (1,234-1,234)"
    assert number(0.01234) == "0.0123"


def test_a_ratio_is_how_many_times_ours_is_better():
    seconds, rate = FIGURES["seconds"], FIGURES["images_per_second"]
    assert tables.ratio([1.0, 9.0, 6.0], [3.0, 3.0, 3.0], seconds) == "2.00"
    assert tables.ratio([6.0], [3.0], rate) == "0.50"


def test_tables_hold_what_was_measured(children, tmp_path, capsys):
    assert run_main(command.main, arguments(tmp_path, "--repeats", "3")) == 0
    assert children == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    document = json.loads((tmp_path / "out.json").read_text())
    assert {name: len(rows) for name, rows in document["measurements"]["some work"].items()} == {"ours": 3, "theirs": 3}
    table = (tmp_path / "out.md").read_text()
    assert table in capsys.readouterr().out
    # Ours took 1, 4 and 5 seconds, and processes of 6, 9, 10 with an evaluation of 1; they 2, 3, 6 and 7, 8, 11.
    assert "| ours | 3 | 4.00 (1.00-5.00) | 1.00 | 8.00 (5.00-9.00) | 1.00 | 2.00 | 123 | 50.0 % |" in table
    assert "| theirs | 3 | 3.00 (2.00-6.00) | 0.75 | 8.00 (7.00-11.0) | 1.00 | 2.00 | 123 | 50.0 % |" in table
    assert "Left out: some work: absent (no_such_package not found by --peers-python" in table
    assert f"{usable_cores()} cores" in table and "tensorflow 2." in table and "--repeats 3" in table


def test_more_images_a_second_are_better(children, tmp_path, monkeypatch):
    for module in (measure, command):
        monkeypatch.setattr(module, "CASES", (RATE,))
    assert run_main(command.main, arguments(tmp_path, "--repeats", "1")) == 0
    assert "| theirs | 1 | 50.0 (50.0-50.0) | 2.00 |" in (tmp_path / "out.md").read_text()


def test_a_stopped_benchmark_continues(children, tmp_path, monkeypatch):
    measured = measure.run_child

    def stopped_at_the_third(*all_arguments):
        if len(children) == 3:
            raise KeyboardInterrupt
        return measured(*all_arguments)

    monkeypatch.setattr(measure, "run_child", stopped_at_the_third)
    assert run_main(command.main, arguments(tmp_path)) == 130
    document = json.loads((tmp_path / "out.json").read_text())
    assert Counter({name: len(rows) for name, rows in document["measurements"]["some work"].items()}).total() == 3
    monkeypatch.setattr(measure, "run_child", measured)
    assert run_main(command.main, arguments(tmp_path)) == 0
    assert children == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert run_main(command.main, arguments(tmp_path, "--repeats", "4")) == 0
    assert children[6:] == ["theirs", "ours"]


def test_measurements_with_other_settings_are_not_mixed(children, tmp_path, refused):
    assert run_main(command.main, arguments(tmp_path)) == 0
    assert '"epochs": 10' in refused(command.main, *arguments(tmp_path, "--epochs", "3"))
    assert len(children) == 6


def test_a_tool_that_fails_is_left_out_and_tried_again_by_the_next_call(children, tmp_path, monkeypatch, capsys):
    measured = measure.run_child

    def theirs_fails(python, module, *more):
        if module.endswith("theirs"):
            raise MeasurementFailed("ValueError: out of luck")
        return measured(python, module, *more)

    monkeypatch.setattr(measure, "run_child", theirs_fails)
    assert run_main(command.main, arguments(tmp_path)) == 0
    assert children == ["ours"] * 3
    assert capsys.readouterr().out.count("theirs is left out: ValueError: out of luck") == 1
    monkeypatch.setattr(measure, "run_child", measured)
    assert run_main(command.main, arguments(tmp_path)) == 0
    assert children[3:] == ["theirs"] * 3
    assert "out of luck" not in (tmp_path / "out.md").read_text()


def test_the_error_of_a_child_is_the_last_line_of_its_standard_error():
    with pytest.raises(MeasurementFailed, match="invalid choice: 'paint'"):
        run_child(sys.executable, "benchmarks.made_images", ["paint"], {})
    with pytest.raises(MeasurementFailed, match="no figures"):
        run_child(sys.executable, "benchmarks.job", [], {})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["frosen"], "Did you mean frozen?"),
        (["--repeats", "0"], "--repeats 0 measures nothing"),
        (["--images", "3"], "--images 3 is too few"),
        (["--peers-python", "no/such/python"], "is no program"),
    ],
)
def test_impossible_flags_are_refused_with_one_sentence(given, words, refused):
    assert words in refused(command.main, *given)


def test_every_entry_has_a_program_and_every_need_is_an_asset():
    flags = command.parse([])
    for case in CASES:
        assert case.figure in FIGURES
        assert len({entry.name for entry in case.entries}) == len(case.entries)
        for entry in case.entries:
            assert f'"{entry.job}": ' in (ROOT / "benchmarks" / f"{entry.module}.py").read_text()
            assert {*case.needs, *entry.needs} <= measure.assets(flags).keys()
    assert len({case.title for case in CASES}) == len(CASES)


def test_made_images_have_the_size_of_photos_and_both_splits(tmp_path):
    photos = tmp_path / "photos"
    run_child(sys.executable, "benchmarks.made_images", ["photos", "--to", str(photos), "--number", "20"], {})
    files = sorted(photos.rglob("*.jpg"))
    assert Counter(file.parts[-3] for file in files) == {"train": 10, "val": 10}
    assert len({file.parent.name for file in files}) == 10
    assert all(50_000 <= file.stat().st_size <= 120_000 for file in files)
    with Image.open(files[0]) as image:
        assert image.size == (500, 375)


@pytest.mark.long
def test_job_augmentation_runs_for_this_package_and_for_keras(tmp_path, capsys):
    assert run_main(command.main, ["augmentation", *arguments(tmp_path, "--repeats", "1", "--seconds", "1")]) == 0
    measured = json.loads((tmp_path / "out.json").read_text())["measurements"]
    tools = measured["augmentation of a batch of 32 images"]
    assert len(tools) == 2 and all(len(rows) == 1 and rows[0]["milliseconds"] > 0 for rows in tools.values())
    assert "| ours | 1 | " in capsys.readouterr().out


def test_accuracy_is_measured_on_drawn_training_images_and_all_test_images(tmp_path, monkeypatch, capsys):
    draw_photos(tmp_path / "set" / "train", num_per_class=6)
    draw_photos(tmp_path / "set" / "test", num_per_class=2)
    monkeypatch.chdir(tmp_path)
    measured = []

    def measure_one(subset, tool, *_):
        files = [path.relative_to(subset).parts for path in sorted(subset.rglob("*.png"))]
        measured.append((len(tool.options) > 0, sum(part[0] == "train" for part in files), len(files)))
        figures = dict.fromkeys(accuracy.FIGURES, 0.5) | {"accuracy": 0.4 if tool.options and len(files) == 24 else 0.5}
        return figures | {"n": 6, "correct": "001011" if tool.options else "111000"}

    monkeypatch.setattr(accuracy, "measure", measure_one)
    arguments = ["set", "--per-class", "4,0", "--seeds", "0,1", "--tools", "lda/ all stages,automatic recipe"]
    accuracy.main(arguments)
    assert measured == [(True, 12, 18), (False, 12, 18)] * 2 + [(True, 18, 24), (False, 18, 24)] * 2
    row = "| set | 4 | automatic recipe | 50.0% (50.0%-50.0%) | +0.0 ± 33.3 +0.0 ± 33.3 |"
    assert row in (printed := capsys.readouterr().out)  # the paired differences of two seeds
    assert "Mean rank by accuracy (n = 4): automatic recipe 1.2; lda, all stages 1.8\n" in printed
    accuracy.main(arguments)
    assert len(measured) == 8, "nothing is measured twice"


def test_sets_are_halved_by_class_or_keep_their_test_images(tmp_path):
    pixels = np.zeros((4, 4), np.uint8)
    halved = Dataset("halved", ("a", "b"), tuple(Example(f"{n}.x", "ab"[n > 5], "", pixels) for n in range(10)))
    parts = sets.divide(halved, {})
    assert Counter(example.label for example in parts["train"]) == {"a": 3, "b": 2}
    assert sorted(example.id for part in parts.values() for example in part) == [f"{n}.x" for n in range(10)]
    assert parts == sets.divide(halved, {})
    official = Dataset(
        "official", ("a",), tuple(Example(f"{n}", "a", "test" if n < 4 else "", pixels) for n in range(9))
    )
    parts = sets.divide(official, {"train": 2})
    assert len(parts["train"]) == 2 and {example.id for example in parts["test"]} == set("0123")
    sets.write(tmp_path / "set", parts)
    written = sorted(path.relative_to(tmp_path / "set").as_posix() for path in tmp_path.rglob("*.png"))
    assert len(written) == 6 and written[:4] == [f"test/a/{n}.png" for n in range(4)]
