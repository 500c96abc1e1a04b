"""Train several variants on the same images and compare them.

Every variant is trained with several seeds on the same images for the same number of epochs. Without --config the
variants are a pretrained network and a small CNN trained from scratch. The result is a table and an HTML page with
learning curves, time to given accuracies, final accuracy with an interval and a paired test, parameters, size and speed.

The same command, or --resume, continues a stopped comparison. Finished runs are not trained again.
"""

import argparse
import dataclasses
import logging
import shlex
import sys
from collections.abc import Sequence

from transfer_learning.cli.console import console, print_line
from transfer_learning.cli.flags import EarlierName, add_config_flags, given_values
from transfer_learning.cli.parser import Parser, command_line, run_main
from transfer_learning.config import flag_name
from transfer_learning.errors import Diverged, ExitCode, Stopped, UserError
from transfer_learning.experiments.comparison.directory import ComparisonDir, Plan, existing_comparison, new_comparison

logger = logging.getLogger("transfer_learning.compare")  # __name__ is "__main__" under `python -m`

EXAMPLES = """examples:
  transfer-learning compare --dataset cifar10 --learning-rates 1e-4,1e-3,1e-2
  transfer-learning compare --dataset photos/ --seeds 5 --epochs 20
  transfer-learning compare --dataset photos/ --config narrow= --config 'wide=--head 512'

Flags outside of --config apply to all variants. Without --config, --weights applies only to the pretrained variant.
`--config NAME=` is the config that `run` would use."""


def main(arguments: Sequence[str] | None = None) -> ExitCode:
    flags = parse(arguments)
    # Here, because --help needs no pandas.
    from transfer_learning.experiments.comparison.report import TIME_NOTE, overview_table
    from transfer_learning.experiments.comparison.run import run_comparison

    words = sys.argv[1:] if arguments is None else arguments
    directory, plan = open_comparison(flags, shlex.join(["transfer-learning", "compare", *words]))
    logger.info(f"Comparison directory: {directory.path}")
    command = command_line("compare", "--resume", str(directory.path))
    try:
        results = run_comparison(plan, directory)
    except Stopped as stopped:
        logger.warning(f"Stopped by {stopped}; continue the comparison with: {command}")
        return stopped.exit_code
    except Diverged as error:
        raise Diverged(f"{error} The plan in {directory.path} cannot be finished; start a new comparison.") from None
    except UserError as error:
        raise UserError(f"{error} Finished runs are not lost; continue with: {command}") from None
    print_line()
    console.print(overview_table(results))
    print_line("\n".join(["", *results["conclusions"], *results["remarks"], TIME_NOTE, f"Report: {directory.page}"]))
    return ExitCode.DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    usage = "transfer-learning compare (--dataset DATASET | --resume DIR) [--config NAME=WHAT] [options]"
    parser = Parser("compare", usage=usage, description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument_group("comparison").add_argument
    what = "define a variant: WHAT is a JSON file of config fields, or quoted flags; may be repeated"
    add("--config", action="append", metavar="NAME=WHAT", help=what)
    add(
        "--seeds",
        type=int,
        metavar="N",
        help=f"runs of each variant, with seeds from --seed on (default: {Plan.num_seeds})",
    )
    add("--epochs", type=int, metavar="N", help="epochs of each variant, both phases together")
    rates = "such as 1e-4,1e-3,1e-2: try these for the last phase; each variant uses the best one by validation images"
    add("--learning-rates", type=numbers, metavar="RATES", help=rates)
    targets = ",".join(f"{accuracy:g}" for accuracy in Plan.target_accuracies)
    add(
        "--target-accuracies",
        type=numbers,
        metavar="ACCURACIES",
        help=f"report the time until these accuracies are reached (default: {targets})",
    )
    earlier = add("--reach", action=EarlierName, type=numbers, dest="target_accuracies", const="target-accuracies")
    earlier.default = earlier.help = argparse.SUPPRESS
    add("--run-dir", metavar="DIR", help="directory of the comparison (default: one in runs/ for these flags)")
    add("--resume", metavar="DIR", help="continue the comparison in this directory")
    add_config_flags(parser)
    flags = parser.parse_args(arguments)
    for name in ("seeds", "epochs"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; give 1 or more.")
    rates, shares = "positive numbers such as 1e-4,1e-3,1e-2", "numbers above 0 and up to 1 such as 0.5,0.8,0.9"
    for name, most, expected in (("learning_rates", sys.float_info.max, rates), ("target_accuracies", 1, shares)):
        for value in getattr(flags, name) or ():
            if not 0 < value <= most:
                raise UserError(f"--{flag_name(name)} has {value:g}; give {expected}.")
    return flags


def numbers(text: str) -> tuple[float, ...]:
    """``"1e-3,1e-4"`` -> ``(0.0001, 0.001)``: sorted, without repetitions."""
    return tuple(sorted({float(part) for part in text.split(",")}))


def open_comparison(flags: argparse.Namespace, command: str = "") -> tuple[ComparisonDir, Plan]:
    """The directory and plan of the comparison that --resume names, or that the other flags describe."""
    changes = {"num_seeds": flags.seeds, "target_accuracies": flags.target_accuracies}
    changes = {name: value for name, value in changes.items() if value is not None}
    values = given_values(flags)
    if flags.resume:
        if flags.config or flags.epochs or flags.learning_rates or flags.run_dir or values:
            raise UserError(
                "--resume continues with the same variants; give no other flags than --seeds and --target-accuracies."
            )
        directory = existing_comparison(flags.resume)
        return directory, dataclasses.replace(directory.read_plan(), **changes)
    from transfer_learning.experiments.comparison.variants import choose_variants

    variants, reasons = choose_variants(values, flags.config or [], flags.epochs)
    first_seed = next(iter(variants.values())).seed
    plan = Plan(variants, flags.learning_rates or (), first_seed, reasons=tuple(reasons), command=command, **changes)
    directory = new_comparison(plan, flags.run_dir)
    for reason in reasons:
        logger.info(reason)
    return directory, plan


if __name__ == "__main__":
    sys.exit(run_main(main))
