"""The command that lists and clears the cache."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.support import ROOT
from transfer_learning import cache
from transfer_learning.cli.formatting import size
from transfer_learning.cli.parser import run_main
from transfer_learning.errors import ExitCode
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.cache import Cache

ENTRIES = {"features/abc": {"backbone": "resnet18", "image_size": 160}, "pixels/160": {}, "pixels/224": {"size": 224}}


@pytest.fixture
def folder(tmp_path):
    """A cache of three entries of 5, 10 and 15 MB, the first one used last."""
    for number, (name, facts) in enumerate(ENTRIES.items(), 1):
        with ArrayCache(tmp_path / "cache" / name, (5000, 250), np.float32, facts) as arrays:
            arrays.add([str(key) for key in range(number)], [np.zeros((5000, 250), np.float32)] * number)
        os.utime(tmp_path / "cache" / name / "records.bin", (1e9 / number, 1e9 / number))
    return tmp_path / "cache"


@pytest.fixture
def shown(capsys):
    """Calls the command; returns its exit code, its lines and its error."""

    def call(*flags):
        code = run_main(cache.main, [str(flag) for flag in flags])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return call


def left(folder):
    return [entry.name for entry in Cache(folder).entries()]


def test_the_table_lists_all_entries_and_a_total(folder, shown):
    with ArrayCache(folder / "pixels" / "160", (5000, 250), np.float32):
        code, lines, error = shown("--cache-dir", folder)
    assert code == ExitCode.DONE and error == "" and len(lines) == 5
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert cells[0] == ["entry", "contents", "records", "size", "last used", "in use"]
    assert cells[1][:4] == ["features/abc", "backbone resnet18, image size 160", "1", "5.0 MB"]
    assert cells[2][:3] == ["pixels/160", "2", "10 MB"] and cells[3][:4] == ["pixels/224", "size 224", "3", "15 MB"]
    assert [row[-1] for row in cells[1:4]] == ["no", "yes", "no"] and cells[1][4].startswith("2001-09-0")
    assert cells[4] == ["total", "6", "30 MB"]
    sizes = zip(lines[1:], ("5.0 MB", "10 MB", "15 MB", "30 MB"), strict=True)
    assert len({line.index(number) + len(number) for line, number in sizes}) == 1, "aligned to the right"


def test_names_are_printed_as_they_are(folder, shown):
    (folder / "pixels" / "224").rename(folder / "pixels" / "[red]224")
    assert "pixels/[red]224" in shown("--cache-dir", folder)[1][3]


def test_the_name_that_clear_takes_is_in_one_line(folder, shown):
    name = "features/" + "0123456789abcdef" * 2
    (folder / "features" / "abc").rename(folder / name)
    assert name in "\n".join(shown("--cache-dir", folder)[1])


def test_an_empty_and_a_missing_cache_are_empty(tmp_path, shown):
    for flags in ([], ["--clear", "all"], ["--clear", "pixels"], ["--keep-gb", "0"]):
        for folder in (tmp_path, tmp_path / "no such"):
            assert shown("--cache-dir", folder, *flags) == (0, [f"The cache {folder} is empty."], "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("chosen", "deleted", "freed"),
    [
        ("all", ["features/abc", "pixels/160", "pixels/224"], "30 MB"),
        ("pixels", ["pixels/160", "pixels/224"], "25 MB"),
        ("abc", ["features/abc"], "5.0 MB"),
        ("pixels/224", ["pixels/224"], "15 MB"),
    ],
)
def test_clear_deletes_what_is_chosen_and_prints_it(chosen, deleted, freed, folder, shown):
    code, lines, error = shown("--cache-dir", folder, "--clear", chosen)
    assert code == 0 and error == "" and left(folder) == [name for name in ENTRIES if name not in deleted]
    assert [line.split(" (")[0] for line in lines[:-1]] == [f"Deleted {name}" for name in deleted]
    assert lines[-1] == f"Freed {freed}."


def test_entries_in_use_stay_and_are_printed(folder, shown):
    with ArrayCache(folder / "pixels" / "160", (5000, 250), np.float32):
        code, lines, error = shown("--cache-dir", folder, "--clear", "pixels")
        assert code == 0 and left(folder) == ["features/abc", "pixels/160"]
        assert lines[0].startswith("Deleted pixels/224 (size 224, 16 MB") and lines[2] == "Freed 15 MB."
        assert lines[1].startswith("Left pixels/160 (") and "in use by a running process" in lines[1]
        code, lines, error = shown("--cache-dir", folder, "--keep-gb", "0.001")
        assert code == 0 and lines[0].startswith(f"Deleted from {folder}") and "features/abc" in lines[0]
        assert lines[1] == f"{folder} holds 10 MB; other entries are in use, read-only or of another user."


@pytest.mark.parametrize(
    ("keep", "deleted"),
    [
        ("1", []),
        ("0.0301", []),
        ("0.0299", ["pixels/224"]),
        ("0.006", ["pixels/224", "pixels/160"]),
        ("0", list(ENTRIES)),
    ],
)
def test_keep_gb_deletes_the_least_recently_used(keep, deleted, folder, shown):
    code, lines, error = shown("--cache-dir", folder, "--keep-gb", keep)
    assert code == 0 and left(folder) == [name for name in ENTRIES if name not in deleted]
    assert len(lines) == bool(deleted) + 1 and all(name in lines[0] for name in deleted)
    sizes = {"features/abc": 5.0, "pixels/160": 10.0, "pixels/224": 15.0}
    assert lines[-1] == f"{folder} holds {size(1e6 * sum(sizes[name] for name in left(folder)))}."


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--clear", "pixel"], "Did you mean pixels or"),
        (["--clear", "all", "--keep-gb", "1"], "not allowed with"),
        (["--keep-gb", "-1"], "--keep-gb -1 is not a size"),
        (["--keep-gb", "nan"], "--keep-gb nan is not a size"),
        (["--keep-gb", "many"], "many"),
        (["--clear"], "expected one argument"),
        (["everything"], "everything"),
    ],
)
def test_a_mistake_clears_nothing_and_is_one_line(flags, words, folder, shown):
    code, lines, error = shown("--cache-dir", folder, *flags)
    assert code == ExitCode.USER_ERROR and lines == [] and left(folder) == list(ENTRIES)
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_a_cache_that_is_a_file_is_named(tmp_path, shown):
    (tmp_path / "file").write_text("mine")
    code, lines, error = shown("--cache-dir", tmp_path / "file", "--clear", "all")
    assert code == ExitCode.USER_ERROR and str(tmp_path / "file") in error and (tmp_path / "file").read_text() == "mine"


def test_as_a_command_it_answers_without_tensorflow(folder):
    command = [sys.executable, *"-X importtime -m transfer_learning.cache --clear 224 --cache-dir".split(), folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("Freed 15 MB.\n") and left(folder) == list(ENTRIES)[:2]
    assert not re.search(r"\| +(tensorflow|keras)$", done.stderr, re.MULTILINE)
