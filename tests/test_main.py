"""The program `transfer-learning`: commands by name, version and completion."""

import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

import transfer_learning
from tests.support import ROOT
from transfer_learning.__main__ import COMMANDS, call
from transfer_learning.cli.parser import run_main

PACKAGE = ROOT / "transfer_learning"


def test_every_command_is_a_module_in_the_root_of_the_package_and_the_reverse():
    others = {"__init__", "__main__", "config", "errors"}
    assert set(COMMANDS) == {path.stem for path in PACKAGE.glob("*.py")} - others


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands(arguments, capsys):
    assert run_main(call, arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and about in shown for name, about in COMMANDS.items())
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_a_terminal(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        call([command, "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: transfer-learning {command} ") and "``" not in shown
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 102
    assert not [line for line in lines if re.search(r"\w-$", line)]  # a flag or command that is split over two lines
    examples = shown.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert all(f"transfer-learning {command} " in line or line.startswith("  # ") for line in examples)


def test_version(capsys):
    assert run_main(call, ["--version"]) == 0
    assert capsys.readouterr().out == f"transfer-learning {transfer_learning.__version__}\n"


def test_an_installed_package_has_the_same_version():
    assert version("transfer-learning") == transfer_learning.__version__


def test_a_misspelt_command_is_answered_with_a_suggestion(refused):
    assert "There is no command evalute. Did you mean evaluate?" in refused(call, "evalute", "runs/a")


def test_a_command_gets_its_flags(refused):
    assert "Did you mean drawn_pills?" in refused(call, "run", "--dataset", "drawn_pils")


def completions(line, tmp_path):
    """What the shell would be given for `line`, in the way of argcomplete."""
    file = tmp_path / "completions"
    variables = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(file),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    command = [sys.executable, "-m", "transfer_learning"]
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True, timeout=60)
    return [word.strip() for word in file.read_text().split("\n")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("transfer-learning ev", ["evaluate"]),
        ("transfer-learning run --fine-tune.unf", ["--fine-tune.unfreeze"]),
        ("transfer-learning run --head-init ri", ["ridge"]),
        ("transfer-learning run --dataset drawn", ["drawn_pills"]),
        ("transfer-learning list b", ["backbones"]),
    ],
)
def test_completion(line, expected, tmp_path):
    assert completions(line, tmp_path) == expected
