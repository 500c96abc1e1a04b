"""Run directories: a new one is empty, an old one is known by its config, and one process at a time writes."""

import errno
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ROOT
from transfer_learning.config import RunConfig
from transfer_learning.errors import UserError
from transfer_learning.reports.audit import new_audit_dir
from transfer_learning.storage.files import write_text, written_atomically
from transfer_learning.storage.run_directory import RunDir, existing_run_dir, new_run_dir


def make_run(path, finished):
    run_dir = new_run_dir(path, "unused")
    write_text(run_dir.config, RunConfig().to_json())
    if finished:
        write_text(run_dir.report, "<p>done</p>")
    return run_dir


def test_a_new_run_gets_a_directory_under_runs_that_bears_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = new_run_dir(None, "photos-resnet50")
    with first.begun(RunConfig()):
        second = new_run_dir(None, "photos-resnet50")  # within the same second, as a rule
    assert first.path.is_dir() and first.path != second.path
    assert all(run_dir.path.parent == Path("runs") for run_dir in (first, second))
    assert first.path.name.startswith("photos-resnet50-2")


@pytest.mark.parametrize("before", ["missing", "empty", "left by a kill"])
def test_a_named_directory_may_be_new_or_empty(before, tmp_path):
    path = tmp_path / "deep" / "run"
    if before != "missing":
        path.mkdir(parents=True)
    if before == "left by a kill":  # behind the lock, ahead of the config
        (path / ".lock").touch()
    run_dir = new_run_dir(path, "unused")
    assert run_dir.path == path
    with run_dir.begun(RunConfig(seed=3)):
        assert run_dir.read_config() == RunConfig(seed=3)  # ahead of everything that may take long
    with run_dir.begun(RunConfig(seed=3)):  # and it can be continued
        pass


def test_what_cannot_begin_leaves_nothing_and_what_was_begun_stays(tmp_path):
    run_dir = RunDir(tmp_path / "run")
    with pytest.raises(UserError, match="no such dataset"), run_dir.begun(RunConfig()):
        raise UserError("no such dataset")
    assert not run_dir.path.exists()
    with pytest.raises(KeyboardInterrupt), run_dir.begun(RunConfig()):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="no such dataset"), run_dir.begun(RunConfig()):
        raise UserError("no such dataset")
    assert run_dir.config.exists()


def test_a_run_is_not_continued_with_another_config_nor_when_it_is_finished(tmp_path):
    run_dir = make_run(tmp_path / "run", finished=False)
    with pytest.raises(UserError, match="another config .seed is 0, not 5."), run_dir.begun(RunConfig(seed=5)):
        pass
    with run_dir.begun(RunConfig(data_dir="elsewhere")):  # which decides no result
        pass
    write_text(run_dir.report, "<p>done</p>")
    with pytest.raises(UserError, match="finished run"), run_dir.begun(RunConfig()):
        pass


def a_finished_run(path):
    make_run(path, finished=True)


def an_unfinished_run(path):
    make_run(path, finished=False)


def somebodys_files(path):
    path.mkdir()
    (path / "thesis.tex").write_text("x")


def a_file(path):
    path.write_text("x")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (a_finished_run, ["finished run", "report.html", "choose another"]),
        (an_unfinished_run, ["unfinished run", "--resume"]),
        (somebodys_files, ["holds other files", "choose"]),
        (a_file, ["is a file", "choose another"]),
    ],
)
def test_a_directory_that_holds_something_is_refused_with_the_way_out(make, words, tmp_path):
    path = tmp_path / "taken"
    make(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        new_run_dir(path, "unused")
    assert all(word in str(caught.value) for word in [str(path), *words])
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_name_is_not_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--run-dir is empty"):
        new_run_dir("", "unused")


def test_the_config_of_a_run_that_was_moved_away_is_named(tmp_path):
    with pytest.raises(UserError, match=r"run/config.json is missing; restore it"):
        RunDir(tmp_path / "run").read_config()


@pytest.mark.parametrize("finished", [False, True])
def test_an_existing_run_is_opened_and_knows_whether_it_is_finished(finished, tmp_path):
    make_run(tmp_path / "run", finished)
    assert existing_run_dir(tmp_path / "run").is_finished == finished


@pytest.mark.parametrize(
    ("make", "words"),
    [(somebodys_files, "no config.json"), (a_file, "no run directory"), (lambda path: None, "no run directory")],
)
def test_what_is_no_run_cannot_be_opened(make, words, tmp_path):
    make(tmp_path / "run")
    with pytest.raises(UserError, match=words):
        existing_run_dir(tmp_path / "run")


def test_a_run_that_another_process_holds_is_refused_until_that_process_ends(tmp_path):
    code = (
        "import sys; from pathlib import Path; from transfer_learning.storage.run_directory import RunDir\n"
        "with RunDir(Path(sys.argv[1])).locked():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    run_dir = make_run(tmp_path / "run", finished=False)
    holder = subprocess.Popen(
        [sys.executable, "-c", code, run_dir.path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process"), run_dir.locked():
            pass
        holder.kill()
    with run_dir.locked():  # the lock went with its process
        pass


@pytest.mark.parametrize("finished", [False, True])
def test_what_another_process_did_until_it_let_go_is_seen(finished, tmp_path, monkeypatch):
    run_dir, locked = RunDir(tmp_path / "run"), RunDir.locked

    @contextmanager
    def late(self):
        with locked(self):
            if not self.config.exists():
                make_run(self.path, finished)
            yield

    monkeypatch.setattr(RunDir, "locked", late)
    with pytest.raises(UserError, match="finished" if finished else "another config"), run_dir.begun(RunConfig(seed=5)):
        pytest.fail("it went on")
    assert run_dir.read_config() == RunConfig()


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "new" / "notes.json"
    write_text(path, "one\n")
    with pytest.raises(ZeroDivisionError), written_atomically(path) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == path.suffix and path.read_text() == "one\n"
        1 / 0  # noqa: B018
    assert path.read_text() == "one\n"
    write_text(path, "two\n")
    assert path.read_text() == "two\n"
    assert list(path.parent.iterdir()) == [path], "nothing lies beside it"


def test_an_error_of_the_system_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(OSError) as caught, written_atomically(tmp_path / "notes.json") as temporary:
        temporary.mkdir()
        temporary.write_text("a folder is no file")
    assert caught.value.filename == str(tmp_path / "notes.json")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    for make, flag in ((new_run_dir, "--run-dir"), (new_audit_dir, "--out")):
        for path in (tmp_path / "a" / "b", None):
            with pytest.raises(UserError, match=f"{flag} .* cannot be written: {tmp_path} is read-only"):
                make(path, "photos")


def test_what_a_killed_process_left_beside_a_file_goes_with_the_next_writing(tmp_path):
    path = tmp_path / "[a] model.keras"  # brackets mean something to a search by pattern
    code = (
        "import os, sys; from pathlib import Path; from transfer_learning.storage.files import written_atomically\n"
        "with written_atomically(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1 and not path.exists()
    write_text(path, "whole")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with new_run_dir(tmp_path / "run", "unused").begun(RunConfig(seed=3)):
        pass
    assert existing_run_dir(tmp_path / "run").read_config() == RunConfig(seed=3)
