"""The verb that shows and clears what is kept from run to run."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.support import ROOT
from transfer_learning import cache
from transfer_learning.cli.parser import run_main
from transfer_learning.errors import ExitCode
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.cache import list_entries

POOLS = {"features/abc": "features of resnet18 at 160 pixels", "pixels/160": "", "pixels/224": "images"}


@pytest.fixture
def folder(tmp_path):
    """A cache of three pools of 5, 10 and 15 MB, the first one used last."""
    for number, (name, about) in enumerate(POOLS.items(), 1):
        with ArrayCache(tmp_path / "cache" / name, (5000, 250), np.float32, about) as arrays:
            arrays.add([str(key) for key in range(number)], [np.zeros((5000, 250), np.float32)] * number)
        os.utime(tmp_path / "cache" / name / "records.bin", (1e9 / number, 1e9 / number))
    return tmp_path / "cache"


@pytest.fixture
def shown(capsys):
    """Calls the verb; returns its exit code, its lines and its error."""

    def call(*flags):
        code = run_main(cache.main, [str(flag) for flag in flags])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return call


def left(folder):
    return [pool.name for pool in list_entries(folder)]


def test_a_table_of_what_is_kept(folder, shown):
    with ArrayCache(folder / "pixels" / "160", (5000, 250), np.float32):
        code, lines, error = shown("--cache-dir", folder)
    assert code == ExitCode.DONE and error == "" and len(lines) == 6
    cells = [re.split(r"\s{2,}", line) for line in lines[:5]]
    assert cells[0] == ["kind", "name", "holds", "records", "MB", "last used", "in use"]
    assert cells[1][:5] == ["features", "abc", "features of resnet18 at 160 pixels", "1", "5.0"]
    assert cells[2][:5] == ["pixels", "160", "-", "2", "10.0"] and cells[3][:5] == [
        "pixels",
        "224",
        "images",
        "3",
        "15.0",
    ]
    assert [row[6] for row in cells[1:4]] == ["no", "yes", "no"] and cells[1][5].startswith("2001-09-0")
    assert cells[4] == ["total", "6", "30.0"]
    for heading in ("name", "holds", "last used", "in use"):
        column = lines[0].index(heading)
        assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines[:4])
    sizes = zip(lines[1:5], ("5.0", "10.0", "15.0", "30.0"), strict=True)
    assert len({line.index(size) + len(size) for line, size in sizes}) == 1, "aligned to the right"
    assert "--clear all" in lines[5] and "--keep-gb" in lines[5]


def test_an_empty_and_a_missing_cache_have_their_own_sentence(tmp_path, shown):
    for flags in ([], ["--clear", "all"], ["--clear", "pixels"], ["--keep-gb", "0"]):
        assert shown("--cache-dir", tmp_path, *flags) == (0, [f"Nothing is kept in {tmp_path}."], "")
        code, lines, error = shown("--cache-dir", tmp_path / "no such", *flags)
        assert code == 0 and len(lines) == 1 and lines[0].startswith(f"There is no folder {tmp_path / 'no such'}, so")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("chosen", "deleted", "freed"),
    [
        ("all", ["features/abc", "pixels/160", "pixels/224"], "30.0"),
        ("pixels", ["pixels/160", "pixels/224"], "25.0"),
        ("abc", ["features/abc"], "5.0"),
        ("pixels/224", ["pixels/224"], "15.0"),
    ],
)
def test_what_is_chosen_is_cleared_and_told(chosen, deleted, freed, folder, shown):
    code, lines, error = shown("--cache-dir", folder, "--clear", chosen)
    assert code == 0 and error == "" and left(folder) == [name for name in POOLS if name not in deleted]
    assert [line.split(" (")[0] for line in lines[:-1]] == [f"Deleted {name}" for name in deleted]
    assert lines[-1] == f"{freed} MB freed."


def test_what_a_process_uses_is_left_and_told(folder, shown):
    with ArrayCache(folder / "pixels" / "160", (5000, 250), np.float32):
        code, lines, error = shown("--cache-dir", folder, "--clear", "pixels")
        assert code == 0 and left(folder) == ["features/abc", "pixels/160"]
        assert lines[0].startswith("Deleted pixels/224 (images, 16 MB") and lines[2] == "15.0 MB freed."
        assert lines[1].startswith("Left pixels/160 (") and "a running process uses it" in lines[1]
        code, lines, error = shown("--cache-dir", folder, "--keep-gb", "0.001")
        assert code == 0 and lines[0].startswith("Deleted features/abc") and len(lines) == 2
        assert lines[1].startswith(f"{folder} holds 10.0 MB, more than that: what is left is in use")


@pytest.mark.parametrize(
    ("keep", "deleted"),
    [
        ("1", []),
        ("0.0301", []),
        ("0.0299", ["pixels/224"]),
        ("0.006", ["pixels/224", "pixels/160"]),
        ("0", list(POOLS)),
    ],
)
def test_what_was_not_used_for_longest_goes_until_the_rest_fits(keep, deleted, folder, shown):
    code, lines, error = shown("--cache-dir", folder, "--keep-gb", keep)
    assert code == 0 and left(folder) == [name for name in POOLS if name not in deleted]
    assert len(lines) == bool(deleted) + 1 and all(name in lines[0] for name in deleted)
    sizes = {"features/abc": 5.0, "pixels/160": 10.0, "pixels/224": 15.0}
    assert lines[-1] == f"{folder} holds {sum(sizes[name] for name in left(folder)):.1f} MB."


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--clear", "pixel"], "Did you mean pixels or"),
        (["--clear", "all", "--keep-gb", "1"], "not allowed with"),
        (["--keep-gb", "-1"], "--keep-gb -1 is no size"),
        (["--keep-gb", "nan"], "--keep-gb nan is no size"),
        (["--keep-gb", "many"], "many"),
        (["--clear"], "expected one argument"),
        (["everything"], "everything"),
    ],
)
def test_a_mistake_clears_nothing_and_is_one_line(flags, words, folder, shown):
    code, lines, error = shown("--cache-dir", folder, *flags)
    assert code == ExitCode.USER_ERROR and lines == [] and left(folder) == list(POOLS)
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_a_cache_that_is_a_file_is_named(tmp_path, shown):
    (tmp_path / "file").write_text("mine")
    code, lines, error = shown("--cache-dir", tmp_path / "file", "--clear", "all")
    assert code == ExitCode.USER_ERROR and str(tmp_path / "file") in error and (tmp_path / "file").read_text() == "mine"


def test_as_a_command_it_answers_without_tensorflow(folder):
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "transfer_learning.cache",
        "--cache-dir",
        folder,
        "--clear",
        "224",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("15.0 MB freed.\n") and left(folder) == list(POOLS)[:2]
    assert not re.search(r"\| +(tensorflow|keras)$", done.stderr, re.MULTILINE)
