"""A checkpoint is complete or not there; damage is named, and the one before it is used."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support.logs import log_messages
from transfer_learning.errors import UserError
from transfer_learning.training import checkpoint

ARRAYS = {
    "weights": [np.arange(6, dtype=np.float32).reshape(2, 3), np.float32(2.5)],
    "seeds": [np.array([1, 2])],
    "best": [],
}


def saved(folder, count):
    for number in range(1, count + 1):
        checkpoint.save(folder, ARRAYS, {"number": number, "exact": 0.1 + 0.2})
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded_to_the_bit(tmp_path):
    arrays, state = checkpoint.load(saved(tmp_path / "checkpoint", 1))
    assert state == {"number": 1, "exact": 0.1 + 0.2}
    assert arrays.keys() == ARRAYS.keys()
    for group, expected in ARRAYS.items():
        assert [(array.dtype, array.shape, array.tobytes()) for array in arrays[group]] == [
            (np.asarray(array).dtype, np.asarray(array).shape, np.asarray(array).tobytes()) for array in expected
        ]


def test_none_was_ever_written(tmp_path):
    assert checkpoint.load(tmp_path / "checkpoint") is None


def test_the_last_two_are_kept(tmp_path):
    assert names(saved(tmp_path, 5)) == ["000004", "000005"]


def test_the_millionth_is_newer_than_the_one_before(tmp_path):
    saved(tmp_path, 1).joinpath("000001").rename(tmp_path / "999998")
    for number in range(2, 5):
        checkpoint.save(tmp_path, ARRAYS, {"number": number})
        assert checkpoint.load(tmp_path)[1]["number"] == number
    assert names(tmp_path) == ["1000000", "1000001"]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit": flip_a_bit,
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "deleted": Path.unlink,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
}


@pytest.mark.parametrize("name", [checkpoint.ARRAYS, checkpoint.STATE, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, name, damage):
    saved(tmp_path, 3)
    DAMAGE[damage](tmp_path / "000003" / name)
    messages = log_messages()
    loaded = checkpoint.load(tmp_path)
    if (name, damage) == (checkpoint.MANIFEST, "a flipped bit") and not messages:
        pytest.fail("a flipped bit in the manifest went unnoticed")
    assert loaded[1]["number"] == 2
    assert len(messages) == 1 and "000003 is damaged" in messages[0]
    assert names(tmp_path) == ["000002", "000003.damaged"]
    assert checkpoint.save(tmp_path, ARRAYS, {"number": 4}).name == "000003"


def test_when_all_are_damaged_nothing_is_begun_anew_in_silence(tmp_path):
    saved(tmp_path, 3)
    for path in tmp_path.glob("*/arrays.npz"):
        flip_a_bit(path)
    with pytest.raises(UserError, match="Every checkpoint in .* is damaged; restore"):
        checkpoint.load(tmp_path)
    with pytest.raises(UserError, match="Every checkpoint"):  # and a second try does not either
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("target", ["numpy.savez", "os.rename", "os.fsync", "pathlib.Path.write_text"])
def test_a_full_disk_leaves_the_older_ones_as_they_were(tmp_path, monkeypatch, target):
    saved(tmp_path, 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        with pytest.raises(OSError, match="No space left") as error:
            checkpoint.save(tmp_path, ARRAYS, {"number": 3})
    assert error.value.filename == str(tmp_path), "which of the disks is full"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_leavings_of_a_killed_save_are_no_checkpoint(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / "000002.partial").mkdir()
    (tmp_path / "000002.partial" / checkpoint.ARRAYS).write_bytes(b"half")
    assert checkpoint.load(tmp_path)[1]["number"] == 1
    checkpoint.save(tmp_path, ARRAYS, {"number": 2})
    assert names(tmp_path) == ["000001", "000002"]


def test_the_writer_returns_at_once_and_the_next_save_waits(tmp_path, monkeypatch):
    may_write, events, original = threading.Event(), [], checkpoint.save

    def slow(folder, arrays, state):
        may_write.wait()
        events.append(f"written {state['number']}")
        return original(folder, arrays, state)

    monkeypatch.setattr(checkpoint, "save", slow)
    with checkpoint.Writer(tmp_path) as writer:
        writer.save(ARRAYS, {"number": 1})
        events.append("begun 1")
        may_write.set()
        writer.save(ARRAYS, {"number": 2})  # no second thread writes beside the first
        assert events[:2] == ["begun 1", "written 1"]
    assert checkpoint.load(tmp_path)[1]["number"] == 2


@pytest.mark.parametrize("moment", ["wait", "save", "end"])
def test_the_error_of_a_write_is_raised_in_the_run(tmp_path, monkeypatch, moment):
    checkpoint.save(tmp_path, ARRAYS, {"number": 1})

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "sync_to_disk", full)
    with pytest.raises(OSError, match="No space left"), checkpoint.Writer(tmp_path) as writer:
        writer.save(ARRAYS, {"number": 2})
        if moment == "wait":
            writer.wait()
        elif moment == "save":
            writer.save(ARRAYS, {"number": 3})
        if moment != "end":
            pytest.fail("the error went by")
    assert checkpoint.load(tmp_path)[1]["number"] == 1
