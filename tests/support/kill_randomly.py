"""Kills real runs with SIGKILL at random moments, resumes them, and compares every bit of what they end with.

    python -m tests.support.kill_randomly FOLDER --kills 200

Each session is the command `run` in a process of its own, forked from one that has only imported the program. It saves
after every train step. Between two sessions the cache is left alone, deleted, cut in half or has a bit flipped. A finished
run has to have the weights, history and predictions of one that was never stopped; then the next begins. Every third kill
waits for a save to begin, and every sixth for the end of the frozen phase; all others come at any moment.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from tests.support import shortened
from tests.support.photos import SIZE, draw_photos
from tests.test_kills import flags, results
from transfer_learning.cli.parser import run_main
from transfer_learning.training import checkpoint

NUM_EPOCHS = 3  # of a phase
CACHES = ("left", "left", "deleted", "cut", "flipped bit")


def session(
    arguments: list, log: Path, seconds: float | None = None, awaited: Callable[[], bool] = lambda: True
) -> bool:
    """Runs the command and kills it so many seconds after what is awaited; returns whether it came to its end."""
    process = os.fork()
    if process == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        run = importlib.import_module("transfer_learning.run")
        os._exit(run_main(run.main, list(map(str, arguments))))
    if seconds is not None:
        deadline = None
        while deadline is None or time.monotonic() < deadline:
            if deadline is None and awaited():
                deadline = time.monotonic() + seconds
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                assert status == 0, log.read_text()[-3000:]
                return True
            time.sleep(0.001)
        os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    assert status in (0, signal.SIGKILL), log.read_text()[-3000:]
    return status == 0


def change_cache(cache: Path, how: str, chance: random.Random) -> None:
    files = sorted(path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 0)
    if how == "left" or not files:
        return
    if how == "deleted":
        shutil.rmtree(cache)
        return
    path = chance.choice(files)
    if how == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        with open(path, "r+b") as file:
            place = chance.randrange(path.stat().st_size)
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << chance.randrange(8)]))


def is_saving(run_dir: Path) -> bool:
    return any(run_dir.glob("checkpoint/*.partial"))


def has_ended_frozen_phase(run_dir: Path) -> bool:
    history = run_dir / "history.csv"
    return history.exists() and history.read_text().count("\n") > NUM_EPOCHS


def where(run_dir: Path) -> str:
    """What a kill interrupted, as far as the files show."""
    if is_saving(run_dir):
        return "inside a save"
    saved = [path for path in run_dir.glob("checkpoint/*") if path.name.isdigit()]
    if not saved:
        return "before training"
    state = checkpoint.load(run_dir / "checkpoint")[1]["state"]
    if state["phase"] == 0 and state["epoch"] == NUM_EPOCHS:
        return "change of phase"
    return ("frozen phase", "fine-tune phase", "after training")[state["phase"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new one, for the runs")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shortened.without_files().__enter__()  # TensorFlow, once; nothing is computed in this process
    chance, log = random.Random(given.seed), given.folder / "log.txt"
    photos = draw_photos(given.folder / "photos")
    cache = given.folder / "cache"
    weights = given.folder / "small_cnn.weights.h5"
    if (maker := os.fork()) == 0:
        from transfer_learning.models.backbones import build_backbone

        build_backbone("small_cnn", SIZE, "none", seed=7).save_weights(weights)
        os._exit(0)
    os.waitpid(maker, 0)
    config = SimpleNamespace(
        dataset=photos,
        backbone="small_cnn",
        weights=weights,
        image_size=SIZE,
        cache_dir=given.folder / "unbroken-cache",
    )
    started = time.monotonic()
    assert session([*flags(config), "--run-dir", given.folder / "unbroken"], log)
    whole, expected = time.monotonic() - started, results(given.folder / "unbroken")
    config.cache_dir = cache

    num_kills, num_runs, places, caches = 0, 0, Counter(), Counter()
    while num_kills < given.kills:
        run_dir = given.folder / f"run-{num_runs}"
        while True:
            is_begun = (run_dir / "config.json").exists()
            arguments = ["--resume", run_dir] if is_begun else [*flags(config), "--run-dir", run_dir]
            is_last = num_kills >= given.kills
            if is_last:
                moment = (None,)
            elif num_kills % 6 == 0 and not has_ended_frozen_phase(run_dir):
                moment = (chance.uniform(0, 0.1), partial(has_ended_frozen_phase, run_dir))
            elif num_kills % 3 == 1:
                moment = (chance.uniform(0, 0.005), partial(is_saving, run_dir))
            else:
                moment = (chance.uniform(0, whole),)
            if session(arguments, log, *moment):
                break
            num_kills += 1
            places[where(run_dir)] += 1
            how = chance.choice(CACHES)
            change_cache(cache, how, chance)
            caches[how] += 1
        assert results(run_dir) == expected, f"{run_dir} ended with other bits"
        num_runs += 1
        shutil.rmtree(run_dir)
    print(json.dumps({"kills": num_kills, "runs": num_runs, "killed": places, "cache": caches}))


if __name__ == "__main__":
    main()
