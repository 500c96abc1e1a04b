"""Measure the processor and each GPU of this machine: ``transfer-learning benchmark --devices``.

Each device is measured in a process of its own: feature extraction, training, the largest batch and the memory, for the
network of a recipe. Every result is written at once; the same command continues where a stopped one ended.

How this package compares with other tools is measured by ``python -m benchmarks`` in a checkout of the repository.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from transfer_learning.cli.console import print_line
from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.errors import UserError, did_you_mean
from transfer_learning.experiments.device_benchmark import device_table, measure_devices
from transfer_learning.experiments.measurements import heading, open_document
from transfer_learning.recipes.known import RECIPES
from transfer_learning.storage.files import write_text

EXAMPLES = """examples:
  transfer-learning benchmark --devices --dataset pharma"""


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["transfer-learning", "benchmark", *words])
    settings = {"dataset": flags.dataset, "seconds": flags.seconds}
    document = open_document(flags.out, "devices", settings, command, versions={})
    measure_devices(document, flags.out)
    text = f"{heading(document)}\n\n{device_table(document)}\n"
    write_text(flags.out.with_suffix(".md"), text)
    print_line(f"\n{text}\nFigures: {flags.out}; this table: {flags.out.with_suffix('.md')}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("benchmark", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--devices", action="store_true", required=True, help="measure the processor and each GPU")
    parser.add_argument("--dataset", default="drawn_pills", metavar="NAME", help="recipe (default: drawn_pills)")
    seconds, out = "length of the measurement of a rate (default: 20)", Path("runs/benchmark-devices.json")
    parser.add_argument("--seconds", type=int, default=20, metavar="N", help=seconds)
    parser.add_argument(
        "--out", type=Path, default=out, metavar="FILE", help=f"JSON with every figure (default: {out})"
    )
    flags = parser.parse_args(arguments)
    if flags.dataset not in RECIPES:
        raise UserError(f"There is no recipe {flags.dataset!r}.{did_you_mean(flags.dataset, RECIPES)}")
    if flags.seconds < 1:
        raise UserError(f"--seconds {flags.seconds} measures nothing; give 1 or more.")
    return flags


if __name__ == "__main__":
    sys.exit(run_main(main))
