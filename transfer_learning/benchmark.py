"""Measure this machine, or this program against others: ``python -m transfer_learning.benchmark --devices | --peers``.

`--devices` trains and extracts on the processor and on each GPU, one after the other. `--peers` lets other tools do the
same jobs as we do; the programs are in `peers/`, each says in its first lines what it does and whose documentation it
follows.

Each measurement is a process of its own. The order of the sides is turned round in every second round (A B B A A B ...),
so that a machine that grows slower harms both alike. Every result is written at once: the same command goes on where a
stopped one ended, and a larger --repeats adds to what is there.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.errors import UserError, did_you_mean
from transfer_learning.peers.cases import CASES, FIGURES, GROWTH, JOBS, Case, Side
from transfer_learning.peers.tables import device_table, heading, number, peer_tables
from transfer_learning.recipes.known import RECIPES
from transfer_learning.storage.files import read_json, write_json, write_text

ROOT = Path(__file__).parent.parent
SHARE_FINE_TUNED = 4  # job fine_tune has a quarter of the images
EXAMPLES = """examples:
  python -m transfer_learning.benchmark --devices --dataset pharma
  python -m transfer_learning.benchmark --peers frozen extraction --peers-python peers/bin/python"""


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    document = begin(flags, shlex.join(["python", "-m", "transfer_learning.benchmark", *words]))
    if flags.devices:
        measure_devices(flags, document)
    else:
        measure_peers(flags, document)
    tables = device_table(document) if flags.devices else peer_tables(document, CASES)
    text = f"{heading(document)}\n\n{tables}\n"
    write_text(flags.out.with_suffix(".md"), text)
    print(f"\n{text}\nFigures: {flags.out}; these tables: {flags.out.with_suffix('.md')}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("benchmark", description=__doc__, epilog=EXAMPLES)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--devices", action="store_true", help="the processor against each GPU")
    what.add_argument("--peers", nargs="*", metavar="JOB", help=f"we against others, in these jobs: {', '.join(JOBS)}")
    parser.add_argument("--dataset", default="drawn_pills", metavar="NAME", help="recipe that --devices measures")
    parser.add_argument(
        "--peers-python",
        default=sys.executable,
        metavar="PATH",
        help="Python in which requirements-peers.txt is installed (default: this one)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path("data/benchmark"),
        metavar="DIR",
        help="images and other things made once (default: data/benchmark)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON with every figure (default: in runs/)")
    for name, default, what in (
        ("repeats", 3, "measurements of each side"),
        ("images", 1000, "images of 500 x 375 pixels"),
        ("large-images", 100, "images of 12 megapixels"),
        ("many-images", 20000, "images of the larger side of job memory"),
        ("epochs", 10, "epochs of a training; 4 at most in fine_tune"),
        ("seconds", 20, "length of the measurement of a rate"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})")
    flags = parser.parse_args(arguments)
    for name in flags.peers or ():
        if name not in JOBS:
            raise UserError(f"There is no job {name!r}.{did_you_mean(name, JOBS)}")
    if flags.dataset not in RECIPES:
        raise UserError(f"There is no recipe {flags.dataset!r}.{did_you_mean(flags.dataset, RECIPES)}")
    for name in ("repeats", "epochs", "seconds"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} {getattr(flags, name)} measures nothing; give 1 or more.")
    for name, least in (("images", 20), ("large_images", 10), ("many_images", 20 * GROWTH)):  # one a class and split
        if getattr(flags, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(flags, name)} is too few; give {least} or more.")
    flags.out = flags.out or Path("runs") / f"benchmark-{'devices' if flags.devices else 'peers'}.json"
    flags.work_dir = flags.work_dir.absolute()
    if not flags.devices and shutil.which(flags.peers_python) is None:
        raise UserError(f"--peers-python {flags.peers_python} is no program; give the python of a virtual environment.")
    return flags


def begin(flags: argparse.Namespace, command: str) -> dict[str, Any]:
    """What the file --out holds already, or a new document.

    Raises:
        UserError: it was measured elsewhere, or with other settings, so nothing may be added to it.
    """
    names = ("dataset", "seconds") if flags.devices else ("images", "large_images", "many_images", "epochs", "seconds")
    settings = {name: getattr(flags, name) for name in names}
    document = {"kind": "devices" if flags.devices else "peers", "settings": settings, "machine": machine()}
    if flags.out.exists():
        known = read_json(flags.out)
        for part in document:
            if known.get(part) != document[part]:
                raise UserError(
                    f"{flags.out} was measured with {part} {json.dumps(known.get(part))}, not {json.dumps(document[part])}; "
                    "name another --out."
                )
        document = known
    versions = {"python": platform.python_version()} | versions_of(sys.executable, ("tensorflow", "keras", "pillow"))
    if not flags.devices:
        packages = ("torch", "torchvision", "onnxruntime", "openvino", "fastai", "ultralytics")
        versions |= versions_of(flags.peers_python, packages)
    session = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "command": command, "versions": versions}
    document.setdefault("sessions", []).append(session)
    document.setdefault("measurements", {})
    document["left_out"] = {}
    return document


def machine() -> dict[str, Any]:
    """The processor, and as much of it as this process may use."""
    name, flags = platform.processor() or platform.machine(), ""
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        values = dict((part.strip() for part in line.split(":", 1)) for line in lines if ":" in line)
        name, flags = values.get("model name", name), values.get("flags", "")
    return {
        "processor": name,
        "cores": num_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        # What TensorFlow decides by, where TF_ENABLE_ONEDNN_OPTS is not set.
        "onednn_by_itself": "avx512_vnni" in flags.split(),
    }


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------------------------------
# One measurement


class Failed(Exception):
    """A side ended with an error; the message is the last line of its standard error."""


def run_child(
    python: str, module: str, arguments: Sequence[str], environment: Mapping[str, str | None]
) -> dict[str, Any]:
    """Runs a program of peers/ to its end, and returns its figures and those of its process.

    `wall_seconds`, `cpu_seconds` (user and system, with all that it started) and `peak_mb` (of the largest of its
    processes). A process begins with the peak of the one that starts it, so this file imports nothing large.
    """
    wanted = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])} | environment
    all_variables = {**os.environ, **wanted}
    variables = {name: value for name, value in all_variables.items() if value is not None}
    command = [python, "-m", f"transfer_learning.peers.{module}", *arguments]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as problems:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=problems, env=variables)
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)  # else Popen takes it for a process that still runs
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - started
        lines = lines_of(output)
        if process.returncode != 0:
            raise Failed((lines_of(problems) or lines or [f"it ended with code {process.returncode}"])[-1])
        try:
            figures = json.loads(lines[-1])
        except (IndexError, ValueError):
            raise Failed("it printed no figures") from None
    return figures | {
        "wall_seconds": wall,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6,
    }


def lines_of(file) -> list[str]:
    file.seek(0)
    return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def versions_of(python: str, packages: Sequence[str]) -> dict[str, str]:
    """The versions of those packages that are installed for `python`."""
    program = (
        "import importlib.metadata as m, json, sys; all = {d.name.lower(): d.version for d in m.distributions()}; "
        "print(json.dumps({name: all[name] for name in sys.argv[1:] if name in all}))"
    )
    return json.loads(subprocess.check_output([python, "-c", program, *packages], text=True))


def missing_packages(python: str, packages: Sequence[str]) -> list[str]:
    """Those that `python` cannot find; nothing is imported."""
    program = (
        "import importlib.util as u, json, sys; "
        "print(json.dumps([name for name in sys.argv[1:] if u.find_spec(name) is None]))"
    )
    return json.loads(subprocess.check_output([python, "-c", program, *packages], text=True)) if packages else []


# ---------------------------------------------------------------------------------------------------------------------
# Devices


def measure_devices(flags: argparse.Namespace, document: dict[str, Any]) -> None:
    """Measures what is not in the document yet."""
    found = run_child(sys.executable, "one_device", ["list"], {})["gpus"]
    if not found:
        print("TensorFlow sees no GPU on this machine, so the processor is measured alone.")
    devices = {"CPU": "-1"} | {f"GPU {number}": name for number, name in enumerate(visible_gpus(len(found)))}
    for name, visible in devices.items():
        if name in document["measurements"]:
            continue
        print(f"Measuring {name} ...", flush=True)
        try:
            arguments = ["measure", "--dataset", flags.dataset, "--seconds", str(flags.seconds)]
            figures = run_child(sys.executable, "one_device", arguments, {"CUDA_VISIBLE_DEVICES": visible})
        except Failed as failed:
            document["left_out"][name] = str(failed)
            print(f"{name} is left out: {failed}")
            continue
        document["measurements"][name] = figures
        write_json(flags.out, document)
    write_json(flags.out, document)


def visible_gpus(number: int) -> list[str]:
    """What CUDA calls the GPUs that TensorFlow sees, in its order."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:number] or [str(index) for index in range(number)]


# ---------------------------------------------------------------------------------------------------------------------
# Peers


def measure_peers(flags: argparse.Namespace, document: dict[str, Any]) -> None:
    """Measures what is not in the document yet; it is written after each measurement."""
    for thing in things(flags).values():
        if thing.of_this_version:
            shutil.rmtree(thing.path, ignore_errors=True)
    for case in (case for case in CASES if not flags.peers or case.job in flags.peers):
        done = document["measurements"].setdefault(case.title, {})
        out = set()
        for repeat, side in abba(case.sides, flags.repeats):
            if side in out or len(done.get(side.name, [])) > repeat:
                continue
            try:
                figures = measure(case, side, flags)
            except Failed as failed:
                out.add(side)
                document["left_out"][f"{case.title}: {side.name}"] = str(failed)
                print(f"{case.title} · {side.name} is left out: {failed}", flush=True)
            else:
                done.setdefault(side.name, []).append(figures)
                print(
                    f"{case.title} · {side.name} · {repeat + 1} of {flags.repeats}: {FIGURES[case.figure].title} "
                    f"{number(figures[case.figure])}; process {number(figures['wall_seconds'])} s",
                    flush=True,
                )
            write_json(flags.out, document)
    write_json(flags.out, document)


def abba(sides: Sequence[Side], repeats: int) -> Iterator[tuple[int, Side]]:
    """Each round has every side once, and every second round is turned round: A B, B A, A B."""
    for repeat in range(repeats):
        for side in sides if repeat % 2 == 0 else reversed(sides):
            yield repeat, side


def measure(case: Case, side: Side, flags: argparse.Namespace) -> dict[str, Any]:
    """One measurement, in an empty folder of its own.

    Raises:
        Failed: the side is not installed, or ended with an error.
    """
    if missing := missing_packages(flags.peers_python, side.packages):
        raise Failed(f"{', '.join(missing)} not found by --peers-python; requirements-peers.txt says how to install")
    needed = made((*case.needs, *side.needs), flags)
    scratch = flags.work_dir / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    arguments = [
        side.job,
        "--scratch",
        str(scratch),
        "--seconds",
        str(flags.seconds),
        "--threads",
        str(num_cores()),
        "--epochs",
        str(min(flags.epochs, case.most_epochs)),
        *needed,
        *side.flags,
    ]
    python = flags.peers_python if side.packages else sys.executable
    try:
        figures = run_child(python, side.module, arguments, {"TF_ENABLE_ONEDNN_OPTS": side.onednn})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if case.figure not in figures:
        raise Failed(f"it printed no {case.figure}")
    return figures


@dataclass(frozen=True)
class Thing:
    """Something in --work-dir that jobs need and that is made once."""

    flag: str  # of the jobs, its value is the path
    path: Path
    module: str
    arguments: tuple[str, ...]
    of_this_version: bool = False  # so that it is made anew at each call


def things(flags: argparse.Namespace) -> dict[str, Thing]:
    """Everything that a job may need."""
    folder, fewer, few = flags.work_dir, max(20, flags.images // SHARE_FINE_TUNED), flags.many_images // GROWTH
    photos = folder / f"photos-{flags.images}"

    def images(kind: str, name: str, count: int, *more: str) -> Thing:
        return Thing("--images", folder / f"{name}-{count}", "made_images", (kind, "--number", str(count), *more))

    first_run = ("frozen", "--images", str(photos), "--epochs", "1", "--scratch", str(folder / "scratch"))
    cache = folder / f"cache-{flags.images}"
    return {
        "images": images("photos", "photos", flags.images),
        "fewer_images": images("photos", "photos", fewer),
        "large_images": images("large", "large", flags.large_images),
        "few_small_images": images("small", "small", few, "--size", "96"),
        "many_small_images": images("small", "small", flags.many_images, "--size", "96"),
        "weights": Thing(
            "--weights", folder / "resnet50.weights.h5", "ours", ("random_weights", "--network", "resnet50")
        ),
        "onnx": Thing("--onnx", folder / "onnx", "pytorch", ("export",)),
        "cache": Thing("--cache", cache, "ours", (*first_run, "--cache", str(cache)), of_this_version=True),
        "drawn": Thing("--data", folder / "drawn", "ours", ("drawn",)),
    }


def made(needs: Sequence[str], flags: argparse.Namespace) -> list[str]:
    """Makes what is not there yet, and returns flags that name it.

    Raises:
        Failed: it cannot be made.
    """
    arguments: list[str] = []
    for thing in (things(flags)[need] for need in needs):
        arguments += [thing.flag, str(thing.path)]
        if thing.path.exists():
            continue
        print(f"Making {thing.path}, once.", flush=True)
        flags.work_dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(flags.work_dir / "scratch", ignore_errors=True)
        python = flags.peers_python if thing.module == "pytorch" else sys.executable
        run_child(python, thing.module, [*thing.arguments, "--to", str(thing.path)], {"TF_ENABLE_ONEDNN_OPTS": None})
    return arguments


if __name__ == "__main__":
    sys.exit(run_main(main))
