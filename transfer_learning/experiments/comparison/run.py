"""Trains the runs of a comparison, one child process after the other, and writes the results."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from transfer_learning.cli.console import UNPRINTED, is_quiet
from transfer_learning.config import RunConfig, difference, named, with_values
from transfer_learning.errors import STOPS, Diverged, ExitCode, Stopped, UserError
from transfer_learning.experiments.comparison import statistics
from transfer_learning.experiments.comparison.directory import ComparisonDir, Plan, with_learning_rate
from transfer_learning.experiments.comparison.report import read_table, write_results
from transfer_learning.storage.files import read_json, write_json, write_text
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training.stopping import StopRequest

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[3]
POLL_SECONDS = 0.1  # between two looks at the child process
JOIN_SECONDS = 5.0  # for the last lines of a child that has ended
Value = TypeVar("Value")


def run_comparison(plan: Plan, directory: ComparisonDir) -> dict[str, Any]:
    """Carries out the plan from wherever it stopped, and returns the content of comparison.json. Diverged if a variant
    diverged at every learning rate, Stopped if a signal ended it (after saving), or the UserError of a run.
    """
    with StopRequest() as stop, directory.locked():
        directory.write_plan(plan)
        variants, tried = search_learning_rates(plan, directory, stop)
        total = len(plan.seeds) * len(plan.variants)
        for number, (seed, name) in enumerate(alternating(plan.seeds, list(plan.variants)), start=1):
            config = with_values(variants[name], {"seed": seed})
            run_dir = directory.run(name, seed, plan.searched_rate(config))
            train(run_dir, config, f"[{number} of {total}] {name}, seed {seed}", stop)
        return write_results(plan, variants, tried, directory)


def search_learning_rates(
    plan: Plan, directory: ComparisonDir, stop: StopRequest
) -> tuple[Mapping[str, RunConfig], dict[str, list[dict[str, Any]]]]:
    """Trains each variant with each learning rate and the first seed, and picks the best rate by validation images.

    Only the training histories are looked at, which contain no test image. The run with the best rate is the
    comparison's run for the first seed.

    Returns:
        Each variant with its best rate, and by variant one row per rate that was tried; no rows without a search.
    """
    if not plan.learning_rates:
        return plan.variants, {}
    diverged: dict[str, str] = read_json(directory.diverged) if directory.diverged.exists() else {}
    total = len(plan.variants) * len(plan.learning_rates)
    for number, (rate, name) in enumerate(alternating(plan.learning_rates, list(plan.variants)), start=1):
        run_dir = directory.run(name, plan.first_seed, rate)
        title = f"[rate {number} of {total}] {name}, learning rate {rate:g}, seed {plan.first_seed}"
        if run_dir.path.name in diverged:
            logger.info(f"\n{title}: diverged before.")
            continue
        try:
            train(run_dir, with_learning_rate(plan.variants[name], rate), title, stop)
        except Diverged as error:
            logger.warning(f"{title}: {error}")
            diverged[run_dir.path.name] = str(error)
            write_json(directory.diverged, diverged)

    variants: dict[str, RunConfig] = {}
    tried: dict[str, list[dict[str, Any]]] = {}
    for name, config in plan.variants.items():
        runs = {rate: directory.run(name, plan.first_seed, rate) for rate in plan.learning_rates}
        histories = {rate: read_table(run.history) for rate, run in runs.items() if run.path.name not in diverged}
        best_rate = statistics.best_rate(histories, config.monitor)
        variants[name], tried[name] = with_learning_rate(config, best_rate), []
        for rate, run in runs.items():
            best = statistics.best_value(histories[rate], config.monitor) if rate in histories else None
            row = {"learning_rate": rate, "best": best, "monitor": config.monitor, "is_chosen": rate == best_rate}
            tried[name].append(row | {"problem": diverged.get(run.path.name, ""), "run": run.path.name})
        logger.info(f"\n{name}: learning rate {best_rate:g} has the best {config.monitor}.")
    return variants, tried


def alternating(rounds: Sequence[Value], names: Sequence[str]) -> Iterator[tuple[Value, str]]:
    """Each name once per round, every second round in reverse order: a machine that slows down affects all alike."""
    for number, value in enumerate(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            yield value, name


def train(run_dir: RunDir, config: RunConfig, title: str, stop: StopRequest) -> None:
    """Trains one run to its end, from wherever it stopped; errors as those of `run_child`."""
    if run_dir.config.exists() and (fields := difference(run_dir.read_config(), config)):
        other = f"was started with another config ({named(fields)})"
        raise UserError(f"{run_dir.path} {other}; delete it to train it again.")
    if run_dir.is_finished:
        logger.info(f"\n{title}: trained before.")
        return
    logger.info(f"\n{title}")
    if not run_dir.config.exists():
        write_text(run_dir.config, config.to_json())  # a new run and a stopped one are then the same command
    run_child(run_dir, stop)


def run_child(run_dir: RunDir, stop: StopRequest) -> None:
    """Starts or continues a run in a child process, shows what it prints, and waits for its end.

    The child has a session of its own, so that Ctrl-C reaches it once, from here, and it can save. Diverged and
    UserError as in the child; Stopped if a signal ended it, after saving.
    """
    command = [sys.executable, "-m", "transfer_learning.run", "--resume", str(run_dir.path)]
    command += ["--quiet"] if is_quiet() else []
    variables = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    if any(RunDir(folder).log.exists() for folder in run_dir.path.parent.iterdir()):
        variables[UNPRINTED] = "transfer_learning.machine"  # devices and strategy are those of the first run
    errors: list[str] = []
    with stop.deferred():
        streams: dict[str, Any] = dict(stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
        process = subprocess.Popen(command, start_new_session=True, env=os.environ | variables, **streams)
        reader = threading.Thread(target=_pass_on, args=(process.stderr, errors), daemon=True)
        reader.start()
        is_signalled = False
        while process.poll() is None:
            if stop.signal_number is not None and not is_signalled:
                process.send_signal(stop.signal_number)
                is_signalled = True
            time.sleep(POLL_SECONDS)
        reader.join(JOIN_SECONDS)
    code = process.returncode
    if code == ExitCode.DONE:
        return
    if code - 128 in STOPS:  # the signal was sent to the child only
        raise Stopped(code - 128)
    how = f"{signal.Signals(-code).name} (out of memory?)" if code < 0 else f"exit code {code}"
    message = errors[-1] if errors else f"The process that trained {run_dir.path} ended with {how}."
    raise Diverged(message) if code == ExitCode.DIVERGED else UserError(message)


def _pass_on(stderr: IO[str], errors: list[str]) -> None:
    """Shows a child's standard error, but for its error message, which the exception in this process carries."""
    with stderr:
        for line in stderr:
            if line.startswith("error: "):
                errors.append(line.removeprefix("error: ").strip())
            else:
                sys.stderr.write(line)
                sys.stderr.flush()
