"""Lets the n-th system call that changes a file fail, or kills the process there.

    python -m tests.support.fault_injection FOLDER --saves 5

saves checkpoints again and again, each time in a process of its own that is killed with SIGKILL ahead of, or right
behind, another one of these calls, until every call was one; it prints how often, and what was found afterwards.
"""

import argparse
import builtins
import io
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.support.logs import log_messages
from transfer_learning.training import checkpoint

CALLS = ("open", "mkdir", "rename", "replace", "unlink", "remove", "rmdir", "fsync")  # of the module os


@contextmanager
def around_calls(act: Callable[[int, bool], None]) -> Iterator[list[str]]:
    """Calls `act(number, is_done)` ahead of and behind each call that opens, writes, syncs, renames or removes.

    Yields the names of the calls so far. Writes count when Python hands them to the system, not when it buffers them.
    """
    names: list[str] = []

    def counted(name, call):
        def counting(*arguments, **options):
            names.append(name)
            number = len(names)
            act(number, False)
            try:
                return call(*arguments, **options)
            finally:  # also behind a call that fails, such as mkdir of what is there
                act(number, True)

        return counting

    class CountedFile(io.FileIO):
        write = counted("write", io.FileIO.write)

    original_open = io.open

    def open_counted(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **options):
        if not set(mode) & set("wax+") or isinstance(file, int):
            return original_open(file, mode, buffering, encoding, errors, newline, **options)
        raw = counted("open", CountedFile)(file, mode.replace("b", "").replace("t", ""))
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    originals = {name: getattr(os, name) for name in CALLS}
    try:
        for name, call in originals.items():
            setattr(os, name, counted(name, call))
        builtins.open = io.open = open_counted
        yield names
    finally:
        builtins.open = io.open = original_open
        for name, call in originals.items():
            setattr(os, name, call)


def state_of(number: int) -> tuple[checkpoint.Arrays, dict]:
    """What the save of that number saves."""
    values = np.random.default_rng(number)
    arrays = {"weights": [values.normal(size=(40, 30)), values.normal(size=30)], "seeds": [np.array([number, 7])]}
    return arrays, {"number": number}


def number_of(loaded: tuple[checkpoint.Arrays, dict] | None) -> int:
    """Which save a checkpoint comes from, 0 for none; AssertionError where it holds other bits than were saved."""
    if loaded is None:
        return 0
    arrays, values = loaded
    expected, _ = state_of(values["number"])
    assert arrays.keys() == expected.keys()
    for group in expected:
        assert [array.tobytes() for array in arrays[group]] == [array.tobytes() for array in expected[group]]
    return values["number"]


def kill_in_saves(folder: Path, num_saves: int) -> Counter:
    """Kills a process ahead of and behind each call of each of so many saves; counts the kills and what was left."""
    found: Counter = Counter()
    for number in range(1, num_saves + 1):
        for at in range(1, 1000):
            for when in (False, True):
                shutil.rmtree(folder, ignore_errors=True)
                for earlier in range(1, number):
                    checkpoint.save(folder, *state_of(earlier))
                if not _is_killed(folder, number, at, when):
                    break
                messages = log_messages()
                loaded = number_of(checkpoint.load(folder))
                assert loaded in (number - 1, number) and not messages, (number, at, when, loaded, messages)
                found["kills"] += 1
                found["newest" if loaded == number else "older"] += 1
                checkpoint.save(folder, *state_of(number + 1))
                assert number_of(checkpoint.load(folder)) == number + 1, "the next save does not go on"
                assert not list(folder.glob("*.partial")), "a kill's leavings stay for ever"
            else:
                continue
            break  # there is no such call: the save was done
    return found


def _is_killed(folder: Path, number: int, at: int, when: bool) -> bool:
    process = os.fork()
    if process == 0:

        def kill(call, is_done):
            if (call, is_done) == (at, when):
                os.kill(os.getpid(), signal.SIGKILL)

        with around_calls(kill):
            checkpoint.save(folder, *state_of(number))
        os._exit(0)
    status = os.waitpid(process, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="is deleted")
    parser.add_argument("--saves", type=int, default=5)
    flags = parser.parse_args()
    print(json.dumps(kill_in_saves(flags.folder, flags.saves)))


if __name__ == "__main__":
    main()
