"""What `transfer_learning.train` does: options into a config, and a run that is new, continued or already finished."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer_learning.cli.console import PACKAGE, set_up_logging
from transfer_learning.cli.parser import quiet_start
from transfer_learning.config import RunConfig, difference, named, values_from_options, with_values
from transfer_learning.datasets.prepared import images_once
from transfer_learning.errors import UserError
from transfer_learning.machine.cluster import find_cluster
from transfer_learning.recipes.resolve import config_from_values, with_full_paths
from transfer_learning.storage.notes import Note
from transfer_learning.storage.run_directory import RunDir, new_run_dir

with quiet_start():
    from transfer_learning.experiments.finished_run import FinishedRun
    from transfer_learning.experiments.train import run_experiment


@images_once()
def train_dataset(
    dataset: str, run_dir: str | os.PathLike | None, epochs: int | None, options: Mapping[str, Any]
) -> FinishedRun:
    """Trains on `dataset` and returns the run; the arguments and errors are those of `transfer_learning.train`."""
    if not logging.getLogger(PACKAGE).handlers:
        set_up_logging()
    given = {"dataset": dataset, **options} | ({} if epochs is None else {"fine_tune.epochs": epochs})
    reasons: Sequence[Note | str] = ()
    directory, values = RunDir(run_dir) if run_dir is not None else None, values_from_options(given)
    if cluster := find_cluster(values.get("strategy", RunConfig.strategy)):
        raise UserError(
            f"tl.train trains in this process alone, and {cluster.found_in} names {len(cluster.addresses)} workers; start "
            '`transfer-learning run` in each of them, or give strategy="one" to train alone.'
        )
    if directory and directory.config.exists() and values.get("time_limit"):  # what fitted into it was decided then
        config = with_values(directory.read_config(), with_full_paths(values))
    else:
        config, reasons = config_from_values(values, measure=True)
    if directory is None or not directory.config.exists():
        directory = new_run_dir(run_dir, f"{Path(config.dataset).stem}-{config.backbone}")
    elif directory.is_finished:
        if fields := difference(directory.read_config(), config):
            raise UserError(
                f"{directory.path} holds a finished run with another config ({named(fields)}); choose another run_dir."
            )
        return FinishedRun(directory)
    run_experiment(config, directory, reasons=reasons)
    return FinishedRun(directory)
