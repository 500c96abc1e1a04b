"""The cache: listed, kept within its size, cleared, while other processes use it or not."""

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.storage.test_array_cache import (
    ARRAYS,
    KEYS,
    ROOT,
    SHAPE,
    add_all,
    found,
    garbage,
    half_garbage,
    older_version,
    truncated_index,
)
from tests.support.logs import log_messages
from transfer_learning.errors import UserError
from transfer_learning.storage import cache as cache_module
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.cache_index import EntrySpec
from transfer_learning.storage.locks import exclusive_lock
from transfer_learning.storage.records import IN_MEMORY


@pytest.fixture
def cache(tmp_path):
    """A cache of three entries, the oldest first: pixels/old 24 B, features/middle 48 B, features/new 72 B of records."""
    for number, name in enumerate(("pixels/old", "features/middle", "features/new"), 1):
        with ArrayCache(tmp_path / "cache" / name, SHAPE, np.float32, {"test": number}) as arrays:
            arrays.add(KEYS[:number], ARRAYS[:number])
        os.utime(tmp_path / "cache" / name / "records.bin", (1e9 * number / 3, 1e9 * number / 3))
    return tmp_path / "cache"


def names(folder):
    return [entry.name for entry in Cache(folder).entries()]


ALL = ["features/middle", "features/new", "pixels/old"]


def test_a_cache_is_listed(cache):
    entries = Cache(cache).entries()
    assert [entry.name for entry in entries] == ALL
    assert [entry.spec for entry in entries] == [
        EntrySpec("features", "middle", SHAPE, "float32", {"test": 2}),
        EntrySpec("features", "new", SHAPE, "float32", {"test": 3}),
        EntrySpec("pixels", "old", SHAPE, "float32", {"test": 1}),
    ]
    assert [entry.contents for entry in entries] == ["test 2", "test 3", "test 1"]
    assert [entry.num_records for entry in entries] == [2, 3, 1] and not any(entry.in_use for entry in entries)
    for entry in entries:
        assert entry.num_bytes == sum(file.stat().st_size for file in entry.path.iterdir())
    assert entries[1].last_used.timestamp() == 1e9


def test_being_opened_is_the_last_use_and_looking_is_none(cache):
    before = time.time() - 1
    with ArrayCache(cache / "pixels" / "old", SHAPE, np.float32):
        pass
    for _ in range(2):
        middle, new, old = Cache(cache).entries()
        assert middle.last_used < new.last_used < old.last_used and old.last_used.timestamp() > before


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (garbage, "damaged"),
        (half_garbage, "damaged"),
        (truncated_index, "damaged"),
        (older_version, "of another version"),
    ],
)
def test_a_damaged_entry_is_listed_and_can_be_cleared(damage, problem, cache):
    with ArrayCache(cache / "pixels" / "large", SHAPE, np.float32) as arrays:
        arrays.add([f"{number:0200}" for number in range(100)], [ARRAYS[0]] * 100)
    damage(cache / "pixels" / "large")
    entry = Cache(cache).entries()[2]
    assert entry.name == "pixels/large" and entry.spec is None and entry.contents == problem and entry.num_records == 0
    assert Cache(cache).clear("large") == ([entry], []) and names(cache) == ALL


def test_what_is_no_entry_is_neither_listed_nor_touched(cache):
    outside = cache.parent / "elsewhere" / "records.bin"
    for path in (
        "photo.jpg",
        "index.sqlite",
        "records.bin",
        "pixels/records.bin",
        "pixels/index.sqlite",
        "pixels/mine/records.bin",
        "pixels/deep/er/records.bin",
        "pixels/deep/er/index.sqlite",
        "pixels/half/index.sqlite",
        "pixels/old/mine.txt",
        "pixels/odd/records.bin",
        "pixels/odd/index.sqlite/mine",
    ):
        (cache / path).parent.mkdir(parents=True, exist_ok=True)
        (cache / path).write_text("mine")
    outside.parent.mkdir()
    outside.write_text("mine")
    (cache / "pixels" / "link").symlink_to(outside.parent)
    files = {path for path in cache.rglob("*") if path.is_file() and path.parent.name not in ("old", "middle", "new")}
    assert names(cache) == ALL
    assert [entry.name for entry in Cache(cache).clear("all")[0]] == ALL and names(cache) == []
    assert Cache(cache, 0).make_room(10**9) is False
    assert {path for path in cache.rglob("*") if path.is_file()} == files | {cache / "pixels" / "old" / "mine.txt"}
    assert outside.exists() and not (cache / "features" / "new").exists()


def test_no_cache_holds_nothing(tmp_path):
    assert Cache(tmp_path / "no such").entries() == [] == Cache(tmp_path).entries()
    assert Cache(tmp_path).clear("all") == ([], [])
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        Cache(tmp_path / "file").entries()
    assert Cache(tmp_path / "no such", 5e-9).make_room(5) and not Cache(tmp_path / "no such", 5e-9).make_room(6)


@pytest.mark.parametrize("chosen", ["all", "features", "new", "features/new"])
def test_what_is_chosen_is_cleared(chosen, cache):
    deleted, in_use = Cache(cache).clear(chosen)
    expected = {"all": ALL, "features": ALL[:2]}.get(chosen, ["features/new"])
    assert [entry.name for entry in deleted] == expected and in_use == []
    assert names(cache) == [name for name in ALL if name not in expected]


@pytest.mark.parametrize(
    ("chosen", "answer"),
    [("feature", "mean features"), ("pixels/odd", "mean pixels/old"), ("", "Known: all, features,")],
)
def test_an_unknown_name_clears_nothing(chosen, answer, cache):
    with pytest.raises(UserError, match=answer):
        Cache(cache).clear(chosen)
    assert names(cache) == ALL


@pytest.mark.parametrize(
    ("num_bytes", "limit", "used", "deleted", "fits"),
    [
        (0, 3, [], [], True),
        (1, 3, [], ["pixels/old"], True),
        (2, 3, [], ["pixels/old", "features/middle"], True),
        (3, 3, [], ["pixels/old", "features/middle", "features/new"], True),
        (4, 3, [], [], False),
        (4, 2, [], ["pixels/old"], False),
        (0, 1, [], ["pixels/old", "features/middle"], True),
        (0, 0, [], ["pixels/old", "features/middle", "features/new"], True),
        (1, 3, ["pixels/old"], ["features/middle"], True),
        (2, 3, ["features/middle"], ["pixels/old", "features/new"], True),
        (3, 3, ["features/middle"], [], False),
        (0, 0, ["features/middle"], ["pixels/old", "features/new"], False),
    ],
)
def test_room_is_made_by_what_was_not_used_for_longest(num_bytes, limit, used, deleted, fits, cache):
    size, said = 10**6, log_messages()
    for number, name in enumerate(("pixels/old", "features/middle", "features/new"), 1):
        os.truncate(cache / name / "records.bin", size - (cache / name / "index.sqlite").stat().st_size)
        os.utime(cache / name / "records.bin", (50_000 + number, 50_000 + number))
    with contextlib.ExitStack() as stack:
        for name in used:
            stack.enter_context(ArrayCache(cache / name, SHAPE, np.float32))
        assert Cache(cache, limit * size / 1e9).make_room(num_bytes * size) is fits
    assert names(cache) == [name for name in ALL if name not in deleted]
    assert len(said) == bool(deleted)
    for name in deleted:
        assert re.search(rf"{name} \(test \d, 1 MB, last used 1970-01-01", said[0])
    if deleted:
        assert said[0].startswith(f"Deleted from {cache}") and f"below {limit} MB" in said[0]


def test_an_entry_that_may_not_be_deleted_stays_and_others_make_room(cache, monkeypatch):
    original = cache_module._delete

    def refusing(folder):
        if folder.name == "old":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return original(folder)

    monkeypatch.setattr(cache_module, "_delete", refusing)
    limit = Cache(cache).entries()[0].num_bytes + 100
    assert Cache(cache, limit / 1e9).make_room(0) is True
    assert names(cache) == ["pixels/old"]


def test_an_entry_is_in_use_while_it_is_open_and_while_its_rows_live(cache):
    def is_used():
        return Cache(cache).entries()[2].in_use

    folder = cache / "pixels" / "old"
    arrays, second = (ArrayCache(folder, SHAPE, np.float32) for _ in range(2))
    assert is_used()
    arrays.close()
    assert is_used(), "by the second one"
    rows = second.rows
    second.close()
    assert is_used(), "by its rows"
    assert [entry.name for entry in Cache(cache).clear("pixels")[1]] == ["pixels/old"] and folder.exists()
    np.testing.assert_array_equal(rows[[0]], ARRAYS[:1])
    del rows
    assert not is_used() and len(Cache(cache).clear("pixels")[0]) == 1


USING = """
import sys
import numpy as np
from pathlib import Path
from transfer_learning.storage.array_cache import ArrayCache

with ArrayCache(Path(sys.argv[1]), (2, 3), np.float32) as arrays:
    rows = arrays.rows
print("open", flush=True)
sys.stdin.read()
"""


def test_an_entry_that_another_process_uses_stays_until_that_is_killed(cache):
    command = [sys.executable, "-c", USING, cache / "pixels" / "old"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        deleted, in_use = Cache(cache).clear("all")
        assert [entry.name for entry in deleted] == ALL[:2] and [entry.name for entry in in_use] == ALL[2:]
        assert not Cache(cache, 0).make_room(0)
        process.kill()
        process.wait()
        assert [entry.name for entry in Cache(cache).clear("all")[0]] == ALL[2:]


def test_rows_stay_valid_after_the_entry_is_deleted(cache, monkeypatch):
    with ArrayCache(cache / "features" / "new", SHAPE, np.float32) as arrays:
        rows = arrays.rows
    monkeypatch.setattr(cache_module, "is_used", lambda records: False)  # as on a file system without locks
    Cache(cache).clear("all")
    with ArrayCache(cache / "features" / "new", SHAPE, np.float32) as arrays:
        arrays.add(KEYS[:3], [np.zeros(SHAPE, np.float32)] * 3)
    np.testing.assert_array_equal(rows[np.arange(3)], ARRAYS[:3])


def test_a_run_whose_entry_is_deleted_under_it_goes_on_in_memory(cache, monkeypatch):
    monkeypatch.setattr(cache_module, "is_used", lambda records: False)
    said = log_messages()
    with ArrayCache(cache / "features" / "new", SHAPE, np.float32) as arrays:
        Cache(cache).clear("all")
        assert (arrays.add(KEYS[3:], ARRAYS[3:]) >= IN_MEMORY).all() and len(said) == 1
        np.testing.assert_array_equal(arrays.rows[arrays.positions(KEYS)], ARRAYS)


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_who_waited_for_a_folder_that_is_deleted_meanwhile_takes_the_one_that_is_there(is_made_anew, cache):
    folder, result = cache / "pixels" / "old", []
    waiting = threading.Thread(target=lambda: (add_all(folder), result.append(found(folder))))
    with exclusive_lock(folder):
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive()
        shutil.rmtree(folder)
        if is_made_anew:
            with ArrayCache(folder, SHAPE, np.float32) as arrays:
                arrays.add(KEYS[:2], ARRAYS[:2])
    waiting.join(30)
    assert result == [(KEYS, [])] and (folder / "records.bin").stat().st_size == 6 * ARRAYS[0].nbytes


def test_who_waited_to_delete_a_folder_leaves_the_one_that_took_its_place_whole(cache):
    folder, result = cache / "pixels" / "old", []
    waiting = threading.Thread(target=lambda: result.append(cache_module._delete(folder)))
    with exclusive_lock(folder):
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive()
        shutil.rmtree(folder)
        arrays = ArrayCache(folder, SHAPE, np.float32)
        arrays.add(KEYS, ARRAYS)
    waiting.join(30)
    arrays.close()
    assert result == [False] and found(folder) == (KEYS, [])


USING_AND_CLEARING = """
import sys
import numpy as np
from pathlib import Path
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.cache import Cache

cache, first = Path(sys.argv[1]), int(sys.argv[2])
for turn in range(40):
    numbers = np.arange(first, first + 10)
    with ArrayCache(cache / "kind" / "name", (64,), np.int64) as arrays:
        positions = arrays.positions([str(number) for number in numbers])
        arrays.add([str(number) for number in numbers], [np.full(64, number) for number in numbers])
        positions = arrays.positions([str(number) for number in numbers])
        assert (positions >= 0).all(), positions
        rows = arrays.rows
    assert (rows[positions] == numbers[:, None]).all()
    del rows
    Cache(cache).clear("all")
"""


def test_processes_that_use_and_clear_the_same_entry_at_once_get_what_they_kept(tmp_path):
    command = [sys.executable, "-c", USING_AND_CLEARING, tmp_path / "cache"]
    processes = [subprocess.Popen([*command, str(first)], cwd=ROOT, stdout=subprocess.PIPE) for first in (0, 5, 10)]
    assert [process.communicate(timeout=100)[0] for process in processes] == [b""] * 3, "nothing was damaged or refused"
    assert [process.returncode for process in processes] == [0, 0, 0] and names(tmp_path / "cache") == []


@pytest.mark.parametrize("number", [1, 2, 3])
def test_killed_while_it_deletes_leaves_a_entry_that_is_made_good(number, cache, monkeypatch):
    original, calls = Path.unlink, []

    def killing(path, **options):
        calls.append(path)
        if len(calls) == number:
            raise KeyboardInterrupt
        original(path, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", killing)
        Cache(cache).clear("new")
    here, said = found(cache / "features" / "new")
    assert here == (KEYS[:3] if number == 1 else [])
    add_all(cache / "features" / "new")
    assert found(cache / "features" / "new") == (KEYS, [])
