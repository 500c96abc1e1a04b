"""Kept arrays: bits come back, damage is found out, nothing that was kept is lost, whoever fails and whenever."""

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from transfer_learning import kept
from transfer_learning.errors import UserError
from transfer_learning.kept import KeptArrays, space_told

ROOT = Path(__file__).parent.parent
SHAPE = (2, 3)
KEYS = [f"key {number}" for number in range(6)]
ARRAYS = list(np.random.default_rng(0).standard_normal((6, *SHAPE)).astype(np.float32))


@pytest.fixture
def pool(tmp_path):
    """A folder in which the first four arrays are kept."""
    with KeptArrays(tmp_path / "pool", SHAPE, np.float32) as arrays:
        arrays.add(KEYS[:4], ARRAYS[:4], [f"note {number}" for number in range(4)])
    return tmp_path / "pool"


def found(folder, shape=SHAPE):
    """Opens a pool; returns the keys that are in it, each with the right bits, and what was said."""
    said = []
    with KeptArrays(folder, shape, np.float32, said.append) as arrays:
        positions, array = arrays.positions(KEYS), arrays.array
    here = [key for key, position in zip(KEYS, positions, strict=True) if position >= 0]
    for expected, position in zip(ARRAYS, positions, strict=True):
        if position >= 0:
            np.testing.assert_array_equal(array[position], expected, strict=True)
    return here, said


def add_all(folder):
    with KeptArrays(folder, SHAPE, np.float32, lambda sentence: None) as arrays:
        arrays.positions(KEYS)
        arrays.add(KEYS, ARRAYS)


def test_round_trip_to_the_bit(pool):
    assert found(pool) == (KEYS[:4], [])
    with KeptArrays(pool, SHAPE, np.float32) as arrays:
        assert arrays.positions(["no such", KEYS[2]]).tolist() == [-1, 2]
        assert arrays.notes(["no such", KEYS[2]]) == ["", "note 2"]
        assert isinstance(arrays.array, np.memmap) and not arrays.array.flags.writeable
    assert sorted(path.name for path in pool.iterdir()) == ["index.sqlite", "records.bin"]


def test_an_empty_pool_has_an_array_too(tmp_path):
    with KeptArrays(tmp_path / "deep" / "pool", SHAPE, np.float32) as arrays:
        assert arrays.array.shape == (0, *SHAPE) and arrays.array.dtype == np.float32
        assert not arrays.array.flags.writeable and arrays.positions([]).shape == (0,)
        assert arrays.positions(["a"]).dtype == np.int64


def test_a_key_is_kept_once_and_as_it_was_first(pool):
    with KeptArrays(pool, SHAPE, np.float32) as arrays:
        assert arrays.add([KEYS[0], "new", "new"], [ARRAYS[5], ARRAYS[4], ARRAYS[5]]).tolist() == [0, 4, 4]
        np.testing.assert_array_equal(arrays.array[[0, 4]], [ARRAYS[0], ARRAYS[4]])
        assert len(arrays.array) == 5


def test_an_array_that_was_taken_stays_valid_while_others_are_added_and_the_pool_is_closed(pool):
    with KeptArrays(pool, SHAPE, np.float32) as arrays:
        before = arrays.array
        arrays.add(KEYS[4:], ARRAYS[4:])
    np.testing.assert_array_equal(before, ARRAYS[:4])


@pytest.mark.parametrize("array", [np.zeros((3, 2), np.float32), np.zeros(SHAPE, np.float64)])
def test_another_shape_or_dtype_is_refused_and_nothing_of_that_addition_stays(array, pool):
    with KeptArrays(pool, SHAPE, np.float32) as arrays, pytest.raises(ValueError, match="expected float32"):
        arrays.add(KEYS[4:], [ARRAYS[4], array])
    assert found(pool) == (KEYS[:4], [])


SHARING = """
import sys
import numpy as np
from pathlib import Path
from transfer_learning.kept import KeptArrays

first, last = map(int, sys.argv[2:])
for start in range(first, last, 5):
    with KeptArrays(Path(sys.argv[1]), (64,), np.int64) as arrays:
        numbers = range(start, start + 5)
        arrays.add([str(number) for number in numbers], [np.full(64, number) for number in numbers])
"""


def test_processes_that_add_overlapping_keys_at_once_write_over_nothing(tmp_path):
    ranges = [(0, 100), (50, 150), (0, 150)]
    processes = [
        subprocess.Popen([sys.executable, "-c", SHARING, tmp_path / "pool", *map(str, numbers)], cwd=ROOT)
        for numbers in ranges
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    with KeptArrays(tmp_path / "pool", (64,), np.int64, pytest.fail) as arrays:
        positions = arrays.positions([str(number) for number in range(150)])
        assert sorted(positions) == list(range(150)) and len(arrays.array) == 150
        np.testing.assert_array_equal(arrays.array[positions], np.repeat(np.arange(150)[:, None], 64, axis=1))


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from transfer_learning import kept

number, calls = int(sys.argv[2]), 0
original = getattr(os, sys.argv[3])
def killing(*arguments):
    global calls
    calls += 1
    if calls == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

with kept.KeptArrays(Path(sys.argv[1]), (2, 3), np.float32) as arrays:
    setattr(os, sys.argv[3], killing)
    arrays.add(["key 4", "other"], [np.ones((2, 3), np.float32)] * 2)
"""


@pytest.mark.parametrize(("number", "function"), [(1, "pwrite"), (2, "pwrite"), (1, "fsync")])
def test_killed_before_the_index_knows_it_leaves_bytes_that_the_next_addition_takes(number, function, pool):
    command = [sys.executable, "-c", KILLED, pool, str(number), function]
    assert subprocess.run(command, cwd=ROOT).returncode == -9
    assert found(pool) == (KEYS[:4], [])
    add_all(pool)
    assert found(pool) == (KEYS, []) and (pool / "records.bin").stat().st_size == 6 * ARRAYS[0].nbytes


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("function", ["pwrite", "fsync"])
def test_a_disk_that_is_full_in_the_middle_keeps_what_was_there(function, number, pool, monkeypatch):
    original = os.pwrite

    def full(*arguments):
        if function == "pwrite" and arguments[2] == 4 * ARRAYS[0].nbytes:
            return original(arguments[0], arguments[1][:5], arguments[2])  # a short write comes first
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched, KeptArrays(pool, SHAPE, np.float32) as arrays:
        patched.setattr(kept.os, function, full)
        with pytest.raises(OSError, match=os.strerror(number)) as raised:
            arrays.add(KEYS, ARRAYS)
        assert raised.value.errno == number
        assert len(arrays.array) == 4, "the space is given back"
    assert found(pool) == (KEYS[:4], [])
    add_all(pool)
    assert found(pool) == (KEYS, [])


def test_an_index_that_cannot_grow_is_a_full_disk(pool):
    with KeptArrays(pool, SHAPE, np.float32) as arrays:
        arrays._index.execute(f"PRAGMA max_page_count = {arrays._index.execute('PRAGMA page_count').fetchone()[0]}")
        many = [f"{number:0200}" for number in range(100)]
        with pytest.raises(OSError, match="full") as raised:
            arrays.add(many, [ARRAYS[0]] * 100)
        assert raised.value.errno == errno.ENOSPC
    assert found(pool) == (KEYS[:4], [])


def test_a_pool_that_another_process_holds_for_long_is_an_error_with_a_name(pool, monkeypatch):
    monkeypatch.setattr(kept, "LOCK_SECONDS", 0.1)
    with contextlib.closing(sqlite3.connect(pool / "index.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert found(pool) == (KEYS[:4], []), "reading goes on"
        with KeptArrays(pool, SHAPE, np.float32) as arrays, pytest.raises(OSError, match="locked") as raised:
            arrays.add(KEYS, ARRAYS)
        assert raised.value.errno == errno.EBUSY


def truncate(pool):
    os.truncate(pool / "records.bin", 3 * ARRAYS[0].nbytes + 5)
    return KEYS[:3], "1 kept arrays in .*pool were damaged; they are made again"


def delete_records(pool):
    (pool / "records.bin").unlink()
    return [], "4 kept arrays in"


def flip_bit(pool):
    content = bytearray((pool / "records.bin").read_bytes())
    content[2 * ARRAYS[0].nbytes + 7] ^= 0x10
    (pool / "records.bin").write_bytes(content)
    return [KEYS[0], KEYS[1], KEYS[3]], "1 kept arrays in"


def point_elsewhere(pool):
    with contextlib.closing(sqlite3.connect(pool / "index.sqlite")) as index, index:
        index.execute("UPDATE kept SET key = 'key 5' WHERE number = 1")
    return KEYS[1:4], "1 kept arrays in"


def delete_index(pool):
    (pool / "index.sqlite").unlink()
    return [], "The index of the arrays kept in .*pool is missing, damaged or of another version; they are made again"


def garbage(pool):
    (pool / "index.sqlite").write_bytes(b"no database at all" * 100)
    return [], "The index of"


def half_garbage(pool):
    content = (pool / "index.sqlite").read_bytes()
    (pool / "index.sqlite").write_bytes(content[: len(content) // 2] + b"\xff" * (len(content) // 2))
    return [], "The index of"


def truncated_index(pool):
    os.truncate(pool / "index.sqlite", 5000)
    return [], "The index of"


def older_version(pool):
    with contextlib.closing(sqlite3.connect(pool / "index.sqlite")) as index:
        index.execute("PRAGMA user_version = 1")
    return [], "The index of"


@pytest.mark.parametrize(
    "damage",
    [
        truncate, delete_records, flip_bit, point_elsewhere, delete_index, garbage, half_garbage, truncated_index,
        older_version,
    ],
)  # fmt: skip
def test_damage_is_found_out_told_once_and_made_good(damage, pool):
    left, sentence = damage(pool)
    here, said = found(pool)
    assert here == left and len(said) == 1
    assert re.search(sentence, said[0])
    assert found(pool) == (left, [])
    add_all(pool)
    assert found(pool) == (KEYS, [])


def test_another_shape_in_the_same_folder_is_another_pool(pool):
    here, said = found(pool, (6,))
    assert here == [] and len(said) == 1


@pytest.mark.parametrize("damage", [delete_index, garbage, flip_bit])
def test_what_a_running_process_has_mapped_does_not_change_when_another_one_starts_anew(damage, pool):
    with KeptArrays(pool, SHAPE, np.float32) as running:
        array = running.array
        if damage is flip_bit:
            running.positions(KEYS)
            with running._transaction("IMMEDIATE"):  # what another process does that finds the last record damaged
                running._index.execute("DELETE FROM kept WHERE key = 'key 3'")
        else:
            damage(pool)
        with KeptArrays(pool, SHAPE, np.float32, lambda sentence: None) as other:
            other.add(KEYS[4:], ARRAYS[4:])
        np.testing.assert_array_equal(array, ARRAYS[:4])


@pytest.fixture
def read_only(pool):
    """The pool where this process may read and not write, whoever runs the tests."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "pool"
        shutil.copytree(pool, folder)
        os.chmod(parent, 0o755)
        os.chmod(folder, 0o555)
        for path in folder.iterdir():
            os.chmod(path, 0o444)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may write anywhere
        try:
            yield folder
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o755)


def test_a_folder_that_cannot_be_written_is_read(read_only):
    assert found(read_only) == (KEYS[:4], [])
    with KeptArrays(read_only, SHAPE, np.float32) as arrays:
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            arrays.add(KEYS[4:], ARRAYS[4:])
    with pytest.raises(PermissionError):
        KeptArrays(read_only / "new", SHAPE, np.float32)
    assert len(list(read_only.iterdir())) == 2


def test_damage_in_a_folder_that_cannot_be_written_is_found_out_too(read_only):
    user = os.geteuid()
    if os.getuid() == 0:
        os.seteuid(0)
    os.chmod(read_only / "records.bin", 0o644)
    flip_bit(read_only)
    os.chmod(read_only / "records.bin", 0o444)
    os.seteuid(user)
    here, said = found(read_only)
    assert here == [KEYS[0], KEYS[1], KEYS[3]] and "1 kept arrays" in said[0]


def test_what_cannot_be_written_is_told_with_the_space_it_needs():
    with pytest.raises(UserError, match=r"^The features need 2 MB in here, .*No space.*--cache-dir\.$"):
        with space_told("The features", 1_000_001, "here"):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(BrokenPipeError), space_told("The features", 1, "here"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
