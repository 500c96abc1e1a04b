"""Set configs against each other: ``python -m transfer_learning.compare --dataset NAME|FOLDER|TABLE.csv``.

Without --config, a pretrained network against a small one from random weights. Every variant is trained with every seed on the
same images for as many epochs, one process after the other. Out come learning curves with their spread, the epochs and
seconds to given accuracies, the final accuracy with an interval and a paired test, parameters, size and time: a table, a
figure and a page.

The same command, or --resume, goes on where a stopped one ended; what is finished is never trained again.
"""

import argparse
import dataclasses
import hashlib
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer_learning.cli.flags import add_config_flags, given_values
from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.config import RunConfig, difference, named, with_values
from transfer_learning.errors import Diverged, ExitCode, Stopped, UserError
from transfer_learning.experiments.comparison import statistics
from transfer_learning.experiments.comparison.directory import ComparisonDir, Plan, last_phase
from transfer_learning.experiments.comparison.report import read_table, write_results
from transfer_learning.experiments.comparison.variants import chosen_variants
from transfer_learning.storage.files import read_json, write_json, write_text
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training.stopping import STOPS, StopRequest

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
LOOK_SECONDS = 0.1  # between two looks at the process that trains
JOIN_SECONDS = 5.0  # for the last lines of a process that has ended
EXAMPLES = """examples:
  python -m transfer_learning.compare --dataset cifar10 --learning-rates 1e-4,1e-3,1e-2
  python -m transfer_learning.compare --dataset photos/ --seeds 5 --epochs 20
  python -m transfer_learning.compare --dataset photos/ --config narrow= --config 'wide=--head 512' --config other=a.json

Flags of a config apply to all variants, but without --config --weights is where the pretrained one starts. `--config NAME=` is
the recipe of the dataset as `run` takes it."""


def main(arguments: Sequence[str] | None = None) -> ExitCode:
    flags = parse(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    directory, plan = begun(flags, shlex.join(["python", "-m", "transfer_learning.compare", *words]))
    print(f"Comparison directory: {directory.path}", flush=True)
    directory.path.mkdir(parents=True, exist_ok=True)
    command = f"python -m transfer_learning.compare --resume {shlex.quote(str(directory.path))}"
    try:
        with StopRequest() as stop, directory.locked():
            directory.write_plan(plan)
            variants, search = best_rates(plan, directory, stop)
            train_all(plan, variants, directory, stop)
            print(f"\n{write_results(plan, variants, search, directory)}")
    except Stopped as stopped:
        print(f"Stopped by {stopped}; continue the comparison with: {command}")
        return stopped.exit_code
    except Diverged as error:
        raise Diverged(f"{error} Start a new comparison: the one in {directory.path} would diverge again.") from None
    except UserError as error:
        raise UserError(f"{error} What is finished is kept; when this is mended, go on with: {command}") from None
    return ExitCode.DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("compare", description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "--config",
        action="append",
        metavar="NAME=WHAT",
        help="a variant: a JSON file with all fields of a config or some, or flags in quotes",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help=f"runs of each variant, with seeds from --seed on (default: {Plan.num_seeds})",
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of each variant, of both phases together")
    parser.add_argument(
        "--learning-rates",
        type=numbers,
        metavar="RATES",
        help="as 1e-4,1e-3,1e-2: each variant is trained with each, and goes on with the one that is best on "
        "the validation images; of a config with two phases it is the rate of the second",
    )
    parser.add_argument(
        "--reach",
        type=numbers,
        metavar="ACCURACIES",
        help="validation accuracies whose epoch and time are told (default: "
        f"{','.join(f'{accuracy:g}' for accuracy in Plan.reach)})",
    )
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        help="directory of the comparison (default: one in runs/ that the same command finds)",
    )
    parser.add_argument("--resume", metavar="DIR", help="continue the comparison in this directory")
    add_config_flags(parser)
    flags = parser.parse_args(arguments)
    for name in ("seeds", "epochs"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} compares nothing; give 1 or more.")
    for rate in flags.learning_rates or ():
        if not 0 < rate < float("inf"):
            raise UserError(f"--learning-rates {rate:g} is no positive number; give such as 1e-4,1e-3,1e-2.")
    for accuracy in flags.reach or ():
        if not 0 < accuracy <= 1:
            raise UserError(f"--reach {accuracy:g} is no accuracy; give more than 0 and at most 1, as 0.5,0.8,0.9.")
    return flags


def numbers(text: str) -> tuple[float, ...]:
    """``"1e-4,1e-3"`` -> ``(0.0001, 0.001)``, sorted, each once."""
    return tuple(sorted({float(part) for part in text.split(",")}))


# ---------------------------------------------------------------------------------------------------------------------
# What is to be done


def begun(flags: argparse.Namespace, command: str = "") -> tuple[ComparisonDir, Plan]:
    """The directory of the comparison, and its plan: that of --resume, or one from the flags.

    Raises:
        UserError: there is nothing to resume, or the directory holds another comparison or something else.
    """
    more = {name: value for name, value in (("num_seeds", flags.seeds), ("reach", flags.reach)) if value is not None}
    if flags.resume:
        if flags.config or flags.epochs or flags.learning_rates or flags.run_dir or given_values(flags):
            raise UserError(
                "--resume takes the variants as they were begun; leave every flag out but --seeds and --reach."
            )
        directory = ComparisonDir(Path(flags.resume))
        if not directory.plan.exists():
            raise UserError(f"{flags.resume} holds no comparison; give the directory that `compare` printed.")
        return directory, dataclasses.replace(directory.read_plan(), **more)
    variants, reasons = chosen_variants(flags)
    first_seed = next(iter(variants.values())).seed
    plan = Plan(variants, flags.learning_rates or (), first_seed, reasons=tuple(reasons), command=command, **more)
    check(plan)
    directory = ComparisonDir(Path(flags.run_dir or default_path(plan)))
    if directory.plan.exists():
        if found := directory.read_plan().difference(plan):
            raise UserError(
                f"{directory.path} holds another comparison ({'; '.join(found)}); restore the flags, or choose another "
                "--run-dir."
            )
    elif directory.path.exists() and not is_empty(directory.path):
        raise UserError(f"--run-dir {directory.path} holds something else; choose a new or an empty directory.")
    for reason in reasons:
        logger.info(reason)
    return directory, plan


def is_empty(path: Path) -> bool:
    """Whether it is a folder with hidden files at most: a command that was killed at once leaves its lock."""
    return path.is_dir() and all(entry.name.startswith(".") for entry in path.iterdir())


def default_path(plan: Plan) -> Path:
    """A directory that only the same comparison has, so that the same command finds it again."""
    name = Path(next(iter(plan.variants.values())).dataset.replace(":", "-")).stem
    return Path("runs") / f"compare-{name}-{hashlib.sha256(plan.identity.encode()).hexdigest()[:8]}"


def check(plan: Plan) -> None:
    """Raises UserError for rates that cannot be searched."""
    for name, config in plan.variants.items():
        if plan.learning_rates and not config.monitor.startswith("val"):
            raise UserError(
                f"--learning-rates are judged on validation images, but {name} has --monitor {config.monitor}; give val_loss "
                "or val_accuracy."
            )
        for rate in plan.learning_rates:
            with_rate(config, rate).check()


def with_rate(config: RunConfig, rate: float) -> RunConfig:
    """The config with this rate in the last phase that it trains."""
    return with_values(config, {f"{last_phase(config)}.learning_rate": rate})


# ---------------------------------------------------------------------------------------------------------------------
# Training


def best_rates(
    plan: Plan, directory: ComparisonDir, stop: StopRequest
) -> tuple[dict[str, RunConfig], dict[str, list[dict[str, Any]]]]:
    """Trains each variant with each rate and the first seed.

    Which rate is taken is decided by the histories alone, which know of no test image. The run of that rate is the
    comparison's run for the first seed.

    Returns:
        The variants with their best rates, and for each what every rate came to.

    Raises:
        UserError: a variant diverged at every rate, or something that the user has to mend.
    """
    if not plan.learning_rates:
        return dict(plan.variants), {}
    diverged = read_json(directory.diverged) if directory.diverged.exists() else {}
    total = len(plan.variants) * len(plan.learning_rates)
    for number, (rate, name) in enumerate(in_turns(plan.learning_rates, plan.variants), start=1):
        config = with_rate(plan.variants[name], rate)
        run_dir = directory.run(name, plan.first_seed, rate)
        title = f"[rate {number} of {total}] {name}, learning rate {rate:g}, seed {plan.first_seed}"
        if run_dir.path.name in diverged:
            print(f"\n{title}: it diverged before.")
            continue
        try:
            train(run_dir, config, title, stop)
        except Diverged as error:
            logger.info(f"{title}: {error}")
            diverged[run_dir.path.name] = str(error)
            write_json(directory.diverged, diverged)

    variants, search = {}, {}
    for name, config in plan.variants.items():
        run_dirs = {rate: directory.run(name, plan.first_seed, rate) for rate in plan.learning_rates}
        histories = {
            rate: read_table(run_dir.history) for rate, run_dir in run_dirs.items() if run_dir.path.name not in diverged
        }
        chosen = statistics.chosen_rate(histories, config.monitor)
        variants[name] = with_rate(config, chosen)
        search[name] = [
            {
                "learning_rate": rate,
                "best": statistics.best_value(histories[rate], config.monitor) if rate in histories else None,
                "monitor": config.monitor,
                "is_chosen": rate == chosen,
                "problem": diverged.get(run_dir.path.name, ""),
                "run": run_dir.path.name,
            }
            for rate, run_dir in run_dirs.items()
        ]
        print(f"\n{name} goes on with learning rate {chosen:g}, the best by {config.monitor}.", flush=True)
    return variants, search


def train_all(plan: Plan, variants: Mapping[str, RunConfig], directory: ComparisonDir, stop: StopRequest) -> None:
    """Trains every variant with every seed."""
    total = len(plan.seeds) * len(variants)
    for number, (seed, name) in enumerate(in_turns(plan.seeds, variants), start=1):
        title = f"[{number} of {total}] {name}, seed {seed}"
        config = with_values(variants[name], {"seed": seed})
        train(directory.run(name, seed, plan.searched_rate(config)), config, title, stop)


def in_turns(rounds: Sequence[Any], names: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """Each name once a round, in every second round the other way round: a machine that grows slower harms all alike."""
    for number, value in enumerate(rounds):
        for name in names if number % 2 == 0 else reversed(list(names)):
            yield value, name


def train(run_dir: RunDir, config: RunConfig, title: str, stop: StopRequest) -> None:
    """Brings one run to its end, from wherever it stands.

    Raises:
        UserError: the run's own sentence.
        Stopped: a signal ended it, after saving.
    """
    if run_dir.config.exists() and (fields := difference(run_dir.read_config(), config)):
        raise UserError(
            f"{run_dir.path} was begun with another config ({named(fields)}); delete it, and it is trained anew."
        )
    if run_dir.is_finished:
        print(f"\n{title}: trained before.", flush=True)
        return
    print(f"\n{title}", flush=True)
    if not run_dir.config.exists():
        write_text(run_dir.config, config.to_json())  # so that to begin and to continue are the same command
    run_child(run_dir, stop)


def run_child(run_dir: RunDir, stop: StopRequest) -> None:
    """Begins or continues a run in a process of its own, and returns when it is finished.

    What it prints is shown. Its session is its own, so that Ctrl-C reaches it once, from here, and it can save.

    Raises:
        Diverged: its loss became NaN or infinite; the message is its own sentence.
        UserError: it ended with another error.
        Stopped: a signal ended it, after saving.
    """
    command = [sys.executable, "-m", "transfer_learning.run", "--resume", str(run_dir.path)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    problems: list[str] = []
    with stop.deferred():
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        reader = threading.Thread(target=pass_on, args=(process.stderr, problems), daemon=True)
        reader.start()
        is_told = False
        while process.poll() is None:
            if stop.is_received and not is_told:
                process.send_signal(stop.signal_number)
                is_told = True
            time.sleep(LOOK_SECONDS)
        reader.join(JOIN_SECONDS)
    if process.returncode == 0:
        return
    if process.returncode - 128 in STOPS:  # somebody else's signal
        raise Stopped(process.returncode - 128)
    if problems:
        raise (Diverged if process.returncode == ExitCode.DIVERGED else UserError)(problems[-1])
    how = f"exit code {process.returncode}"
    if process.returncode < 0:
        how = f"{signal.Signals(-process.returncode).name}; if the memory was not enough, compare anew with --gradient-accumulation-steps 2"
    raise UserError(f"The process that trained {run_dir.path} was ended by {how}.")


def pass_on(errors, problems: list[str]) -> None:
    """Shows what a process writes to its standard error, but keeps the sentence of its error for ourselves."""
    with errors:
        for line in errors:
            if line.startswith("error: "):
                problems.append(line.removeprefix("error: ").strip())
            else:
                sys.stderr.write(line)
                sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(run_main(main))
