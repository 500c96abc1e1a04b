"""Runs the cases, each measurement in a process of its own, and prepares the inputs that they need."""

import argparse
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, FIGURES, GROWTH, Case, Entry
from transfer_learning.experiments.measurements import MeasurementFailed, number, run_child
from transfer_learning.machine.resources import usable_cores
from transfer_learning.storage.files import write_json

logger = logging.getLogger("transfer_learning.benchmarks")  # the console shows the messages of the package

FINE_TUNE_SHARE = 4  # job fine_tune gets a quarter of the images


def measure_cases(flags: argparse.Namespace, document: dict[str, Any]) -> None:
    """Measures what is not in the document yet, and writes the document to ``--out`` after each measurement."""
    for asset in assets(flags).values():
        if asset.of_this_version:
            shutil.rmtree(asset.path, ignore_errors=True)
    for case in (case for case in CASES if not flags.jobs or case.job in flags.jobs):
        done = document["measurements"].setdefault(case.title, {})
        failed = set()
        for repeat, entry in abba(case.entries, flags.repeats):
            if entry in failed or len(done.get(entry.name, [])) > repeat:
                continue
            try:
                figures = measure(case, entry, flags)
            except MeasurementFailed as failure:
                failed.add(entry)
                document["left_out"][f"{case.title}: {entry.name}"] = str(failure)
                logger.warning(f"{case.title} · {entry.name} is left out: {failure}")
            else:
                done.setdefault(entry.name, []).append(figures)
                logger.info(
                    f"{case.title} · {entry.name} · {repeat + 1} of {flags.repeats}: {FIGURES[case.figure].title} "
                    f"{number(figures[case.figure])}; process {number(figures['wall_seconds'])} s"
                )
            write_json(flags.out, document)
    write_json(flags.out, document)


def abba(entries: Sequence[Entry], repeats: int) -> Iterator[tuple[int, Entry]]:
    """Every entry once per round, every second round in reverse order: A B, B A, A B."""
    for repeat in range(repeats):
        for entry in entries if repeat % 2 == 0 else reversed(entries):
            yield repeat, entry


def measure(case: Case, entry: Entry, flags: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of one measurement, made in an empty folder of its own.

    Raises:
        MeasurementFailed: a package is not installed, or the program ended with an error.
    """
    if missing := missing_packages(flags.peers_python, entry.packages):
        raise MeasurementFailed(
            f"{', '.join(missing)} not found by --peers-python; benchmarks/requirements.txt says how to install"
        )
    needed = prepared((*case.needs, *entry.needs), flags)
    scratch = flags.work_dir / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    options = {
        "--scratch": scratch,
        "--seconds": flags.seconds,
        "--threads": usable_cores(),
        "--epochs": min(flags.epochs, case.max_epochs),
    }
    arguments = [entry.job, *(str(word) for option in options.items() for word in option), *needed, *entry.flags]
    python = flags.peers_python if entry.packages else sys.executable
    try:
        figures = run_child(python, f"benchmarks.{entry.module}", arguments, {"TF_ENABLE_ONEDNN_OPTS": entry.onednn})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if case.figure not in figures:
        raise MeasurementFailed(f"it printed no {case.figure}")
    return figures


def missing_packages(python: str, packages: Sequence[str]) -> list[str]:
    """Those of `packages` that the interpreter `python` cannot find; nothing is imported."""
    program = (
        "import importlib.util as u, json, sys; "
        "print(json.dumps([name for name in sys.argv[1:] if u.find_spec(name) is None]))"
    )
    return json.loads(subprocess.check_output([python, "-c", program, *packages], text=True)) if packages else []


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


@dataclass(frozen=True)
class Asset:
    """A file or folder in --work-dir that jobs need and that is made once."""

    flag: str  # through which a job gets its path
    path: Path
    module: str  # the program that makes it
    arguments: tuple[str, ...]
    of_this_version: bool = False  # made again by every call of the benchmark


def assets(flags: argparse.Namespace) -> dict[str, Asset]:
    """Everything that a job may need, by the names that `cases` use."""
    folder, fewer, few = flags.work_dir, max(20, flags.images // FINE_TUNE_SHARE), flags.many_images // GROWTH
    photos, cache = folder / f"photos-{flags.images}", folder / f"cache-{flags.images}"

    def images(kind: str, count: int, *more: str) -> Asset:
        return Asset("--images", folder / f"{kind}-{count}", "made_images", (kind, "--number", str(count), *more))

    first_run = ("frozen", "--images", str(photos), "--epochs", "1", "--scratch", str(folder / "scratch"))
    random_weights = ("random_weights", "--network", "resnet50")
    return {
        "images": images("photos", flags.images),
        "fewer_images": images("photos", fewer),
        "large_images": images("large", flags.large_images),
        "few_small_images": images("small", few, "--size", "96"),
        "many_small_images": images("small", flags.many_images, "--size", "96"),
        "weights": Asset("--weights", folder / "resnet50.weights.h5", "ours", random_weights),
        "onnx": Asset("--onnx", folder / "onnx", "pytorch", ("export",)),
        "cache": Asset("--cache", cache, "ours", (*first_run, "--cache", str(cache)), of_this_version=True),
        "drawn": Asset("--data", folder / "drawn", "ours", ("drawn",)),
    }


def prepared(needs: Sequence[str], flags: argparse.Namespace) -> list[str]:
    """Makes the assets that do not exist yet, and returns the flags that name all of them.

    Raises:
        MeasurementFailed: one cannot be made.
    """
    arguments: list[str] = []
    for asset in (assets(flags)[need] for need in needs):
        arguments += [asset.flag, str(asset.path)]
        if asset.path.exists():
            continue
        logger.info(f"Making {asset.path}, once.")
        flags.work_dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(flags.work_dir / "scratch", ignore_errors=True)
        python = flags.peers_python if asset.module == "pytorch" else sys.executable
        arguments_of_it = [*asset.arguments, "--to", str(asset.path)]
        run_child(python, f"benchmarks.{asset.module}", arguments_of_it, {"TF_ENABLE_ONEDNN_OPTS": None})
    return arguments
