"""What `transfer_learning.train` does: options into a config, and a run that is new, continued or already finished."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from transfer_learning.cli.console import PACKAGE, early_messages, set_up_logging
from transfer_learning.cli.parser import quiet_start
from transfer_learning.config import RunConfig, difference, named, values_from_options, with_values
from transfer_learning.datasets.prepared import images_once
from transfer_learning.errors import UserError
from transfer_learning.machine.cluster import find_cluster
from transfer_learning.recipes.resolve import config_from_values, logged, new_run, with_full_paths
from transfer_learning.storage.notes import Note
from transfer_learning.storage.run_directory import RunDir

with quiet_start():
    from transfer_learning.experiments.finished_run import FinishedRun
    from transfer_learning.experiments.train import run_experiment


logger = logging.getLogger(__name__)


def train_dataset(
    dataset: str, run_dir: str | os.PathLike | None, epochs: int | None, options: Mapping[str, Any]
) -> FinishedRun:
    """Trains on `dataset` and returns the run; the arguments and errors are those of `transfer_learning.train`."""
    if not logging.getLogger(PACKAGE).handlers:
        set_up_logging()
    values = values_from_options(
        {"dataset": dataset, **options} | ({} if epochs is None else {"fine_tune.epochs": epochs})
    )
    if cluster := find_cluster(values.get("strategy", RunConfig.strategy)):
        raise UserError(
            f"tl.train trains in this process alone, and {cluster.found_in} names {len(cluster.addresses)} workers; start "
            '`transfer-learning run` in each of them, or give strategy="one" to train alone.'
        )
    with early_messages(), images_once():
        if run_dir is not None and RunDir(run_dir).config.exists():
            directory, config, reasons = _begun(RunDir(run_dir), values)
        else:
            directory, config, reasons = new_run(values, run_dir)
        if not directory.is_finished:
            logger.info(f"Run directory: {directory.path}")
            run_experiment(config, directory, reasons=reasons)
    return FinishedRun(directory.absolute())


def _begun(directory: RunDir, values: dict[str, Any]) -> tuple[RunDir, RunConfig, Sequence[Note | str]]:
    """The directory of a run that may be finished, its config and reasons; UserError if `values` ask for another config."""
    old = directory.read_config()
    reasons: Sequence[Note | str] = ()
    config = with_values(old, with_full_paths(values))
    fields = difference(old, config, may_have_moved=True)  # before the settings are measured
    if not fields and not values.get("time_limit"):  # what fitted into it was decided then
        config, reasons = logged(config_from_values(values, measure=True))
        fields = difference(old, config, may_have_moved=True)
    if fields:
        what = "a finished run" if directory.is_finished else "a run"
        raise UserError(f"{directory.path} holds {what} with another config ({named(fields)}); choose another run_dir.")
    return directory, config, reasons
