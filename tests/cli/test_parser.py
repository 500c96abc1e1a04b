"""What the commands share: exit codes, levels of output, completion, and no TensorFlow before it is needed."""

import errno
import logging
import subprocess
import sys

import pytest

from tests.support import ROOT
from transfer_learning import predict, run
from transfer_learning.cli.console import set_up_logging
from transfer_learning.cli.parser import Parser, command_line, run_main
from transfer_learning.errors import ExitCode, UserError


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
        (
            PermissionError(errno.EACCES, "Permission denied", "x.csv"),
            ExitCode.USER_ERROR,
            "x.csv cannot be used (Permission denied)",
        ),
        (OSError(errno.EROFS, "Read-only", "runs"), ExitCode.USER_ERROR, "error: runs cannot be used (Read-only)"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "stopped."),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_line_and_an_exit_code(error, code, words, capsys):
    assert run_main(ends(error)) == code
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a fault"), OSError(errno.EIO, "Input/output error"), KeyError("x")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_main(ends(error))


def test_a_command_that_returns_nothing_ends_with_0():
    assert run_main(lambda arguments: None) == 0
    assert [int(code) for code in ExitCode] == [0, 1, 2, 4, 130, 138, 143]


def test_a_name_too_long_for_the_system_is_an_error_of_the_user(capsys):
    assert run_main(run.main, ["--dataset", "x" * 5000]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        ([], ["some information", "warning: a warning"]),
        (["--quiet"], ["warning: a warning"]),
        (["--verbose"], ["a detail", "some information", "warning: a warning"]),
    ],
)
def test_quiet_and_verbose_set_the_level_of_what_is_printed(flags, printed, capsys):
    logger = logging.getLogger("transfer_learning.any")
    Parser("any").parse_args(flags)
    logger.debug("a detail")
    logger.info("some information")
    logger.warning("a warning")
    set_up_logging()
    assert capsys.readouterr().out.splitlines() == printed


def test_quiet_and_verbose_are_in_the_help_once(capsys):
    with pytest.raises(SystemExit):
        run.parse(["--help"])
    shown = capsys.readouterr().out
    assert shown.count("  --quiet  ") == shown.count("  --verbose  ") == 1


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
import transfer_learning
from transfer_learning import __main__, list, predict, run
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
    *(code_of(list.main, [kind]) for kind in ("datasets", "backbones", "recipes", "dataset")),
    code_of(__main__.call, []),
    code_of(__main__.call, ["rn"]),
]
print(json.dumps([codes, sorted({"tensorflow", "keras", "torch"} & set(sys.modules))]))
"""


def test_help_and_mistakes_are_answered_without_importing_tensorflow():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TENSORFLOW], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[[0, 0, 2, 2, 2, 2, 2, 0, 0, 0, 2, 0, 2], []]", done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == 7 and all(line.startswith("error: ") for line in errors)
    assert "Did you mean drawn_pills" in errors[0]
    assert "Did you mean resnet50" in errors[1]
    assert "stage5" in errors[3], "the stages that there are"


@pytest.mark.parametrize("arguments", [[], ["runs/a"]])
def test_predict_needs_a_run_and_images(arguments, capsys):
    assert run_main(predict.main, arguments) == 2
    assert "the following arguments are required" in capsys.readouterr().err


@pytest.mark.parametrize(("found", "program"), [("bin", "transfer-learning"), ("other", None), (None, None)])
def test_command_to_paste_names_the_program_only_where_the_shell_finds_it(found, program, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr("shutil.which", lambda _: str(tmp_path / found / "transfer-learning") if found else None)
    expected = program or f"{tmp_path}/bin/python -m transfer_learning"
    assert command_line("predict", "my run") == f"{expected} predict 'my run'"
