"""Train and evaluate a classifier."""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from multiprocessing import get_context
from typing import Any

from transfer_learning.cli.console import early_messages, log_file, logged_to
from transfer_learning.cli.flags import add_config_flags, given_values
from transfer_learning.cli.parser import Parser, command_line, quiet_start, run_main
from transfer_learning.config import NAMED_WEIGHTS, RunConfig, difference, named, values_from_options, with_values
from transfer_learning.errors import ExitCode, Stopped, UserError
from transfer_learning.machine.cluster import Cluster, Meeting, find_cluster
from transfer_learning.machine.worker_processes import end_with_parent
from transfer_learning.recipes.known import RECIPES
from transfer_learning.storage.notes import Note
from transfer_learning.storage.run_directory import RunDir, check_place, existing_run_dir

logger = logging.getLogger("transfer_learning.run")  # __name__ is "__main__" under `python -m`

EPILOG = f"""A flag that you do not give has the value of the dataset's recipe, or of the automatic recipe, which chooses it
from your images; the defaults above hold for what the recipe does not set. There are recipes for {", ".join(RECIPES)}.

examples:
  transfer-learning run --dataset drawn_pills
  transfer-learning run --dataset photos/ --backbone resnet50
  transfer-learning run --dataset photos/ --fine-tune.epochs 20
  transfer-learning run --resume runs/photos-resnet50-20260131-120000
  transfer-learning run --from runs/mine --dataset more_photos/"""


@early_messages()
def main(arguments: Sequence[str] | None = None) -> ExitCode:
    flags = parse(arguments)
    from transfer_learning.datasets.prepared import images_once  # here, because --help needs no pandas

    cluster = find_cluster(getattr(flags, "strategy", RunConfig.strategy))
    other_folder = tempfile.TemporaryDirectory(prefix="worker-") if cluster and cluster.index else nullcontext("")
    with images_once(), other_folder as folder:
        run_dir, config, reasons = met(flags, cluster, RunDir(folder)) if cluster else chosen(flags)
        if config is None or run_dir.is_finished:
            logger.info(f"{run_dir.path} is finished; its report is {run_dir.report}.")
            return ExitCode.DONE
        return train(config, run_dir, reasons, cluster)


def chosen(flags: argparse.Namespace) -> tuple[RunDir, RunConfig, Sequence[Note | str]]:
    """The run directory, the config, and the reasons for what was chosen."""
    if flags.resume:
        return resumed(flags)
    from transfer_learning.recipes.resolve import new_run

    return new_run(given_values(flags), flags.run_dir)


def met(
    flags: argparse.Namespace, cluster: Cluster, own: RunDir
) -> tuple[RunDir, RunConfig | None, Sequence[Note | str]]:
    """As `chosen` by worker 0, after all workers have met; another worker takes `own` as its run directory, and None as
    the config of a run that is finished.
    """
    from transfer_learning.recipes.resolve import with_full_paths

    given = given_values(flags)
    with Meeting(cluster, given, getattr(flags, "worker_timeout", RunConfig.worker_timeout)) as meeting:
        if cluster.is_chief:
            # In another process, because TensorFlow has to find the workers before it computes anything.
            with ProcessPoolExecutor(1, get_context("fork"), end_with_parent, (os.getpid(),)) as process:
                run_dir, config, reasons = process.submit(chosen, flags).result()
            meeting.lead(partial(contradiction, config), "" if run_dir.is_finished else config.to_json())
            return run_dir, config, reasons
        text = meeting.follow()
        return own, with_values(RunConfig.from_json(text), with_full_paths(given)) if text else None, ()


def contradiction(config: RunConfig, other: Mapping[str, Any]) -> str:
    """What is wrong with the settings that another worker of the run was given, or ""."""
    fields = difference(config, with_values(config, values_from_options(other["given"])), may_have_moved=True)
    return (
        f"Worker {other['index']} has other flags than worker 0 ({named(fields)}); give all the same." if fields else ""
    )


def train(config: RunConfig, run_dir: RunDir, reasons: Sequence[Note | str], cluster: Cluster | None) -> ExitCode:
    continuing = command_line("run", "--resume", str(run_dir.path))
    if cluster and not cluster.is_chief:
        continuing = "what worker 0 prints"
    else:
        logger.info(f"Run directory: {run_dir.path}")

    def end_at_once(signal_number: int) -> None:
        stopped = Stopped(signal_number)
        with suppress(OSError):  # nobody reads it
            text = f"Stopped by {stopped} before it could save; continue from the last checkpoint with: {continuing}"
            print(text, flush=True)
        os._exit(stopped.exit_code)

    try:
        with quiet_start(in_command=True):  # these import TensorFlow and scikit-learn, which takes seconds
            from transfer_learning.experiments.train import run_experiment
            from transfer_learning.training.stopping import Watchdog
        with Watchdog(end_at_once):
            run_experiment(config, run_dir, reasons=reasons, cluster=cluster)
    except Stopped as stopped:
        with logged_to(log_file(run_dir.log)):
            logger.warning(f"Stopped by {stopped}; continue with: {continuing}")
        return stopped.exit_code
    return ExitCode.DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    usage = "transfer-learning run (--dataset DATASET | --from RUN | --resume RUN)\n" + " " * 29 + "[options]"
    parser = Parser("run", usage=usage, description=__doc__, epilog=EPILOG)
    parser.add_argument(
        "--resume", metavar="RUN_DIR", help="continue this stopped run, to the same result as without the stop"
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="RUN_DIR",
        help="start a new run from the weights of this finished one, for more epochs, images or classes",
    )
    parser.add_argument("--run-dir", metavar="DIR", help="directory of a new run (default: a new one under runs/)")
    add_config_flags(parser)
    flags = parser.parse_args(arguments)
    if flags.start:
        if flags.resume:
            raise UserError("--resume continues a stopped run, and --from starts a new one; give one of them.")
        if hasattr(flags, "weights"):
            raise UserError(f"--from {flags.start} and --weights {flags.weights} both name weights; give one of them.")
        flags.weights = str(existing_run_dir(flags.start).path)
    return flags


def resumed(flags: argparse.Namespace) -> tuple[RunDir, RunConfig, list[Note | str]]:
    """The run to continue, its config, and no new reasons; UserError names the fields for which a flag asks otherwise."""
    from transfer_learning.recipes.resolve import with_full_paths

    if flags.run_dir:
        raise UserError("--resume already names the run directory; leave --run-dir out.")
    run_dir = existing_run_dir(flags.resume)
    old = run_dir.read_config()
    config = with_values(old, with_full_paths(given_values(flags)))
    if fields := difference(old, config, may_have_moved=True):
        longer = (
            "; its schedules depend on the number of epochs, so none can be added: once it is finished, "
            f"run --from {run_dir.path} trains on from its weights"
        )
        more = longer if any(name.endswith(".epochs") for name in fields) else ""
        raise UserError(
            f"{run_dir.path} was begun with another config ({named(fields)}){more}; leave the flags out, or start a new "
            "run with them and without --resume; it finds images and features in the cache."
        )
    if not run_dir.is_finished:
        check_place(config.dataset, "--dataset")
        if config.weights not in NAMED_WEIGHTS:
            check_place(config.weights, "--weights")
    return run_dir, config, []


if __name__ == "__main__":
    sys.exit(run_main(main))
