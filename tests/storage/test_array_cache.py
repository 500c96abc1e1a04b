"""Cached arrays: the same bits come back, damage is detected, and nothing cached is lost, whoever fails and whenever."""

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from tests.support import ROOT
from tests.support.logs import log_messages
from transfer_learning.errors import UserError
from transfer_learning.storage import array_cache, cache_index
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.cache_index import cached_fraction
from transfer_learning.storage.records import IN_MEMORY

SHAPE = (2, 3)
KEYS = [f"key {number}" for number in range(6)]
ARRAYS = list(np.random.default_rng(0).standard_normal((6, *SHAPE)).astype(np.float32))


@pytest.fixture
def entry(tmp_path):
    """A folder in which the first four arrays are kept."""
    with ArrayCache(tmp_path / "entry", SHAPE, np.float32) as arrays:
        arrays.add(KEYS[:4], ARRAYS[:4], [f"note {number}" for number in range(4)])
    return tmp_path / "entry"


def found(folder, shape=SHAPE):
    """Opens an entry; returns the keys that are in it, each with the right bits, and what was said."""
    said = log_messages()
    with ArrayCache(folder, shape, np.float32) as arrays:
        positions, rows = arrays.positions(KEYS), arrays.rows
    here = [key for key, position in zip(KEYS, positions, strict=True) if position >= 0]
    for expected, position in zip(ARRAYS, positions, strict=True):
        if position >= 0:
            np.testing.assert_array_equal(rows[[position]][0], expected, strict=True)
    return here, said


def add_all(folder):
    with ArrayCache(folder, SHAPE, np.float32) as arrays:
        arrays.positions(KEYS)
        arrays.add(KEYS, ARRAYS)


def test_round_trip_to_the_bit(entry):
    assert found(entry) == (KEYS[:4], [])
    with ArrayCache(entry, SHAPE, np.float32) as arrays:
        assert arrays.positions(["no such", KEYS[2]]).tolist() == [-1, 2]
        assert arrays.notes(["no such", KEYS[2]]) == ["", "note 2"]
        assert arrays.rows.shape == (4, *SHAPE) and arrays.rows.dtype == np.float32 and len(arrays.rows) == 4
    assert sorted(path.name for path in entry.iterdir()) == ["index.sqlite", "records.bin"]


def test_an_empty_entry_has_rows_too(tmp_path):
    with ArrayCache(tmp_path / "deep" / "entry", SHAPE, np.float32) as arrays:
        assert arrays.rows.shape == (0, *SHAPE) and arrays.rows[[]].shape == (0, *SHAPE)
        assert arrays.positions([]).shape == (0,)
        assert arrays.positions(["a"]).dtype == np.int64


def test_a_key_is_kept_once_and_as_it_was_first(entry):
    with ArrayCache(entry, SHAPE, np.float32) as arrays:
        assert arrays.add([KEYS[0], "new", "new"], [ARRAYS[5], ARRAYS[4], ARRAYS[5]]).tolist() == [0, 4, 4]
        np.testing.assert_array_equal(arrays.rows[[0, 4]], [ARRAYS[0], ARRAYS[4]])
        assert len(arrays.rows) == 5


def test_rows_that_were_taken_stay_valid_while_others_are_added_and_the_entry_is_closed(entry):
    with ArrayCache(entry, SHAPE, np.float32) as arrays:
        before = arrays.rows
        arrays.add(KEYS[4:], ARRAYS[4:])
    assert len(before) == 4
    np.testing.assert_array_equal(before[np.arange(4)], ARRAYS[:4])


RECORDS = {  # shape and dtype of an entry, and records for it
    "numbers": ((), np.int64, [np.array(number) for number in range(4)]),
    "floats": (SHAPE, np.float32, ARRAYS[:4]),
    "halves": ((5,), np.float16, list(np.arange(20, dtype=np.float16).reshape(4, 5))),
    "bytes": (None, None, [b"", b"a", b"longer than one read" * 3, b"\0\n"]),
}


@pytest.mark.parametrize("positions", [[], [0], [3], [0, 1, 2, 3], [2, 0, 2, 3], [3, 2, 1, 0], [1, 2, 0, 1]])
@pytest.mark.parametrize("num_on_disk", [4, 2, 0])
@pytest.mark.parametrize("name", RECORDS)
def test_rows_by_position_on_disk_and_in_memory(name, num_on_disk, positions, tmp_path, monkeypatch):
    monkeypatch.setattr(array_cache, "BYTES_AT_ONCE", 7)
    shape, dtype, records = RECORDS[name]
    with ArrayCache(tmp_path / "entry", shape, dtype) as arrays:
        arrays.add(KEYS[:num_on_disk], records[:num_on_disk])
        arrays.spill_to_memory("a test")
        arrays.add(KEYS[num_on_disk:4], records[num_on_disk:])
        where = arrays.positions(KEYS[:4])
        assert (where < IN_MEMORY).sum() == num_on_disk and where.dtype == np.int64
        rows = arrays.byte_rows if shape is None else arrays.rows
    assert len(rows) == 4
    result, expected = rows[where[positions]], [records[position] for position in positions]
    if shape is None:
        assert result == expected
        return
    assert rows.shape == (4, *shape) and rows.dtype == dtype
    assert result.shape == (len(positions), *shape) and result.dtype == dtype and result.flags.writeable
    if positions:
        np.testing.assert_array_equal(result, expected)
        result[...] = -1  # it is a new array
        np.testing.assert_array_equal(rows[where[positions].astype(np.uint64)], expected)


@pytest.mark.parametrize("shape", [SHAPE, None])
@pytest.mark.parametrize(
    "positions", [-1, 4, IN_MEMORY + 1, [0, -1], [4], [IN_MEMORY - 1], [0.0], np.ones(4, bool), [[0, 1]]], ids=str
)
def test_what_is_no_position_is_refused_and_not_taken_for_another_one(positions, shape, tmp_path):
    records = ARRAYS if shape else [b"a", b"b", b"c", b"d", b"e"]
    with ArrayCache(tmp_path / "entry", shape, np.float32) as arrays:
        arrays.add(KEYS[:4], records[:4])
        arrays.spill_to_memory("a test")
        arrays.add(["held"], records[4:5])
        with pytest.raises(IndexError, match="expected"):
            arrays.rows[positions] if shape else arrays.byte_rows[np.atleast_1d(positions)]


def test_bytes_come_back_and_their_damage_is_found_out(tmp_path, monkeypatch):
    records = RECORDS["bytes"][2]
    with ArrayCache(tmp_path / "entry", None, None) as arrays:
        assert arrays.add(KEYS[:4], records).tolist() == [0, 1, 2, 3]
        with pytest.raises(ValueError, match="expected bytes, got ndarray"):
            arrays.add(["other"], [np.zeros(3, np.uint8)])
    content = bytearray((tmp_path / "entry" / "records.bin").read_bytes())
    assert content == b"".join(records)
    content[30] ^= 1
    (tmp_path / "entry" / "records.bin").write_bytes(content)
    said = log_messages()
    with ArrayCache(tmp_path / "entry", None, None) as arrays:
        assert arrays.positions(KEYS[:4]).tolist() == [0, 1, -1, 3] and "1 record damaged" in said[0]
        assert arrays.add(KEYS[:4], records).tolist() == [0, 1, 4, 3]
        assert arrays.byte_rows[[3, 4, 0]] == [records[3], records[2], b""]
    with ArrayCache(tmp_path / "entry", None, None) as arrays:
        assert arrays.positions(KEYS[:4]).tolist() == [0, 1, 4, 3]


@pytest.mark.parametrize(
    "change",
    "offset = 3; offset = -1; offset = NULL; offset = 'x'; offset = 1e300; length = 2; length = -1; length = NULL; "
    f"length = {2**62}; crc32 = NULL; crc32 = crc32 + 1; note = 'other'; note = NULL".split("; "),
)
@pytest.mark.parametrize("shape", [(6,), None])
def test_a_row_of_the_index_that_says_something_else_is_damage(shape, change, tmp_path):
    records = [np.frombuffer(data, np.uint8) if shape else data for data in (b"first.", b"second", b"third.")]
    with ArrayCache(tmp_path / "entry", shape, np.uint8) as arrays:
        arrays.add(KEYS[:3], records)
    with contextlib.closing(sqlite3.connect(tmp_path / "entry" / "index.sqlite")) as index, index:
        index.execute(f"UPDATE records SET {change} WHERE number = 2")
    with ArrayCache(tmp_path / "entry", shape, np.uint8) as arrays:
        rows = arrays.rows if shape else arrays.byte_rows
        assert bytes(rows[[0]][0]) == b"first.", "rows are there before anybody has looked for damage"
        assert arrays.positions(KEYS[:3]).tolist() == [0, -1, 2]
        assert list(map(bytes, rows[[0, 2]])) == [b"first.", b"third."]


def test_a_row_that_points_to_the_right_bytes_in_another_place_is_damage_where_places_follow_from_numbers(tmp_path):
    with ArrayCache(tmp_path / "entry", (6,), np.uint8) as arrays:
        arrays.add(KEYS[:2], list(np.arange(12, dtype=np.uint8).reshape(2, 6)))
    with contextlib.closing(sqlite3.connect(tmp_path / "entry" / "index.sqlite")) as index, index:
        index.execute("UPDATE records SET offset = 6 WHERE number = 1")
    (tmp_path / "entry" / "records.bin").write_bytes(bytes([9] * 6 + list(range(6))))
    with ArrayCache(tmp_path / "entry", (6,), np.uint8) as arrays:
        assert arrays.positions(KEYS[:2]).tolist() == [-1, -1]


def test_many_keys_are_found_in_parts_and_each_with_its_own_record(tmp_path, monkeypatch):
    monkeypatch.setattr(array_cache, "KEYS_AT_ONCE", 50)
    monkeypatch.setattr(array_cache, "RECORDS_AT_ONCE", 3)
    keys = [f"key {number}" for number in range(333)]
    with ArrayCache(tmp_path / "entry", (2,), np.int64) as arrays:
        arrays.add(keys, [np.full(2, number) for number in range(333)])
    with open(tmp_path / "entry" / "records.bin", "r+b") as records:
        for number in (0, 49, 50, 200, 332):
            records.seek(16 * number)
            records.write(b"\xff")
    asked = list(np.random.default_rng(0).permutation(350)) + [7, 200, 200]
    said = log_messages()
    with ArrayCache(tmp_path / "entry", (2,), np.int64) as arrays:
        positions = arrays.positions([f"key {number}" for number in asked])
    expected = [-1 if number >= 333 or number in (0, 49, 50, 200, 332) else number for number in asked]
    assert positions.tolist() == expected and len(said) == 1 and "5 records damaged" in said[0]


def test_threads_read_at_once(tmp_path):
    with ArrayCache(tmp_path / "entry", (1000,), np.int32) as arrays:
        arrays.add([str(number) for number in range(200)], [np.full(1000, number, np.int32) for number in range(200)])
        rows = arrays.rows

    def are_right(seed):
        asked = np.random.default_rng(seed).integers(0, 200, (50, 16))
        return all((rows[positions] == positions[:, None]).all() for positions in asked)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(are_right, range(32)))


def test_reading_all_of_an_entry_takes_no_memory(tmp_path):
    with ArrayCache(tmp_path / "entry", (1 << 20,), np.uint8) as arrays:
        keys = [str(number) for number in range(64)]
        for key in keys:
            arrays.add([key], [np.full(1 << 20, int(key), np.uint8)])
        before = psutil.Process().memory_info().rss
        arrays.positions(keys)
        rows = arrays.rows
        assert [rows[[position]].max() for position in range(64)] == list(range(64))
        assert psutil.Process().memory_info().rss - before < 20e6, "mapped pages count as the process's memory"


def test_a_record_that_is_cut_off_while_it_is_in_use_is_an_error_and_no_signal(entry):
    with ArrayCache(entry, SHAPE, np.float32) as arrays:
        rows = arrays.rows
        os.truncate(entry / "records.bin", 3 * ARRAYS[0].nbytes + 5)
        np.testing.assert_array_equal(rows[[0, 2]], [ARRAYS[0], ARRAYS[2]])
        for positions in ([3], [1, 2, 3]):
            with pytest.raises(OSError, match="cut off"):
                rows[positions]


@pytest.mark.parametrize("array", [np.zeros((3, 2), np.float32), np.zeros(SHAPE, np.float64)])
def test_another_shape_or_dtype_is_refused_and_nothing_of_that_addition_stays(array, entry):
    with ArrayCache(entry, SHAPE, np.float32) as arrays, pytest.raises(ValueError, match="expected float32"):
        arrays.add(KEYS[4:], [ARRAYS[4], array])
    assert found(entry) == (KEYS[:4], [])


SHARING = """
import sys
import numpy as np
from pathlib import Path
from transfer_learning.storage.array_cache import ArrayCache

first, last = map(int, sys.argv[2:])
for start in range(first, last, 5):
    with ArrayCache(Path(sys.argv[1]), (64,), np.int64) as arrays:
        numbers = range(start, start + 5)
        arrays.add([str(number) for number in numbers], [np.full(64, number) for number in numbers])
"""


def test_processes_that_add_overlapping_keys_at_once_write_over_nothing(tmp_path):
    ranges = [(0, 100), (50, 150), (0, 150)]
    processes = [
        subprocess.Popen([sys.executable, "-c", SHARING, tmp_path / "entry", *map(str, numbers)], cwd=ROOT)
        for numbers in ranges
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    with ArrayCache(tmp_path / "entry", (64,), np.int64) as arrays:
        positions = arrays.positions([str(number) for number in range(150)])
        assert sorted(positions) == list(range(150)) and len(arrays.rows) == 150
        np.testing.assert_array_equal(arrays.rows[positions], np.repeat(np.arange(150)[:, None], 64, axis=1))


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from transfer_learning.storage import array_cache as kept

number, calls = int(sys.argv[2]), 0
original = getattr(os, sys.argv[3])
def killing(*arguments):
    global calls
    calls += 1
    if calls == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

with kept.ArrayCache(Path(sys.argv[1]), (2, 3), np.float32) as arrays:
    setattr(os, sys.argv[3], killing)
    arrays.add(["key 4", "other"], [np.ones((2, 3), np.float32)] * 2)
"""


@pytest.mark.parametrize(("number", "function"), [(1, "pwrite"), (2, "pwrite"), (1, "fsync")])
def test_killed_before_the_index_knows_it_leaves_bytes_that_the_next_addition_takes(number, function, entry):
    command = [sys.executable, "-c", KILLED, entry, str(number), function]
    assert subprocess.run(command, cwd=ROOT).returncode == -9
    assert found(entry) == (KEYS[:4], [])
    add_all(entry)
    assert found(entry) == (KEYS, []) and (entry / "records.bin").stat().st_size == 6 * ARRAYS[0].nbytes


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO]
)
@pytest.mark.parametrize("function", ["pwrite", "fsync"])
def test_a_disk_that_is_full_in_the_middle_keeps_what_was_there_and_the_run_goes_on_in_memory(
    function, number, entry, monkeypatch
):
    original, said = os.pwrite, log_messages()

    def full(*arguments):
        if function == "pwrite" and arguments[2] == 4 * ARRAYS[0].nbytes:
            return original(arguments[0], arguments[1][:5], arguments[2])  # a short write comes first
        raise OSError(number, os.strerror(number))

    with ArrayCache(entry, SHAPE, np.float32) as arrays:
        before = arrays.rows
        with monkeypatch.context() as patched:
            patched.setattr(os, function, full)
            assert arrays.add(KEYS[:5], ARRAYS[:5], None, 3_000_001).tolist() == [0, 1, 2, 3, IN_MEMORY]
        assert said == [
            f"Cannot write 4 MB to {entry} ({os.strerror(number)}); the run holds this data in memory instead, and later "
            "runs compute it again."
        ]
        assert (entry / "records.bin").stat().st_size == 4 * ARRAYS[0].nbytes, "the space is given back"
        reused = ARRAYS[5].copy()
        new = arrays.add(["new", KEYS[5], KEYS[4], KEYS[5]], [ARRAYS[0], reused, ARRAYS[0], ARRAYS[0]], list("abcd"))
        reused[:] = 0  # its owner goes on with it
        assert new.tolist() == [IN_MEMORY + 1, IN_MEMORY + 2, IN_MEMORY, IN_MEMORY + 2] and len(said) == 1
        assert arrays.notes([KEYS[3], KEYS[4], KEYS[5], "no such"]) == ["note 3", "", "b", ""]
        np.testing.assert_array_equal(arrays.rows[arrays.positions(KEYS)], ARRAYS)
        assert len(arrays.rows) == 7 and len(before) == 4 and arrays.positions(["no such"]) == [-1]
        assert (entry / "records.bin").stat().st_size == 4 * ARRAYS[0].nbytes, "one sentence, and no more attempts"
    assert found(entry) == (KEYS[:4], [])
    add_all(entry)
    assert found(entry) == (KEYS, [])


@pytest.mark.parametrize("array", [np.zeros((3, 2), np.float32), np.zeros(SHAPE, np.float64)])
def test_another_shape_or_dtype_is_refused_in_memory_too(array, entry):
    with ArrayCache(entry, SHAPE, np.float32) as arrays:
        arrays.spill_to_memory("a test")
        with pytest.raises(ValueError, match="expected float32"):
            arrays.add(KEYS[4:], [ARRAYS[4], array])
        assert arrays.positions(KEYS).tolist() == [0, 1, 2, 3, -1, -1] and len(arrays.rows) == 4


def test_an_index_that_cannot_grow_is_a_full_disk(entry):
    said = log_messages()
    with ArrayCache(entry, SHAPE, np.float32) as arrays:
        arrays._index.execute(f"PRAGMA max_page_count = {arrays._index.execute('PRAGMA page_count').fetchone()[0]}")
        many = [f"{number:0200}" for number in range(100)]
        positions = arrays.add(many, [ARRAYS[0]] * 100)
        assert positions.tolist() == list(range(IN_MEMORY, IN_MEMORY + 100)) and "disk is full" in said[0]
    assert found(entry) == (KEYS[:4], [])


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EBUSY, errno.EMFILE])
def test_what_the_disk_is_not_to_blame_for_stays_an_error(number, entry, monkeypatch):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched, ArrayCache(entry, SHAPE, np.float32) as arrays:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            arrays.add(KEYS, ARRAYS)
    assert found(entry) == (KEYS[:4], [])


@pytest.mark.parametrize(
    ("available", "needed", "fits"),
    [(96, 0, True), (95, 0, False), (200, 100, True), (199, 100, False), (200, 10, True), (0, 1, False)],
)
def test_half_of_the_available_memory_may_be_taken(available, needed, fits, entry, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    said = log_messages()
    with ArrayCache(entry, SHAPE, np.float32) as arrays:
        arrays.spill_to_memory("No space left on device")
        if fits:
            assert arrays.add(KEYS[4:], ARRAYS[4:], needed_bytes=needed)[0] == IN_MEMORY and len(said) == 1
            return
        with pytest.raises(UserError, match="The features need . MB.*No space left.*more than half of the . MB of mem"):
            with Cache(entry).disk_full_as_user_error("features", needed):
                arrays.add(KEYS[4:], ARRAYS[4:], needed_bytes=needed)
        assert said == [] and len(arrays.rows) == 4


def test_what_is_in_memory_already_counts_where_nobody_says_how_much_will_come(entry, monkeypatch):
    available = [200]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available[0]))
    with ArrayCache(entry, SHAPE, np.float32) as arrays:
        arrays.spill_to_memory("No space left on device")
        for key in range(4):
            arrays.add([str(key)], ARRAYS[:1])
            available[0] -= ARRAYS[0].nbytes
        with pytest.raises(OSError, match="more than half"):
            arrays.add(["5"], ARRAYS[:1])


@pytest.mark.parametrize("is_full_later", [True, False])
def test_damage_on_a_full_disk_is_not_taken_for_what_is_there(is_full_later, entry, monkeypatch):
    flip_bit(entry)
    said = log_messages()
    with ArrayCache(entry, SHAPE, np.float32) as arrays:
        limit = arrays._index.execute("PRAGMA page_count").fetchone()[0]
        with contextlib.closing(sqlite3.connect(entry / "index.sqlite", isolation_level=None)) as other:
            monkeypatch.setattr(cache_index, "LOCK_SECONDS", 0.1)
            arrays._index.execute("PRAGMA busy_timeout = 100")
            other.execute("BEGIN IMMEDIATE")  # so that the damage cannot be forgotten
            assert arrays.positions(KEYS[:4]).tolist() == [0, 1, -1, 3] and len(said) == 1
        assert arrays.positions(KEYS[:4]).tolist() == [0, 1, -1, 3] and len(said) == 1
        if is_full_later:
            arrays._index.execute(f"PRAGMA max_page_count = {limit}")
            arrays.spill_to_memory("No space left on device")
        positions = arrays.add(KEYS, ARRAYS)
        assert (positions >= IN_MEMORY).any() == is_full_later and positions[2] != 2
        np.testing.assert_array_equal(arrays.rows[positions], ARRAYS)
        np.testing.assert_array_equal(arrays.rows[arrays.positions(KEYS)], ARRAYS)


def test_an_entry_that_another_process_holds_for_long_is_an_error_with_a_name(entry, monkeypatch):
    monkeypatch.setattr(cache_index, "LOCK_SECONDS", 0.1)
    with contextlib.closing(sqlite3.connect(entry / "index.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert found(entry) == (KEYS[:4], []), "reading goes on"
        with ArrayCache(entry, SHAPE, np.float32) as arrays, pytest.raises(OSError, match="locked") as raised:
            arrays.add(KEYS, ARRAYS)
        assert raised.value.errno == errno.EBUSY
        other.execute("COMMIT")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OSError, match="locked") as raised:
            ArrayCache(entry, SHAPE, np.float32)
        assert raised.value.errno == errno.EBUSY


LIMITED = """
import resource, sys
import numpy as np
from pathlib import Path
from tests.support.logs import log_messages
from transfer_learning.storage.array_cache import ArrayCache

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
said = log_messages()
with ArrayCache(Path(sys.argv[1]), (100,), np.int64) as arrays:
    for start in range(0, 100, 10):
        arrays.add([str(n) for n in range(start, start + 10)], [np.full(100, n) for n in range(start, start + 10)])
    keys = [str(n) for n in range(100)]
    assert (arrays.rows[arrays.positions(keys)] == np.arange(100)[:, None]).all()
    print((arrays.positions(keys) < 1 << 40).sum(), len(said), *said)
"""


@pytest.mark.parametrize(
    ("limit", "most"), [(0, 0), (5_000, 0), (15_000, 10), (20_000, 20), (50_000, 60), (79_999, 90), (10**6, 100)]
)
def test_files_that_may_not_grow_by_the_systems_own_word(limit, most, tmp_path):
    command = [sys.executable, "-c", LIMITED, tmp_path / "entry", str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    num_on_disk, num_said = map(int, done.stdout.split()[:2])
    assert num_on_disk <= most and num_on_disk % 10 == 0 and num_said == (num_on_disk < 100)
    with ArrayCache(tmp_path / "entry", (100,), np.int64) as arrays:
        keys = [str(number) for number in range(100)]
        positions = arrays.positions(keys)
        assert (positions >= 0).sum() == num_on_disk
        arrays.add(keys, [np.full(100, number) for number in range(100)])
        assert (arrays.rows[arrays.positions(keys)] == np.arange(100)[:, None]).all()


def truncate(entry):
    os.truncate(entry / "records.bin", 3 * ARRAYS[0].nbytes + 5)
    return KEYS[:3], "entry: 1 record damaged; computing again"


def delete_records(entry):
    (entry / "records.bin").unlink()
    return [], "4 records damaged"


def flip_bit(entry):
    content = bytearray((entry / "records.bin").read_bytes())
    content[2 * ARRAYS[0].nbytes + 7] ^= 0x10
    (entry / "records.bin").write_bytes(content)
    return [KEYS[0], KEYS[1], KEYS[3]], "1 record damaged"


def point_elsewhere(entry):
    with contextlib.closing(sqlite3.connect(entry / "index.sqlite")) as index, index:
        index.execute("UPDATE records SET key = 'key 5' WHERE number = 1")
    return KEYS[1:4], "1 record damaged"


def delete_index(entry):
    (entry / "index.sqlite").unlink()
    return [], "entry: the index is missing, damaged or of another version; starting empty"


def garbage(entry):
    (entry / "index.sqlite").write_bytes(b"no database at all" * 100)
    return [], "the index is missing"


def half_garbage(entry):
    content = (entry / "index.sqlite").read_bytes()
    (entry / "index.sqlite").write_bytes(content[: len(content) // 2] + b"\xff" * (len(content) // 2))
    return [], "the index is missing"


def truncated_index(entry):
    os.truncate(entry / "index.sqlite", 5000)
    return [], "the index is missing"


def older_version(entry):
    with contextlib.closing(sqlite3.connect(entry / "index.sqlite")) as index:
        index.execute("PRAGMA user_version = 2")
    return [], "the index is missing"


def drop_table(entry):
    with contextlib.closing(sqlite3.connect(entry / "index.sqlite")) as index, index:
        index.execute("DROP TABLE entry")
    return [], "the index is missing"


def empty_table(entry):
    with contextlib.closing(sqlite3.connect(entry / "index.sqlite")) as index, index:
        index.execute("DELETE FROM entry")
    return [], "the index is missing"


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        delete_records,
        flip_bit,
        point_elsewhere,
        delete_index,
        garbage,
        half_garbage,
        truncated_index,
        older_version,
        drop_table,
        empty_table,
    ],
)
def test_damage_is_found_logged_once_and_made_good(damage, entry):
    left, sentence = damage(entry)
    here, said = found(entry)
    assert here == left and len(said) == 1
    assert re.search(sentence, said[0])
    assert found(entry) == (left, [])
    add_all(entry)
    assert found(entry) == (KEYS, [])


@pytest.mark.parametrize("shape", [SHAPE, None])
def test_whatever_bytes_of_the_index_change_all_records_are_found_after_they_are_added_again(shape, tmp_path):
    records = [array if shape else array.tobytes() for array in ARRAYS]
    with ArrayCache(tmp_path / "entry", shape, np.float32) as arrays:
        arrays.add(KEYS[:5], records[:5])
    index, (tables, keys) = tmp_path / "entry" / "index.sqlite", (b"PRIMARY KEY, key", b"key 3")
    whole = index.read_bytes()
    places = [
        whole.find(tables),
        whole.find(keys),
        whole.rfind(keys),
        *np.random.default_rng(0).integers(len(whole), size=60),
    ]
    for place in places:
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with ArrayCache(tmp_path / "entry", shape, np.float32) as arrays:
            arrays.positions(KEYS)
            arrays.add(KEYS, records)
            rows = arrays.rows if shape else arrays.byte_rows
            assert all(map(np.array_equal, rows[arrays.positions(KEYS)], records)), place
        shutil.rmtree(index.parent)
        with ArrayCache(tmp_path / "entry", shape, np.float32) as arrays:
            arrays.add(KEYS[:5], records[:5])


@pytest.mark.parametrize("offset", ["NULL", "'x'", "-9", "3"])
def test_behind_a_damaged_row_nothing_is_written(offset, entry):
    with contextlib.closing(sqlite3.connect(entry / "index.sqlite")) as index, index:
        index.execute(f"UPDATE records SET offset = {offset} WHERE number = 4")
    before = (entry / "records.bin").read_bytes()
    with ArrayCache(entry, SHAPE, np.float32) as arrays:
        positions = arrays.add(KEYS[4:], ARRAYS[4:])
        assert all(map(np.array_equal, arrays.rows[positions], ARRAYS[4:]))
    assert (entry / "records.bin").read_bytes() == before


def test_another_shape_in_the_same_folder_is_another_entry(entry):
    here, said = found(entry, (6,))
    assert here == [] and len(said) == 1


def flip_bit_of_the_last(entry):
    content = bytearray((entry / "records.bin").read_bytes())
    content[-1] ^= 1
    (entry / "records.bin").write_bytes(content)


@pytest.mark.parametrize("damage", [delete_index, garbage, flip_bit, flip_bit_of_the_last])
def test_what_a_running_process_reads_does_not_change_when_another_one_starts_anew(damage, entry):
    with ArrayCache(entry, SHAPE, np.float32) as running:
        rows = running.rows
        damage(entry)
        before = rows[np.arange(4)]
        with ArrayCache(entry, SHAPE, np.float32) as other:
            other.positions(KEYS)
            other.add(KEYS[4:], ARRAYS[4:])
    np.testing.assert_array_equal(rows[np.arange(4)], before)
    np.testing.assert_array_equal(before[:2], ARRAYS[:2])


def test_a_running_process_whose_entry_was_made_anew_goes_on_in_memory(entry):
    with ArrayCache(entry, SHAPE, np.float32) as running:
        delete_index(entry)
        with ArrayCache(entry, SHAPE, np.float32) as other:
            other.add(KEYS[:1], ARRAYS[:1])
            said = log_messages()
            assert running.add(KEYS, ARRAYS).tolist() == [0, 1, 2, 3, IN_MEMORY, IN_MEMORY + 1] and len(said) == 1
            other.add(KEYS[4:], ARRAYS[4:])
        np.testing.assert_array_equal(running.rows[running.positions(KEYS)], ARRAYS)
    assert found(entry) == ([KEYS[0], *KEYS[4:]], [])


@pytest.fixture
def read_only(entry):
    """The entry where this process may read and not write, whoever runs the tests."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "entry"
        shutil.copytree(entry, folder)
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


def test_a_folder_that_cannot_be_written_is_read_and_what_is_new_goes_to_memory(read_only):
    assert found(read_only) == (KEYS[:4], [])
    said = log_messages()
    with ArrayCache(read_only, SHAPE, np.float32) as arrays:
        assert arrays.add(KEYS[:4], ARRAYS[:4]).tolist() == [0, 1, 2, 3] and said == []
        assert arrays.add(KEYS, ARRAYS).tolist() == [0, 1, 2, 3, IN_MEMORY, IN_MEMORY + 1]
        np.testing.assert_array_equal(arrays.rows[arrays.positions(KEYS)], ARRAYS)
    assert len(said) == 1 and f"Cannot write 1 MB to {read_only} (Permission denied)" in said[0]
    assert len(list(read_only.iterdir())) == 2
    assert found(read_only) == (KEYS[:4], [])


@pytest.mark.parametrize(("name", "shape"), [("new", SHAPE), ("deep/new", None), ("", (3,))])
def test_a_folder_that_cannot_be_made_or_made_anew_leaves_memory(name, shape, read_only):
    records = [b"a", b"b"] if shape is None else [np.full(shape, number, np.float32) for number in range(2)]
    said = log_messages()
    with ArrayCache(read_only / name, shape, np.float32) as arrays:
        assert arrays.positions(KEYS).tolist() == [-1] * 6 and arrays.notes(KEYS[:1]) == [""]
        assert arrays.add(KEYS[:2], records, ["x", "y"]).tolist() == [IN_MEMORY, IN_MEMORY + 1]
        arrays.add(KEYS[1:3], records)
        assert arrays.notes(KEYS[1:2]) == ["y"]
        rows = arrays.rows if shape else arrays.byte_rows
    found_rows = rows[[IN_MEMORY, IN_MEMORY + 2]]
    assert [record.tolist() if shape else record for record in found_rows] == [
        record.tolist() if shape else record for record in records
    ]
    assert sum("(Permission denied); the run holds this data in memory instead" in sentence for sentence in said) == 1
    assert len(list(read_only.iterdir())) == 2


@pytest.mark.parametrize("name", ["file", "file/entry", "dangling", "dangling/entry"])
def test_a_folder_that_is_no_folder_is_the_users_mistake(name, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "no such")
    with pytest.raises(OSError) as raised:
        ArrayCache(tmp_path / name, SHAPE, np.float32)
    assert raised.value.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENOENT)
    assert (tmp_path / "file").read_text() == "mine"


def test_damage_in_a_folder_that_cannot_be_written_is_found_out_too(read_only):
    user = os.geteuid()
    if os.getuid() == 0:
        os.seteuid(0)
    os.chmod(read_only / "records.bin", 0o644)
    flip_bit(read_only)
    os.chmod(read_only / "records.bin", 0o444)
    os.seteuid(user)
    here, said = found(read_only)
    assert here == [KEYS[0], KEYS[1], KEYS[3]] and "1 record damaged" in said[0]


def test_records_that_cannot_be_written_in_a_folder_that_can_are_made_anew_where_they_are_of_no_use(read_only):
    user = os.geteuid()
    if os.getuid() == 0:
        os.seteuid(0)
    os.chmod(read_only, 0o777)
    os.seteuid(user)
    with ArrayCache(read_only, (6,), np.float32) as arrays:
        assert arrays.add(KEYS[:1], [ARRAYS[0].reshape(6)]) == [0], "on disk, not in memory"


def test_what_cannot_be_written_is_an_error_with_the_space_it_needs():
    with pytest.raises(UserError, match=r"^The features need 2 MB in here, .*No space.*--cache-dir\.$"):
        with Cache(Path("here")).disk_full_as_user_error("features", 1_000_001):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(BrokenPipeError), Cache(Path("here")).disk_full_as_user_error("features", 1):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize(
    ("keys", "share"), [([], 0), (KEYS[:4], 1), (KEYS, 4 / 6), (["no such"], 0), (["no such", KEYS[3]], 0.5)]
)
def test_the_share_that_is_kept(keys, share, entry):
    assert cached_fraction(entry, SHAPE, np.float32, keys) == share
    assert cached_fraction(entry, list(SHAPE), "float32", keys) == share
    for shape, dtype in (((6,), np.float32), (SHAPE, np.int32), (None, None)):
        assert cached_fraction(entry, shape, dtype, keys) == 0, "of another layout"


@pytest.mark.parametrize("damage", [delete_index, garbage, half_garbage, older_version, drop_table, empty_table])
def test_looking_how_much_is_kept_changes_nothing(damage, entry):
    damage(entry)
    before = {path: path.read_bytes() for path in entry.iterdir()}
    assert cached_fraction(entry, SHAPE, np.float32, KEYS) == 0
    assert cached_fraction(entry / "no such", SHAPE, np.float32, KEYS) == 0
    assert {path: path.read_bytes() for path in entry.iterdir()} == before
