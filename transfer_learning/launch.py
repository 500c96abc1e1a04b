"""Train with several worker processes, on this machine or on a Ray cluster."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from datetime import datetime

from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.errors import ExitCode, UserError, needs_extra
from transfer_learning.machine.gpus import cuda_names
from transfer_learning.machine.ray_cluster import PerWorker, add_ray_flags, joined_cluster
from transfer_learning.machine.worker_processes import WorkerProcesses, free_ports
from transfer_learning.storage.run_directory import RunDir, new_run_dir

logger = logging.getLogger("transfer_learning.launch")

EPILOG = """The options after `run` are those of `transfer-learning run`. The output is that of worker 0; if another
worker fails, its last message is printed, too. A signal stops all workers after the same train step, with a checkpoint.
On a Ray cluster, all machines need this package, and the same folders at the same paths.

examples:
  transfer-learning launch --workers 2 run --dataset photos/ --run-dir runs/a
  transfer-learning launch --workers 3 run --resume runs/a
  transfer-learning launch --ray auto --workers 4 run --dataset photos/ --run-dir runs/a"""


def main(arguments: Sequence[str] | None = None) -> ExitCode:
    flags = parse(arguments)
    words, run_dir = with_run_dir(flags.command[1:])
    if flags.ray:
        return launch_on_ray(flags, words, run_dir)
    for attempt in range(flags.restarts + 1):
        if attempt and run_dir.config.exists():
            words = ["--resume", str(run_dir.path)]
        with WorkerProcesses(words, free_ports(flags.workers, flags.first_port)) as workers:
            code = workers.wait()
        if code >= 0 and code != ExitCode.WORKER_LOST:
            return ExitCode(code) if code in set(ExitCode) else ExitCode.FAILED
        if attempt < flags.restarts:
            logger.warning(
                f"Worker {workers.first} {workers.how}; all start again from the last checkpoint (restart {attempt + 1} of "
                f"at most {flags.restarts})."
            )
    logger.warning(f"Worker {workers.first} {workers.how}, and --restarts {flags.restarts} allows no more restarts.")
    return ExitCode.WORKER_LOST


def launch_on_ray(flags: argparse.Namespace, words: list[str], run_dir: RunDir) -> ExitCode:
    is_new = not any(word.startswith("--resume") for word in words)
    if is_new:
        new_run_dir(run_dir.path, "")  # another start continues what is there
    per_worker = PerWorker.of(flags)
    with joined_cluster(flags.ray):
        with needs_extra("ray"):
            from transfer_learning.machine.ray_workers import RayJob, train_on_ray
        job = RayJob(
            words=words,
            is_new=is_new,
            run_dir=str(run_dir.path.absolute()),
            folder=os.getcwd(),
            num_workers=flags.workers,
            per_worker=per_worker,
            restarts=flags.restarts,
            first_port=flags.first_port,
        )
        return train_on_ray(job)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    usage = "transfer-learning launch --workers N [options] run ..."
    parser = Parser("launch", usage=usage, description=__doc__, epilog=EPILOG)
    parser.add_argument("--workers", type=int, required=True, metavar="N", help="number of worker processes")
    parser.add_argument(
        "--restarts", type=int, default=3, metavar="N", help="most restarts after a worker has died (default: 3)"
    )
    parser.add_argument(
        "--first-port",
        type=int,
        default=23_000,
        metavar="N",
        help="first port on which workers listen (default: 23000)",
    )
    add_ray_flags(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="run and its options")
    flags = parser.parse_args(arguments)
    if flags.command[:1] != ["run"]:
        raise UserError(f"launch starts workers of `run`; give {usage}.")
    if flags.workers < 1 or flags.restarts < 0:
        raise UserError(
            f"--workers {flags.workers} --restarts {flags.restarts} is out of range; give at least 1 and 0."
        )
    num_gpus = 0 if flags.ray else len(cuda_names())
    if 0 < num_gpus < flags.workers:
        raise UserError(
            f"--workers {flags.workers} is more than the {num_gpus} GPUs of this machine; give at most as many, or hide the "
            'GPUs with CUDA_VISIBLE_DEVICES="".'
        )
    return flags


def with_run_dir(words: list[str]) -> tuple[list[str], RunDir]:
    """The options of `run` with a run directory, and that directory."""
    for flag in ("--run-dir", "--resume"):
        for position, word in enumerate(words):
            if word.startswith(f"{flag}="):
                return words, RunDir(word.partition("=")[2])
            if word == flag and position + 1 < len(words):
                return words, RunDir(words[position + 1])
    path = f"runs/launched-{datetime.now():%Y%m%d-%H%M%S}"
    return [*words, "--run-dir", path], RunDir(path)


if __name__ == "__main__":
    sys.exit(run_main(main))
