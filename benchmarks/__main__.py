"""Measure this package against other tools at the same jobs: ``python -m benchmarks [JOB...]`` in a checkout.

Each measurement is a process of its own. Every second round runs the tools in reverse order (A B, B A, A B, ...), so
that a machine that slows down over time affects all alike. Every result is written at once: the same command continues
where a stopped one ended, and a larger --repeats adds to it.
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import CASES, GROWTH, JOBS
from benchmarks.measure import measure_cases
from benchmarks.tables import peer_tables
from transfer_learning.cli.console import print_line
from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.errors import UserError, did_you_mean
from transfer_learning.experiments.measurements import heading, open_document, versions_of
from transfer_learning.storage.files import write_text

SETTINGS = ("images", "large_images", "many_images", "epochs", "seconds")
PEER_PACKAGES = ("torch", "torchvision", "onnxruntime", "openvino", "fastai", "ultralytics")
EXAMPLES = """examples:
  python -m benchmarks frozen extraction --peers-python peers/bin/python"""


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    settings = {name: getattr(flags, name) for name in SETTINGS}
    versions = versions_of(flags.peers_python, PEER_PACKAGES)
    document = open_document(flags.out, "peers", settings, shlex.join(["python", "-m", "benchmarks", *words]), versions)
    measure_cases(flags, document)
    text = f"{heading(document)}\n\n{peer_tables(document, CASES)}\n"
    write_text(flags.out.with_suffix(".md"), text)
    print_line(f"\n{text}\nFigures: {flags.out}; these tables: {flags.out.with_suffix('.md')}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("", description=__doc__, epilog=EXAMPLES)
    parser.prog = "python -m benchmarks"
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"jobs to measure (default: all): {', '.join(JOBS)}")
    parser.add_argument(
        "--peers-python",
        default=sys.executable,
        metavar="PATH",
        help="Python with benchmarks/requirements.txt installed (default: this one)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path("data/benchmark"),
        metavar="DIR",
        help="images and other inputs, made once (default: data/benchmark)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/benchmark-peers.json"),
        metavar="FILE",
        help="JSON with every figure (default: runs/benchmark-peers.json)",
    )
    for name, default, what in (
        ("repeats", 3, "measurements of each tool"),
        ("images", 1000, "number of images of 500 x 375 pixels"),
        ("large-images", 100, "number of images of 12 megapixels"),
        ("many-images", 20000, "number of images in the larger run of job memory"),
        ("epochs", 10, "epochs of a training; at most 4 in fine_tune"),
        ("seconds", 20, "length of the measurement of a rate"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})")
    flags = parser.parse_args(arguments)
    for name in flags.jobs:
        if name not in JOBS:
            raise UserError(f"There is no job {name!r}.{did_you_mean(name, JOBS)}")
    for name in ("repeats", "epochs", "seconds"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} {getattr(flags, name)} measures nothing; give 1 or more.")
    for name, least in (("images", 20), ("large_images", 10), ("many_images", 20 * GROWTH)):  # 1 per class and split
        if getattr(flags, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(flags, name)} is too few; give {least} or more.")
    if shutil.which(flags.peers_python) is None:
        raise UserError(f"--peers-python {flags.peers_python} is no program; give the python of a virtual environment.")
    flags.work_dir = flags.work_dir.absolute()
    return flags


if __name__ == "__main__":
    sys.exit(run_main(main))
