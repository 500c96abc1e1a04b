"""Runs the real `run` command and kills its process with SIGKILL at a chosen call of a chosen function.

    python -m tests.support.kill_at MODULE:FUNCTION before|after|hanging COUNT [arguments of run]

No clean-up of any kind runs: this is what a power cut, or the kernel's out-of-memory killer, leaves behind. `hanging`
sends SIGTERM instead, to a call that does not return.
"""

import importlib
import os
import signal
import sys
import time

from transfer_learning import run
from transfer_learning.cli.parser import run_main


def kill_at(target: str, when: str, count: int) -> None:
    module_name, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module_name)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count and when == "hanging":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(3600)
        if calls == count and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    if sys.argv[2] == "hanging":
        importlib.import_module("transfer_learning.training.stopping").Watchdog.__init__.__defaults__ = (
            1.0,
        )  # seconds
    kill_at(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.exit(run_main(run.main, sys.argv[4:]))
