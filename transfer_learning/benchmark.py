"""Measure this machine (--devices), or plan a recipe on many (--plan RECIPE --workers N).

--devices measures the CPU and each GPU with the network of a recipe: feature extraction, training, the largest batch and
the memory. --plan measures a few pieces on this machine, and calculates time, memory, network traffic and cost for each
number of workers. Every result is written at once; the same command continues after a stop.

``python -m benchmarks`` in a checkout of the repository compares this package with other tools.
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
from transfer_learning.experiments.plan import NUM_IMAGES, Plan, describe, measure
from transfer_learning.recipes.known import RECIPES
from transfer_learning.storage.files import read_json, write_text

EXAMPLES = """examples:
  transfer-learning benchmark --devices --dataset pharma
  transfer-learning benchmark --plan drawn_pills --workers 3 --here
  transfer-learning benchmark --plan imagenet --workers 64 --gbit 100 --price 3.5"""

DEVICES_OUT, PLAN_OUT = Path("runs/benchmark-devices.json"), Path("runs/benchmark-plan.json")


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["transfer-learning", "benchmark", *words])
    batch_size = flags.batch_size or RECIPES[flags.plan or flags.dataset]().batch_size
    plan = Plan(flags.plan, flags.workers, flags.here, flags.gbit, flags.images, flags.price, batch_size)
    if flags.pieces:
        print_line(describe(plan, {"given": read_json(flags.pieces)}))
        return
    kind, out = ("plan", flags.out or PLAN_OUT) if flags.plan else ("devices", flags.out or DEVICES_OUT)
    settings = {"dataset": flags.plan or flags.dataset, "seconds": flags.seconds}
    settings |= {"workers": flags.workers, "here": flags.here, "batch_size": batch_size} if flags.plan else {}
    document = open_document(out, kind, settings, command, versions={})
    if flags.plan:
        measure(plan, document, out)
        table = describe(plan, document["measurements"])
    else:
        measure_devices(document, out, flags.images)
        table = device_table(document)
    text = f"{heading(document)}\n\n{table}\n"
    write_text(out.with_suffix(".md"), text)
    print_line(f"\n{text}\nFigures: {out}; this table: {out.with_suffix('.md')}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("benchmark", description=__doc__, epilog=EXAMPLES)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--devices", action="store_true", help="measure the CPU and each GPU")
    what.add_argument("--plan", default="", metavar="RECIPE", help="plan this recipe on many workers")
    parser.add_argument(
        "--dataset",
        default="drawn_pills",
        metavar="NAME",
        help="recipe to measure with --devices (default: drawn_pills)",
    )
    seconds = "length of each measurement in seconds (default: 20)"
    parser.add_argument("--seconds", type=int, default=20, metavar="N", help=seconds)
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="largest number of workers of the plan, each like this machine",
    )
    parser.add_argument(
        "--here", action="store_true", help="plan for worker processes on this machine, as `launch` starts them"
    )
    gbit = "speed of the network between two machines in Gbit/s (default: 10)"
    parser.add_argument("--gbit", type=float, default=10.0, metavar="X", help=gbit)
    parser.add_argument(
        "--images", type=int, default=0, metavar="N", help="number of images (default: that of the recipe)"
    )
    parser.add_argument(
        "--price", type=float, default=0.0, metavar="X", help="price of one worker per hour, in any currency"
    )
    batch = "images per step of all workers together (default: that of the recipe)"
    parser.add_argument("--batch-size", type=int, default=0, metavar="N", help=batch)
    pieces = "read the pieces from this JSON file, for example of another machine, instead of measuring"
    parser.add_argument("--pieces", type=Path, metavar="FILE", help=pieces)
    out = f"JSON with every figure (default: {DEVICES_OUT} or {PLAN_OUT})"
    parser.add_argument("--out", type=Path, metavar="FILE", help=out)
    flags = parser.parse_args(arguments)
    recipe = flags.plan or flags.dataset
    if recipe not in RECIPES:
        raise UserError(f"There is no recipe {recipe!r}.{did_you_mean(recipe, RECIPES)}")
    if flags.seconds < 1:
        raise UserError(f"--seconds {flags.seconds} measures nothing; give 1 or more.")
    if flags.workers < 1 or flags.gbit <= 0 or min(flags.images, flags.batch_size) < 0:
        raise UserError(
            f"--workers {flags.workers} --gbit {flags.gbit:g} --images {flags.images} is out of range; give 1 worker or "
            "more, a speed above 0, and a number of images."
        )
    flags.images = flags.images or NUM_IMAGES.get(recipe, 0)
    if not flags.images:
        raise UserError(f"The number of images of {recipe} is not known here; give --images N.")
    return flags


if __name__ == "__main__":
    sys.exit(run_main(main))
