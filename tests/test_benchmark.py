"""The command `benchmark`: the devices of this machine."""

import contextlib
import importlib
import io
import json

import pytest

from tests.support import ROOT
from transfer_learning import benchmark
from transfer_learning.cli.parser import run_main
from transfer_learning.experiments import measurements, one_device
from transfer_learning.experiments.plan import NUM_IMAGES, Plan, rows
from transfer_learning.recipes.known import RECIPES


def in_this_process(python, module, arguments, environment):
    """What `run_child` returns, without importing TensorFlow anew."""
    assert environment in ({}, {"CUDA_VISIBLE_DEVICES": "-1"})
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr("sys.argv", [module, *arguments])
        importlib.import_module(module).main()
    return json.loads(output.getvalue().splitlines()[-1]) | {"gpus": []}


def assert_is_measured(tmp_path, capsys):
    out = tmp_path / "devices.json"
    given = ["--devices", "--dataset", "digits", "--seconds", "1", "--out", str(out)]
    assert run_main(benchmark.main, given) == 0
    figures = json.loads(out.read_text())["measurements"]["CPU"]
    assert figures["extraction"]["least"] <= figures["extraction"]["median"] <= figures["extraction"]["most"]
    assert figures["epoch_seconds"] > 0 and figures["largest_batch"] >= 32 and figures["device_peak_mb"] > 100
    printed = capsys.readouterr().out
    assert "| CPU: " in printed and ("sees no GPU" in printed or "| GPU 0: " in printed)
    assert (tmp_path / "devices.md").read_text().strip() in printed


def test_the_processor_is_measured_and_the_table_printed(small_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "digits", lambda: small_config)
    monkeypatch.setattr(measurements, "run_child", in_this_process)
    assert_is_measured(tmp_path, capsys)


@pytest.mark.long
def test_the_processor_is_measured_in_a_process_of_its_own(tmp_path, capsys):
    assert_is_measured(tmp_path, capsys)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--devices", "--dataset", "pharmacy"], "Did you mean pharma?"),
        (["--devices", "--seconds", "0"], "--seconds 0 measures nothing"),
        ([], "required"),
        (["--plan", "imagnet"], "Did you mean imagenet?"),
        (["--plan", "digits", "--workers", "0"], "--workers 0 --gbit 10 --images 0 is out of range"),
        (["--plan", "stop_signs"], "give --images N"),
        (["--devices", "--dataset", "stop_signs"], "give --images N"),
    ],
)
def test_impossible_flags_are_refused_with_one_sentence(given, words, refused):
    assert words in refused(benchmark.main, *given)


def test_the_pieces_of_a_plan_are_measured(small_config, monkeypatch):
    monkeypatch.setitem(RECIPES, "digits", lambda: small_config)
    pieces = one_device.measure_pieces("digits", 0.1, [4, 2])
    assert set(pieces["step_seconds"]) == {"4", "2"} and set(PIECES) - set(pieces) == {"peak_mb"}  # from `run_child`
    assert all(value > 0 for value in pieces["step_seconds"].values())


PIECES = {  # of one worker: 10 ms per step and 1 ms per image
    "step_seconds": {"512": 0.522, "8": 0.018},
    "forward_images_per_second": 1000,
    "decode_images_per_second": 100,
    "cores": 4,
    "image_bytes": 5 * 10**6,
    "gradient_bytes": 10**8,
    "feature_bytes": 8192,
    "peak_mb": 1234,
}


def planned(*flags, tmp_path, capsys):
    """The rows of a plan from PIECES, by their number of workers."""
    (tmp_path / "pieces.json").write_text(json.dumps(PIECES))
    assert run_main(benchmark.main, ["--plan", "imagenet", *flags, "--pieces", str(tmp_path / "pieces.json")]) == 0
    printed = capsys.readouterr().out
    table = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return {int(row[0]): dict(zip(table[0], row, strict=True)) for row in table[1:]}, printed


def minutes(text):
    """Of ``4:29 h`` or ``52 min``."""
    hours, _, rest = text.removesuffix(" h").rpartition(":")
    return 60 * int(hours) + int(rest) if hours else int(text.removesuffix(" min"))


def test_the_pieces_beside_the_docs_give_their_table():
    text = (ROOT / "docs" / "distributed.md").read_text().partition("### ImageNet-1K on up to 64 GPUs")[2]
    lines = [line.strip("| ").split(" | ") for line in text.partition("**Where")[0].splitlines() if line[:1] == "|"]
    pieces = {"given": json.loads((ROOT / "docs" / "imagenet_a100.json").read_text())}
    plan = Plan("imagenet", 64, False, 100.0, NUM_IMAGES["imagenet"], 2.0, 512)
    found = rows(plan, pieces)
    assert len(lines) == 2 + len(found) == 9
    for line, row, slow in zip(lines[2:], found, rows(plan._replace(gbit=10.0), pieces), strict=True):
        count = row["workers"]
        large = rows(plan._replace(batch_size=256 * count), pieces)[plan.counts().index(count)]
        efficiency = row["images_per_second"] / count / found[0]["images_per_second"]
        step = f"{1e3 * row['compute']:.0f} + {1e3 * row['all_reduce']:.0f}"
        expected = [str(count), str(row["images_per_worker"]), step, f"{row['images_per_second']:,.0f}"]
        assert line[:5] == [*expected, f"{efficiency:.0%}".replace("%", " %")] and line[6] == f"{row['cost']:.0f}"
        for cell, one in ((line[5], row), (line[7], slow), (line[8], large)):
            assert minutes(cell) == pytest.approx(one["fine_tuning"] / 60, abs=0.6), (count, cell)


def test_a_plan_adds_the_all_reduce_of_a_ring_to_the_time_of_the_own_images(tmp_path, capsys):
    flags = ("--workers", "64", "--gbit", "8", "--price", "3", "--images", "1000000")
    rows, printed = planned(*flags, tmp_path=tmp_path, capsys=capsys)
    assert list(rows) == [1, 2, 4, 8, 16, 32, 64]
    assert [row["images per worker and step"] for row in rows.values()] == ["512", "256", "128", "64", "32", "16", "8"]
    steps = {count: row["step, ms: computing + all-reduce"] for count, row in rows.items()}
    # 2 x 63 / 64 of 100 MB at 1 GB/s, and 4 x 6 messages of 0.02 ms
    assert steps[1] == "522 + 0.0" and steps[2] == "266 + 100.1" and steps[64] == "18 + 197.4"
    assert rows[64]["efficiency"] == "4%" and rows[2]["sent per worker and step"] == "100 MB"
    assert (
        rows[1]["images/s"] == "981" and rows[1]["decoding once"] == "1:23 h" and rows[4]["extraction"] == "20:50 min"
    )
    assert rows[1]["cost"] == "29.65"  # of 30 epochs of 990,000 / 980.8 + 10,000 / 1,000 s, and 5,000 s
    assert "From 4 workers on, less than half" in printed and "1,234 MB of memory" in printed
    larger, _ = planned(*flags, "--batch-size", "32768", tmp_path=tmp_path, capsys=capsys)
    assert larger[64]["step, ms: computing + all-reduce"] == "522 + 197.4" and larger[64]["efficiency"] == "73%"


def test_a_plan_for_this_machine_is_measured_once_in_as_many_processes(tmp_path, monkeypatch, capsys):
    calls = []

    def run_child(python, module, arguments, environment):
        job, threads = arguments[0], environment["TF_NUM_INTRAOP_THREADS"]
        calls.append((job, threads, arguments[2] if job == "pieces" else "TF_CONFIG" in environment))
        if job == "all-reduce":
            return {"seconds": [0.05, 0.01]}
        return PIECES | {"step_seconds": {arguments[2]: 0.02 + 0.001 * len(calls)}}

    monkeypatch.setattr(measurements, "run_child", run_child)
    monkeypatch.setattr("transfer_learning.experiments.plan.usable_cores", lambda: 2)
    monkeypatch.setitem(PIECES, "cores", 2)
    given = ["--plan", "digits", "--workers", "3", "--here", "--seconds", "1", "--out", str(tmp_path / "plan.json")]
    assert run_main(benchmark.main, given) == 0
    pieces = [call for call in calls if call[0] == "pieces"]
    assert pieces == [("pieces", "2", "32"), *2 * [("pieces", "1", "16")], *3 * [("pieces", "1", "11")]]
    assert [call for call in calls if call[0] == "all-reduce"] == 5 * [("all-reduce", "1", True)]
    calls.clear()
    printed = capsys.readouterr().out
    # The slowest of 2 and of 3 processes: the third call, and the eighth behind two all-reduces
    assert "| 2 | 16 | 23 + 60.0 |" in printed and "| 3 | 11 | 28 + 60.0 |" in printed and "loopback" in printed
    assert run_main(benchmark.main, given) == 0 and not calls
