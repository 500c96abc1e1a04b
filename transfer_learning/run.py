"""Train and evaluate a classifier: ``python -m transfer_learning.run --dataset NAME|FOLDER|TABLE.csv``, or ``--resume``."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from transfer_learning.cli.parser import Parser, add_config_flags, given_values, quiet_start, run_main
from transfer_learning.config import PHASES, RunConfig, difference, named, with_values
from transfer_learning.errors import ExitCode, Stopped, UserError
from transfer_learning.recipes.resolve import resolve_config
from transfer_learning.storage.run_directory import RunDir, existing_run_dir, new_run_dir

EXAMPLES = """examples:
  python -m transfer_learning.run --dataset drawn_pills
  python -m transfer_learning.run --dataset photos/ --backbone resnet50 --fine-tune.epochs 20
  python -m transfer_learning.run --resume runs/photos-resnet50-20260131-120000

A flag that is not given keeps the value of the dataset's recipe (see recipes.py)."""


def main(arguments: Sequence[str] | None = None) -> ExitCode:
    flags = parse(arguments)
    if flags.resume:
        run_dir, config, reasons = resumed(flags)
        if run_dir.is_finished:
            print(f"{run_dir.path} is finished; its report is {run_dir.report}.")
            return ExitCode.DONE
    else:
        config, reasons = resolve_config(flags)
        run_dir = new_run_dir(flags.run_dir, f"{Path(config.dataset).stem}-{config.backbone}")
    print(f"Run directory: {run_dir.path}", flush=True)
    continuing = f"{shlex.quote(sys.executable)} -m transfer_learning.run --resume {shlex.quote(str(run_dir.path))}"

    def end_at_once(signal_number: int) -> None:
        stopped = Stopped(signal_number)
        print(
            f"Stopped by {stopped} before it could save; continue from the last checkpoint with: {continuing}",
            flush=True,
        )
        os._exit(stopped.exit_code)

    try:
        with quiet_start():  # these import TensorFlow and scikit-learn, which takes seconds
            from transfer_learning.evaluation import metrics
            from transfer_learning.experiments.train import run_experiment
            from transfer_learning.training import history
            from transfer_learning.training.stopping import Watchdog
        with Watchdog(end_at_once):
            evaluation = run_experiment(config, run_dir, reasons=reasons)
    except Stopped as stopped:
        print(f"Stopped by {stopped}; continue with: {continuing}")
        return stopped.exit_code
    for phase in PHASES:
        if evaluation[phase]:
            print(history.describe(phase, evaluation[phase]))
    print(f"{metrics.describe(evaluation)}\nReport: {run_dir.report}")
    return ExitCode.DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m transfer_learning.run", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--resume", metavar="RUN_DIR", help="continue this run, to the same result as if never stopped")
    parser.add_argument("--run-dir", metavar="DIR", help="directory of a new run (default: a new one under runs/)")
    add_config_flags(parser)
    return parser.parse_args(arguments)


def resumed(flags: argparse.Namespace) -> tuple[RunDir, RunConfig, list[str]]:
    """The run to continue, its config, and no new reasons.

    Raises:
        UserError: a flag asks for another config than the run's; the fields that differ are named.
    """
    if flags.run_dir:
        raise UserError("--resume already names the run directory; leave --run-dir out.")
    run_dir = existing_run_dir(flags.resume)
    kept = run_dir.read_config()
    config = with_values(kept, given_values(flags))
    if fields := difference(kept, config):
        raise UserError(
            f"{run_dir.path} was begun with another config ({named(fields)}); leave the flags out, or start a new run."
        )
    return run_dir, config, []


if __name__ == "__main__":
    sys.exit(run_main(main))
