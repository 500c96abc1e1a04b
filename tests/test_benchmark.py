"""The command `benchmark`: the devices of this machine."""

import json

import pytest

from transfer_learning import benchmark
from transfer_learning.cli.parser import run_main


def test_the_processor_is_measured_and_the_table_printed(tmp_path, capsys):
    out = tmp_path / "devices.json"
    given = ["--devices", "--dataset", "digits", "--seconds", "1", "--out", str(out)]
    assert run_main(benchmark.main, given) == 0
    figures = json.loads(out.read_text())["measurements"]["CPU"]
    assert figures["extraction"]["least"] <= figures["extraction"]["median"] <= figures["extraction"]["most"]
    assert figures["epoch_seconds"] > 0 and figures["largest_batch"] >= 32 and figures["device_peak_mb"] > 100
    printed = capsys.readouterr().out
    assert "| CPU: " in printed and ("sees no GPU" in printed or "| GPU 0: " in printed)
    assert (tmp_path / "devices.md").read_text().strip() in printed


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
