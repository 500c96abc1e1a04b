"""The benchmark: order, medians, ratios, going on after a stop, sides that are missing or fail, the tables."""

import json
import sys
from collections import Counter

import pytest
from PIL import Image

from transfer_learning import benchmark
from transfer_learning.benchmark import Failed
from transfer_learning.cli.parser import run_main
from transfer_learning.peers import tables
from transfer_learning.peers.cases import FIGURES, Case, Side

OURS, THEIRS, ABSENT = (
    Side("ours", "ours", "work"),
    Side("theirs", "theirs", "work"),
    Side("absent", "absent", "work", packages=("no_such_package",)),
)
CASE = Case("frozen", "some work", "seconds", (OURS, THEIRS, ABSENT))
RATE = Case("extraction", "some rate", "images_per_second", (OURS, THEIRS))


@pytest.fixture
def children(monkeypatch):
    """The modules that were run, in their order; each takes a second more than the one before."""
    ran = []

    def run_child(python, module, arguments, environment):
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

    monkeypatch.setattr(benchmark, "run_child", run_child)
    monkeypatch.setattr(benchmark, "CASES", (CASE,))
    return ran


def arguments(folder, *more):
    return ["--peers", "--out", str(folder / "out.json"), "--work-dir", str(folder / "work"), *more]


def test_every_second_round_is_turned_round():
    sides = [OURS, THEIRS]
    assert [(repeat, side.name) for repeat, side in benchmark.abba(sides, 3)] == [
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
    assert tables.number(0.01234) == "0.0123"


def test_a_ratio_says_how_many_times_we_are_better():
    seconds, rate = FIGURES["seconds"], FIGURES["images_per_second"]
    assert tables.ratio([1.0, 9.0, 6.0], [3.0, 3.0, 3.0], seconds) == "2.00"
    assert tables.ratio([6.0], [3.0], rate) == "0.50"


def test_tables_hold_what_was_measured(children, tmp_path, capsys):
    assert run_main(benchmark.main, arguments(tmp_path, "--repeats", "3")) == 0
    assert children == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    document = json.loads((tmp_path / "out.json").read_text())
    assert {name: len(rows) for name, rows in document["measurements"]["some work"].items()} == {"ours": 3, "theirs": 3}
    table = (tmp_path / "out.md").read_text()
    assert table in capsys.readouterr().out
    # Ours took 1, 4 and 5 seconds, and processes of 6, 9, 10 with an evaluation of 1; they 2, 3, 6 and 7, 8, 11.
    assert "| ours | 3 | 4.00 (1.00-5.00) | 1.00 | 8.00 (5.00-9.00) | 1.00 | 2.00 | 123 | 50.0 % |" in table
    assert "| theirs | 3 | 3.00 (2.00-6.00) | 0.75 | 8.00 (7.00-11.0) | 1.00 | 2.00 | 123 | 50.0 % |" in table
    assert "Left out: some work: absent (no_such_package not found by --peers-python" in table
    assert f"{benchmark.num_cores()} cores" in table and "tensorflow 2." in table and "--repeats 3" in table


def test_more_images_a_second_are_better(children, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "CASES", (RATE,))
    assert run_main(benchmark.main, arguments(tmp_path, "--repeats", "1")) == 0
    assert "| theirs | 1 | 50.0 (50.0-50.0) | 2.00 |" in (tmp_path / "out.md").read_text()


def test_a_stopped_benchmark_goes_on(children, tmp_path, monkeypatch):
    measured = benchmark.run_child

    def stopped_at_the_third(*all_arguments):
        if len(children) == 3:
            raise KeyboardInterrupt
        return measured(*all_arguments)

    monkeypatch.setattr(benchmark, "run_child", stopped_at_the_third)
    assert run_main(benchmark.main, arguments(tmp_path)) == 130
    document = json.loads((tmp_path / "out.json").read_text())
    assert Counter({name: len(rows) for name, rows in document["measurements"]["some work"].items()}).total() == 3
    monkeypatch.setattr(benchmark, "run_child", measured)
    assert run_main(benchmark.main, arguments(tmp_path)) == 0
    assert children == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert run_main(benchmark.main, arguments(tmp_path, "--repeats", "4")) == 0
    assert children[6:] == ["theirs", "ours"]


def test_other_settings_are_not_mixed(children, tmp_path, capsys):
    assert run_main(benchmark.main, arguments(tmp_path)) == 0
    assert run_main(benchmark.main, arguments(tmp_path, "--epochs", "3")) == 2
    assert '"epochs": 10' in capsys.readouterr().err
    assert len(children) == 6


def test_a_side_that_fails_is_left_out_and_tried_again_next_time(children, tmp_path, monkeypatch, capsys):
    measured = benchmark.run_child

    def theirs_fails(python, module, *more):
        if module == "theirs":
            raise Failed("ValueError: out of luck")
        return measured(python, module, *more)

    monkeypatch.setattr(benchmark, "run_child", theirs_fails)
    assert run_main(benchmark.main, arguments(tmp_path)) == 0
    assert children == ["ours"] * 3
    assert capsys.readouterr().out.count("theirs is left out: ValueError: out of luck") == 1
    monkeypatch.setattr(benchmark, "run_child", measured)
    assert run_main(benchmark.main, arguments(tmp_path)) == 0
    assert children[3:] == ["theirs"] * 3
    assert "out of luck" not in (tmp_path / "out.md").read_text()


def test_a_child_that_fails_says_why_in_its_last_line():
    with pytest.raises(Failed, match="invalid choice: 'paint'"):
        benchmark.run_child(sys.executable, "made_images", ["paint"], {})
    with pytest.raises(Failed, match="no figures"):
        benchmark.run_child(sys.executable, "job", [], {})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--peers", "frosen"], "Did you mean frozen?"),
        (["--devices", "--dataset", "pharmacy"], "Did you mean pharma?"),
        (["--peers", "--repeats", "0"], "--repeats 0 measures nothing"),
        (["--peers", "--images", "3"], "--images 3 is too few"),
        (["--peers", "--peers-python", "no/such/python"], "is no program"),
        (["--peers", "--devices"], "not allowed with"),
        ([], "required"),
    ],
)
def test_what_cannot_be_is_a_sentence(given, words, capsys):
    assert run_main(benchmark.main, given) == 2
    assert words in capsys.readouterr().err


def test_every_side_has_a_program_and_every_need_a_thing():
    flags = benchmark.parse(["--peers"])
    for case in benchmark.CASES:
        assert case.figure in FIGURES
        assert len({side.name for side in case.sides}) == len(case.sides)
        for side in case.sides:
            program = (benchmark.ROOT / "transfer_learning" / "peers" / f"{side.module}.py").read_text()
            assert f'"{side.job}": ' in program
            assert {*case.needs, *side.needs} <= benchmark.things(flags).keys()
    assert len({case.title for case in benchmark.CASES}) == len(benchmark.CASES)


def test_made_images_have_the_size_of_photos_and_both_splits(tmp_path):
    photos = tmp_path / "photos"
    benchmark.run_child(sys.executable, "made_images", ["photos", "--to", str(photos), "--number", "20"], {})
    files = sorted(photos.rglob("*.jpg"))
    assert Counter(file.parts[-3] for file in files) == {"train": 10, "val": 10}
    assert len({file.parent.name for file in files}) == 10
    assert all(50_000 <= file.stat().st_size <= 120_000 for file in files)
    with Image.open(files[0]) as image:
        assert image.size == (500, 375)


def test_devices_for_real(tmp_path, capsys):
    out = tmp_path / "devices.json"
    assert run_main(benchmark.main, ["--devices", "--dataset", "digits", "--seconds", "1", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())["measurements"]["CPU"]
    assert figures["extraction"]["least"] <= figures["extraction"]["median"] <= figures["extraction"]["most"]
    assert figures["epoch_seconds"] > 0 and figures["largest_batch"] >= 32 and figures["device_peak_mb"] > 100
    printed = capsys.readouterr().out
    assert "| CPU: " in printed and ("sees no GPU" in printed or "| GPU 0: " in printed)


def test_peers_for_real(tmp_path, capsys):
    more = ["--repeats", "1", "--seconds", "1"]
    assert run_main(benchmark.main, [*arguments(tmp_path)[:1], "augmentation", *arguments(tmp_path)[1:], *more]) == 0
    measured = json.loads((tmp_path / "out.json").read_text())["measurements"]
    sides = measured["random changes of a batch of 32 images"]
    assert len(sides) == 2 and all(len(rows) == 1 and rows[0]["milliseconds"] > 0 for rows in sides.values())
    assert "| ours | 1 | " in capsys.readouterr().out
