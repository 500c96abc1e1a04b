"""Whatever goes wrong with a checkpoint, a load gives the newest or an older complete state, and logs the damage."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.support import ROOT
from tests.support.fault_injection import around_calls, number_of, state_of
from tests.support.logs import log_messages
from transfer_learning.errors import UserError
from transfer_learning.training import checkpoint


def saved(folder, count):
    for number in range(1, count + 1):
        checkpoint.save(folder, *state_of(number))
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_calls_of_a_save_are_seen(tmp_path):
    with around_calls(lambda number, is_done: None) as names:
        saved(tmp_path / "checkpoint", 3)
    assert {"open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir"} <= set(names)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_failing_call_loses_nothing(code, before, tmp_path):
    """Each call of a save fails in turn; a save without an error has saved."""
    number, at, folder = before + 1, 0, tmp_path / "checkpoint"
    while True:
        at += 1
        shutil.rmtree(folder, ignore_errors=True)
        saved(folder, before)

        def fail(call, is_done, at=at):
            if call == at and not is_done:
                raise OSError(code, os.strerror(code))

        failed = False
        with around_calls(fail) as names:
            try:
                checkpoint.save(folder, *state_of(number))
            except OSError as error:
                assert error.errno == code
                failed = True
        messages = log_messages()
        loaded = number_of(checkpoint.load(folder))
        assert not messages
        assert loaded == number or (failed and loaded == before), (at, names[-1], loaded)
        checkpoint.save(folder, *state_of(number + 1))
        assert number_of(checkpoint.load(folder)) == number + 1
        if len(names) < at:
            break
    assert at > 15


def damaged(folder, kind, random):
    """Damages the newest checkpoint of three by chance; returns what was done, for the message."""
    path = folder / "000003" / str(random.choice([checkpoint.ARRAYS, checkpoint.STATE, checkpoint.MANIFEST]))
    content = bytearray(path.read_bytes())
    if kind == "flipped bit":
        bit = int(random.integers(8 * len(content)))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        return path.name, bit
    length = int(random.integers(len(content)))
    os.truncate(path, length)
    return path.name, length


def check_damage(tmp_path, kind, times):
    random = np.random.default_rng(0)
    whole = contents(saved(tmp_path / "whole", 3))
    for time in range(times):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        what = damaged(folder, kind, random)
        messages = log_messages()
        assert number_of(checkpoint.load(folder)) == 2, (time, what)
        assert len(messages) == 1 and "000003 is damaged" in messages[0], (time, what, messages)
        left = contents(folder)
        assert all(left[name] == content for name, content in whole.items() if name.parts[0] == "000002")


@pytest.mark.parametrize(("kind", "times"), [("flipped bit", 100), ("cut", 40)])
def test_damage_is_always_found_and_logged(kind, times, tmp_path):
    check_damage(tmp_path, kind, times)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "times"), [("flipped bit", 1000), ("cut", 200)])
def test_damage_is_always_found_and_logged_at_length(kind, times, tmp_path):
    check_damage(tmp_path, kind, times)


@pytest.mark.parametrize("name", [checkpoint.ARRAYS, checkpoint.STATE, checkpoint.MANIFEST, ""])
@pytest.mark.parametrize("newest", ["000002", "000003"])
def test_a_deleted_file_is_logged_unless_it_is_an_older_one(name, newest, tmp_path):
    folder = saved(tmp_path / "checkpoint", 3)
    target = folder / newest / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    messages = log_messages()
    assert number_of(checkpoint.load(folder)) == (2 if newest == "000003" else 3)
    assert len(messages) == (newest == "000003" and name != "")


def test_when_nothing_whole_is_left_it_is_an_error(tmp_path):
    folder = saved(tmp_path / "checkpoint", 3)
    for path in folder.glob("*/*"):
        os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(UserError, match="Every checkpoint"):
        checkpoint.load(folder)


def killed(folder, saves):
    command = [sys.executable, "-m", "tests.support.fault_injection", str(folder), "--saves", str(saves)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_killed_at_the_calls_of_a_save(tmp_path):
    found = killed(tmp_path / "checkpoint", saves=1)
    assert found["kills"] == found.get("newest", 0) + found["older"] > 30


@pytest.mark.long
def test_killed_at_every_call_of_many_saves(tmp_path):
    found = killed(tmp_path / "checkpoint", saves=9)
    assert found["kills"] == found["newest"] + found["older"] >= 500
