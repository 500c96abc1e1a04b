"""The command line: a flag a field, no TensorFlow before it is needed, an exit code for each way to end."""

import dataclasses
import errno
import subprocess
import sys

import pytest

from tests.support import ROOT
from transfer_learning import predict, run
from transfer_learning.cli.flags import add_config_flags, given_values
from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.config import PHASES, Phase, RunConfig, flag_name, flat
from transfer_learning.errors import ExitCode, UserError


def given(*arguments):
    return given_values(run.parse(list(arguments)))


def test_a_flag_that_is_not_given_leaves_no_trace():
    assert given() == {}


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["--dataset", "photos"], {"dataset": "photos"}),
        (["--batch-size", "64"], {"batch_size": 64}),
        (["--dropout", "0"], {"dropout": 0.0}),
        (["--head", "512,256"], {"head": (512, 256)}),
        (["--head", "none"], {"head": ()}),
        (["--no-flip"], {"flip": False}),
        (["--skip-unreadable"], {"skip_unreadable": True}),
        (["--frozen.epochs", "3"], {"frozen.epochs": 3}),
        (["--fine-tune.learning-rate=1e-5"], {"fine_tune.learning_rate": 1e-5}),
        (["--fine-tune.unfreeze", "0.3"], {"fine_tune.unfreeze": "0.3"}),
    ],
)
def test_flags_become_values_by_the_names_of_the_fields(arguments, values):
    assert given(*arguments) == values


def test_every_field_is_a_flag_but_the_one_that_has_a_single_value():
    parser = Parser("any")
    add_config_flags(parser)
    flags = {option for action in parser._actions for option in action.option_strings}
    for name in flat(RunConfig()):
        assert (f"--{flag_name(name)}" in flags) == (name != "frozen.unfreeze")


def test_help_shows_every_flag_with_its_choices(capsys):
    with pytest.raises(SystemExit) as caught:
        run.parse(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for item in (*dataclasses.fields(RunConfig), *dataclasses.fields(Phase)):
        if item.name not in PHASES:
            assert item.metadata["help"].split(":")[0] in shown
            assert ", ".join(item.metadata["choices"]) in shown


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--bath-size", "3"], "--bath-size"),
        (["--batch", "3"], "--batch"),  # no abbreviations: they would change their meaning with the next field
        (["--batch-size", "many"], "'many'"),
        (["--batch-size"], "--batch-size"),
        (["--head", "512;256"], "'512;256'"),
        (["photos"], "photos"),
    ],
)
def test_a_flag_that_cannot_be_read_is_named_with_the_way_to_the_help(arguments, named):
    with pytest.raises(UserError, match="--help") as caught:
        run.parse(arguments)
    assert named in str(caught.value)


def ends(error):
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("First line.\nSecond line."), ExitCode.USER_ERROR, "error: First line. Second line."),
        (OSError(errno.ENOSPC, "No space left", "runs/a"), ExitCode.USER_ERROR, "error: The disk is full (runs/a)"),
        (OSError(errno.ENOSPC, "No space left"), ExitCode.USER_ERROR, "error: The disk is full (No space left)"),
        (PermissionError(errno.EACCES, "Permission denied", "x.csv"), ExitCode.USER_ERROR, "x.csv (Permission denied)"),
        (OSError(errno.EROFS, "Read-only", "runs"), ExitCode.USER_ERROR, "error: The system refuses runs (Read-only)"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "stopped."),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_an_exit_code(error, code, words, capsys):
    assert run_main(ends(error)) == code
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a fault"), OSError(errno.EIO, "Input/output error"), KeyError("x")])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_main(ends(error))


def test_a_verb_that_returns_nothing_is_done():
    assert run_main(lambda arguments: None) == 0
    assert [int(code) for code in ExitCode] == [0, 1, 2, 130, 138, 143]


def test_a_name_too_long_for_the_system_is_a_users_error(capsys):
    assert run_main(run.main, ["--dataset", "x" * 5000]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_output_may_be_cut_off_by_the_reader_of_a_pipe():
    code = (
        "import sys; from transfer_learning.cli.parser import run_main\n"
        "sys.exit(run_main(lambda arguments: print('line\\n' * 100_000)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == 0


WITHOUT_TENSORFLOW = """
import json, sys
from transfer_learning import predict, run
from transfer_learning.cli.parser import run_main

def code_of(main, arguments):
    try:
        return int(run_main(main, arguments))
    except SystemExit as end:
        return end.code

codes = [
    code_of(run.main, ["--help"]),
    code_of(predict.main, ["--help"]),
    code_of(run.main, ["--dataset", "drawn_pils"]),
    code_of(run.main, ["--dataset", "digits", "--backbone", "resnet5"]),
    code_of(run.main, ["--dataset", "digits", "--batch-size", "0"]),
    code_of(run.main, ["--dataset", "digits", "--fine-tune.unfreeze", "conv5"]),
    code_of(predict.main, ["no/such/run", "a.jpg"]),
]
print(json.dumps([codes, sorted({"tensorflow", "keras", "torch"} & set(sys.modules))]))
"""


def test_help_and_mistakes_are_answered_without_importing_tensorflow():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TENSORFLOW], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[[0, 0, 2, 2, 2, 2, 2], []]", done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == 5 and all(line.startswith("error: ") for line in errors)
    assert "Did you mean drawn_pills" in errors[0]
    assert "Did you mean resnet50" in errors[1]
    assert "stage5" in errors[3], "the stages that there are"


@pytest.mark.parametrize("arguments", [[], ["runs/a"]])
def test_predict_needs_a_run_and_images(arguments, capsys):
    assert run_main(predict.main, arguments) == 2
    assert "the following arguments are required" in capsys.readouterr().err
