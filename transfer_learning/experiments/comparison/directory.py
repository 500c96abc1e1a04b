"""The directory of a comparison: plan, run directories and results; the only module that knows their names."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_learning.config import RunConfig, flat, with_values
from transfer_learning.errors import UserError
from transfer_learning.storage.files import read_json, renamed, write_json
from transfer_learning.storage.run_directory import RunDir, holds_no_files

EARLIER_NAMES = {"sides": "variants", "reach": "target_accuracies"}  # of keys in plan.json


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    variants: Mapping[str, RunConfig]  # by name
    learning_rates: tuple[float, ...]  # tried first, with the first seed; empty: each config has its own
    first_seed: int
    num_seeds: int = 3
    target_accuracies: tuple[float, ...] = (0.5, 0.8, 0.9)  # validation accuracies, 0..1, to report the time to
    reasons: tuple[str, ...] = ()  # for the settings that were chosen automatically
    command: str = ""  # the command line that started the comparison

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.num_seeds)

    def searched_rate(self, config: RunConfig) -> float | None:
        """The learning rate that is part of the name of a run with this config; None if no rate is searched."""
        return config.phase(config.phases[-1]).learning_rate if self.learning_rates else None

    def default_path(self) -> Path:
        """A directory in runs/ that depends on the plan alone, so that the same command finds it again."""
        name = Path(next(iter(self.variants.values())).dataset.replace(":", "-")).stem
        identity = json.dumps([dataclasses.asdict(self)["variants"], self.learning_rates, self.first_seed])
        return Path("runs") / f"compare-{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"

    def difference(self, other: "Plan") -> list[str]:
        """Phrases for what differs between the runs of two plans; the number of seeds and the targets may differ."""
        found = []
        if list(self.variants) != list(other.variants):
            found.append(f"the variants are {', '.join(self.variants)}, not {', '.join(other.variants)}")
        for name in (name for name in self.variants if name in other.variants):
            before, after = flat(self.variants[name]), flat(other.variants[name])
            changed = [field for field in before if before[field] != after[field]]
            found += [f"{field} of {name} is {before[field]}, not {after[field]}" for field in changed]
        if self.learning_rates != other.learning_rates:
            rates = (",".join(f"{rate:g}" for rate in plan.learning_rates) or "none" for plan in (self, other))
            found.append("--learning-rates is {}, not {}".format(*rates))
        if self.first_seed != other.first_seed:
            found.append(f"--seed is {self.first_seed}, not {other.first_seed}")
        return found


class ComparisonDir:
    """The paths inside the directory of one comparison."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.plan = self.path / "plan.json"  # variants with their configs, seeds, learning rates to try
        self.diverged = self.path / "diverged.json"  # runs of the learning-rate search, each with its error message
        self.results = self.path / "comparison.json"  # every number of the comparison
        self.table = self.path / "comparison.csv"  # one row per run
        self.figure = self.path / "learning_curves.png"  # learning curves of all variants
        self.page = self.path / "compare.html"

    def run(self, variant: str, seed: int, learning_rate: float | None = None) -> RunDir:
        """The run of one variant with one seed, and with a learning rate if one is searched."""
        rate = "" if learning_rate is None else f"-{learning_rate:g}"
        return RunDir(self.path / f"{variant}{rate}-seed{seed}")

    def locked(self) -> AbstractContextManager:
        """Holds the directory for this process; see `RunDir.locked`."""
        return RunDir(self.path).locked()

    def read_plan(self) -> Plan:
        """Returns the plan; raises UserError if the file is missing or damaged."""
        try:
            values = renamed(read_json(self.plan), EARLIER_NAMES)
            fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
            for name, config in fields["variants"].items():
                source = f"the config of {name} in {self.plan}"
                fields["variants"][name] = RunConfig.from_json(json.dumps(config), source)
            return Plan(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.plan} is not a plan that `compare` wrote ({error}); restore it, or start a new comparison."
            ) from None

    def write_plan(self, plan: Plan) -> None:
        write_json(self.plan, dataclasses.asdict(plan))


def new_comparison(plan: Plan, path: str | None) -> ComparisonDir:
    """The directory for this plan, which may hold a stopped comparison of it; UserError if it holds another one or
    something else, or the plan cannot be carried out.
    """
    _check(plan)
    directory = ComparisonDir(path or plan.default_path())
    if directory.plan.exists():
        if found := directory.read_plan().difference(plan):
            raise UserError(
                f"{directory.path} holds another comparison ({'; '.join(found)}); restore the flags, or choose another "
                "--run-dir."
            )
    elif directory.path.exists() and not holds_no_files(directory.path):
        raise UserError(f"--run-dir {directory.path} is not empty; choose a new or an empty directory.")
    return directory


def existing_comparison(path: str) -> ComparisonDir:
    """The directory of a comparison that was started; raises UserError if there is none."""
    directory = ComparisonDir(path)
    if not directory.plan.exists():
        raise UserError(f"{path} holds no comparison; give the directory that `compare` printed.")
    return directory


def with_learning_rate(config: RunConfig, rate: float) -> RunConfig:
    """The config with this learning rate in its last phase."""
    return with_values(config, {f"{config.phases[-1]}.learning_rate": rate})


def _check(plan: Plan) -> None:
    for name, config in plan.variants.items():
        if plan.learning_rates and not config.monitor.startswith("val"):
            raise UserError(
                f"--learning-rates compares rates on validation images, but {name} has --monitor {config.monitor}; "
                "give val_loss or val_accuracy."
            )
        for rate in plan.learning_rates:
            with_learning_rate(config, rate).check()
