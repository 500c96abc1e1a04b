"""Train and evaluate a classifier: ``python -m transfer_learning.run --dataset NAME|FOLDER|TABLE.csv``, or ``--resume``."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from transfer_learning import recipes
from transfer_learning.command_line import Parser, add_config_flags, given_values, quiet_start, run_main
from transfer_learning.config import PHASES, RunConfig, difference, named, with_values
from transfer_learning.datasets.catalogue import load_dataset
from transfer_learning.datasets.survey import survey
from transfer_learning.errors import ExitCode, Stopped, UserError
from transfer_learning.models.backbones import find_backbone
from transfer_learning.run_dir import RunDir, existing_run_dir, new_run_dir

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
        config, reasons = chosen_config(flags)
        run_dir = new_run_dir(flags.run_dir, f"{Path(config.dataset).stem}-{config.backbone}")
    print(f"Run directory: {run_dir.path}", flush=True)

    try:
        with quiet_start():  # these import TensorFlow and scikit-learn, which takes seconds
            from transfer_learning.evaluation import metrics
            from transfer_learning.experiment import run_experiment
        evaluation = run_experiment(config, run_dir, reasons=reasons)
    except Stopped as stopped:
        command = f"{shlex.quote(sys.executable)} -m transfer_learning.run --resume {shlex.quote(str(run_dir.path))}"
        print(f"Stopped by {stopped}; continue with: {command}")
        return stopped.exit_code
    print(f"{metrics.in_words(evaluation)}\nReport: {run_dir.report}")
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


def chosen_config(flags: argparse.Namespace) -> tuple[RunConfig, list[str]]:
    """The recipe of the dataset with the given flags, and the reasons for what was chosen without a recipe."""
    values = given_values(flags)
    if "backbone" in values:
        find_backbone(values["backbone"])  # before a look at the data, which may be slow
    if "dataset" not in values:
        raise UserError(
            "--dataset is missing; name one of "
            f"{', '.join(recipes.RECIPES)}, a folder or a table, or continue a run with --resume."
        )
    for name, known in (("dataset", recipes.RECIPES), ("weights", ("imagenet", "none"))):
        if name in values and values[name] not in known and Path(values[name]).exists():
            values[name] = os.path.abspath(values[name])  # a relative path would bind --resume to this folder
    if values["dataset"] in recipes.RECIPES:
        config, reason_of = recipes.RECIPES[values["dataset"]](), {}
    else:
        dataset = load_dataset(values["dataset"], values.get("data_dir", RunConfig.data_dir))
        config, reason_of = recipes.own_images(values["dataset"], **survey(dataset)._asdict())
    config = with_values(config, values)
    config.check()
    backbone = find_backbone(config.backbone)
    try:
        backbone.opened_part(config.fine_tune.open)
    except UserError:
        if "fine_tune.open" in values:
            raise
        reason_of["fine_tune.open"] = (
            f"Fine-tuning opens the upper 0.3 of the layers: the recipe's {config.fine_tune.open} is no stage of "
            f"{config.backbone}."
        )
        config = with_values(config, {"fine_tune.open": "0.3"})
    left_out = tuple(f"{phase}." for phase in PHASES if config.phase(phase).epochs == 0)
    reasons = [reason for name, reason in reason_of.items() if name not in values and not name.startswith(left_out)]
    for reason in reasons:
        print(reason)
    return config, reasons


if __name__ == "__main__":
    sys.exit(run_main(main))
