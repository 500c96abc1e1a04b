"""The command `benchmark`: the devices of this machine."""

import contextlib
import importlib
import io
import json

import pytest

from transfer_learning import benchmark
from transfer_learning.cli.parser import run_main
from transfer_learning.experiments import measurements
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
    ],
)
def test_impossible_flags_are_refused_with_one_sentence(given, words, capsys):
    assert run_main(benchmark.main, given) == 2
    assert words in capsys.readouterr().err
