"""Whole processes, as a user starts them: wall time, processor time and peak memory; of two checkouts in turns.

python -m benchmarks.processes --images photos/ --earlier ../checkout_of_an_earlier_commit
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.tables import summary
from transfer_learning.experiments.measurements import ROOT, markdown_table
from transfer_learning.storage.run_directory import RunDir

HEAD_ONLY = "--image-size 96 --fine-tune.epochs 0 --frozen.copies 0"
# The words after `python -m transfer_learning`. Before the first measurement each command runs once, to fill the cache.
# {rate}: another learning rate in each process; {run}: a new run directory; {first}: that of the first process.
JOBS = {
    "second_run": f"run --dataset {{images}} {HEAD_ONLY} --frozen.learning-rate {{rate}} --run-dir {{run}}",
    "demo": "run --dataset drawn_pills --run-dir {run}",
    "predict_one": "predict {second_run} {image}",
    "predict_many": "predict {second_run} {images} --output {out}",
    "predict_one_exact": "predict {second_run} {image} --exact",
}
IMPORT = "import of TensorFlow"


class Measurement(NamedTuple):
    wall: float  # seconds
    processor: float  # seconds, user and system, of all its processes
    peak_mb: float  # resident memory of its largest process
    closing: float | None  # seconds from the last epoch to the report, of a run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder with one folder per class")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--earlier", type=Path, help="a checkout of an earlier commit, measured in turns with this one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work-dir", type=Path, default=Path("data/benchmark-processes"))
    flags = parser.parse_args()

    checkouts = {"now": ROOT, **({"earlier": flags.earlier.resolve()} if flags.earlier else {})}
    jobs = ["second_run", *(job for job in flags.jobs if job != "second_run")]  # whose run the others predict with
    found: dict[tuple[str, str], list[Measurement]] = {}
    for job in jobs:
        for name, checkout in checkouts.items():
            measure(job, checkout, flags, flags.work_dir / name, "first")
        for repeat in range(flags.repeats if job in flags.jobs else 0):
            for name, checkout in list(checkouts.items())[:: 1 if repeat % 2 == 0 else -1]:
                found.setdefault((job, name), []).append(
                    measure(job, checkout, flags, flags.work_dir / name, f"{time.time_ns()}")
                )
            found.setdefault((IMPORT, "now"), []).append(timed([sys.executable, "-c", "import tensorflow"], ROOT))
    print(table(found))


def measure(job: str, checkout: Path, flags: argparse.Namespace, folder: Path, name: str) -> Measurement:
    """One process of a job in a checkout; `name` is that of its run."""
    run_dir = (folder / job / name).resolve()
    values = {
        "images": flags.images.resolve(),
        "image": next(flags.images.resolve().rglob("*.jpg")),
        "rate": 1e-3 if name == "first" else f"{1e-3 * (1 + int(name) % 1000 / 1000):.6f}",
        "run": run_dir,
        "second_run": (folder / "second_run" / "first").resolve(),
        "out": (folder / f"{name}.csv").resolve(),
    }
    words = [word.format(**values) for word in shlex.split(JOBS[job])]
    if words[0] == "run":
        words += ["--cache-dir", str((folder / "cache").resolve())]
    measured = timed([sys.executable, "-m", "transfer_learning", *words], checkout)
    if (stages := RunDir(run_dir).stages).exists():
        seconds = {stage["name"]: stage["seconds"] for stage in json.loads(stages.read_text())["stages"]}
        return measured._replace(closing=seconds["evaluate"])
    return measured


def timed(command: Sequence[str], checkout: Path) -> Measurement:
    """Runs a command to its end; it reads the package of the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "3"}
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, cwd=checkout, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{shlex.join(command)} ended with exit code {os.waitstatus_to_exitcode(status)}.")
    return Measurement(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6, None)


def table(found: dict[tuple[str, str], list[Measurement]]) -> str:
    """Medians and ranges as Markdown."""
    rows = [("job", "checkout", "n", "wall, s", "processor, s", "closing, s", "peak, MB")]
    for (job, name), all_of_it in found.items():
        wall, processor, peak, closing = zip(*all_of_it, strict=True)
        ended = summary(closing) if None not in closing else "–"
        rows.append((job, name, str(len(wall)), summary(wall), summary(processor), ended, summary(peak)))
    return markdown_table(rows)


if __name__ == "__main__":
    main()
