"""What the commands share: exit codes, levels of output, completion, and no TensorFlow before it is needed."""

import errno
import logging
import os
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
        (OSError(errno.EFBIG, "File too large", "a.keras"), ExitCode.USER_ERROR, "a.keras would be larger than the"),
        (OSError(errno.EFBIG, "File too large"), ExitCode.USER_ERROR, "A file would be larger than the"),
        (OSError(errno.EIO, "Input/output error", "x/1.jpg"), ExitCode.USER_ERROR, "x/1.jpg cannot be read or written"),
        (OSError(errno.ESTALE, "Stale file handle"), ExitCode.USER_ERROR, "network folder does not answer"),
        (FileNotFoundError(errno.ENOENT, "No such file", b"x\xff"), ExitCode.USER_ERROR, "x\\udcff is missing"),
        (OSError(errno.EMFILE, "Too many open files", "x"), ExitCode.USER_ERROR, "ulimit -a"),
        (OSError("Can't write data (errno = 27, error message = 'File too large')"), ExitCode.USER_ERROR, "ulimit -f"),
        (
            RuntimeError("Can't write data (errno = 28, message)"),
            ExitCode.USER_ERROR,
            "The disk is full (No space left",
        ),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "stopped."),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_line_and_an_exit_code(error, code, words, capsys):
    assert run_main(ends(error)) == code
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "error", [ValueError("a fault"), OSError(errno.EINVAL, "Invalid argument"), KeyError("x"), RuntimeError("x")]
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_main(ends(error))


def test_a_command_that_returns_nothing_ends_with_0():
    assert run_main(lambda arguments: None) == 0
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4, 5, 130, 141, 138, 143]


def test_a_name_too_long_for_the_system_is_an_error_of_the_user(refused):
    assert "Traceback" not in refused(run.main, "--dataset", "x" * 5000)


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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["~/a.png"], {"image": "/home/me/a.png"}),
        (["~"], {"image": "/home/me"}),
        (["a~b.png"], {"image": "a~b.png"}),
        (["-dash.png"], {"image": "./-dash.png"}),
        (["--", "-dash.png"], {"image": "./-dash.png"}),
        (["a", "--dataset=~/x"], {"dataset": "/home/me/x"}),
        (["a", "--dataset", "hf:~/x,split"], {"dataset": "hf:/home/me/x,split"}),
        (["a", "--dataset", "-dash.png"], {"dataset": "./-dash.png"}),
        (["a", "--dataset=-dash.png"], {"dataset": "-dash.png"}),
        (["a", "--quiet"], {"quiet": True}),
    ],
)
def test_paths_may_begin_with_a_tilde_or_a_dash(arguments, expected, here, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("-dash.png", "--quiet"):
        (here / name).touch()
    parser = Parser("any")
    parser.add_argument("image")
    parser.add_argument("--dataset")
    found = vars(parser.parse_args(arguments))
    assert {name: found[name] for name in expected} == expected


def test_quiet_and_verbose_are_in_the_help_once(capsys):
    with pytest.raises(SystemExit):
        run.parse(["--help"])
    shown = capsys.readouterr().out
    assert shown.count("  --quiet  ") == shown.count("  --verbose  ") == 1


# `print_line` is how every command prints; that of one whose result is its output is marked.
PRINT = "[print_line('line ' * 100) for _ in range(10_000)]"
ON_DISK = f"""import sys
from transfer_learning.cli.console import output_is_result, print_line
from transfer_learning.cli.parser import run_main
def main(arguments):
    {PRINT}
    open('result', 'w').close()
sys.exit(run_main(main))"""
ON_OUTPUT = ON_DISK.replace(PRINT, f"with output_is_result(): {PRINT}")


def shell(here, code, redirection):
    """The exit code of a program, what is printed by it and the programs after it, and whether it has a result."""
    (here / "program.py").write_text(code)
    command = f"{sys.executable} program.py {redirection}; echo code ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], cwd=here, capture_output=True, text=True, env=environment)
    code = int(done.stdout.splitlines()[-1].split()[-1])
    return code, done.stdout + done.stderr, (here / "result").exists()


@pytest.mark.parametrize(
    ("redirection", "code_on_output"),
    [
        ("| head -1", 141),  # as SIGPIPE
        ("2>&1 | head -1", 141),
        ("> /dev/full", 2),
        ("> /dev/full 2>&1", 2),
        (">&-", 2),
        ("<&- >&- 2>&-", 2),
    ],
)
def test_a_command_with_its_result_on_disk_goes_on_without_its_output(redirection, code_on_output, here):
    code, printed, has_result = shell(here, ON_OUTPUT, redirection)
    assert (code, has_result) == (code_on_output, False) and "Traceback" not in printed
    code, printed, has_result = shell(here, ON_DISK, redirection)
    assert (code, has_result) == (0, True) and "Traceback" not in printed and "error" not in printed


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", rb"caf\xe9 \u85ac \udcff"),
        ("latin-1", b"caf\xe9 \\u85ac \\udcff"),
        ("cp1252", b"caf\xe9 \\u85ac \\udcff"),
        ("utf-8", "café 薬 ".encode() + b"\xff"),
    ],
)
def test_what_an_encoding_lacks_is_escaped(encoding, shown):
    code = (
        "import sys; from transfer_learning.cli.parser import run_main\n"
        "text = 'caf\\xe9 \\u85ac \\udcff'\n"
        "sys.exit(run_main(lambda arguments: (print(text), print(text, file=sys.stderr)) and None))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, shown + b"\n", shown + b"\n")


def test_warnings_that_a_user_made_errors_stay_warnings_in_commands():
    code = (
        "import sys, warnings; from transfer_learning.cli.parser import run_main\n"
        "from transfer_learning import predict, prepare, run\n"
        "sys.exit(run_main(lambda arguments: warnings.warn('old', DeprecationWarning) or warnings.warn('odd')))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "UserWarning: odd" in done.stderr


def test_no_time_is_spent_on_garbage_among_what_is_imported_and_at_the_end_of_the_process():
    code = (
        "import gc; from transfer_learning.cli.parser import quiet_start, run_main\n"
        "class Cycle:\n"
        "    def __init__(self): self.own = self\n"
        "    def __del__(self): print('found', flush=True)\n"
        "def main(arguments):\n"
        "    with quiet_start(in_command=True): print(gc.isenabled())\n"
        "    print(gc.isenabled(), gc.get_freeze_count() > 0, type(Cycle()).__name__)\n"
        "run_main(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\nTrue True Cycle\n", "")


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
def test_predict_needs_a_run_and_images(arguments, refused):
    assert "the following arguments are required" in refused(predict.main, *arguments)


@pytest.mark.parametrize(("found", "program"), [("bin", "transfer-learning"), ("other", None), (None, None)])
def test_command_to_paste_names_the_program_only_where_the_shell_finds_it(found, program, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr("shutil.which", lambda _: str(tmp_path / found / "transfer-learning") if found else None)
    expected = program or f"{tmp_path}/bin/python -m transfer_learning"
    assert command_line("predict", "my run") == f"{expected} predict 'my run'"
