"""The directory of a comparison: the plan, a run directory for each run, and the results; the one place of their names."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transfer_learning.config import RunConfig, flat
from transfer_learning.errors import UserError
from transfer_learning.storage.files import read_json, renamed, write_json
from transfer_learning.storage.run_directory import RunDir


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    variants: Mapping[str, RunConfig]
    learning_rates: tuple[float, ...]  # that are tried ahead, with the first seed; none: the configs' own
    first_seed: int
    num_seeds: int = 3
    reach: tuple[float, ...] = (0.5, 0.8, 0.9)  # validation accuracies, 0..1, whose time is asked for
    reasons: tuple[str, ...] = ()  # of what was chosen automatically
    command: str = ""  # that began it

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.num_seeds)

    def searched_rate(self, config: RunConfig) -> float | None:
        """The rate that stands in the name of a run with this config: none where no rate was searched."""
        return config.phase(last_phase(config)).learning_rate if self.learning_rates else None

    @property
    def identity(self) -> str:
        """A text that two plans share whose runs are the same."""
        return json.dumps([dataclasses.asdict(self)["variants"], self.learning_rates, self.first_seed])

    def difference(self, other: "Plan") -> list[str]:
        """In words, what differs so that runs of the one could not be taken for runs of the other.

        More or fewer seeds, and other accuracies to reach, leave the runs what they are.
        """
        found = []
        if list(self.variants) != list(other.variants):
            found.append(f"the variants are {', '.join(self.variants)}, not {', '.join(other.variants)}")
        for name in (name for name in self.variants if name in other.variants):
            before, after = flat(self.variants[name]), flat(other.variants[name])
            found += [
                f"{field} of {name} is {before[field]}, not {after[field]}"
                for field in before
                if before[field] != after[field]
            ]
        for field, words in (("learning_rates", "--learning-rates"), ("first_seed", "--seed")):
            if getattr(self, field) != getattr(other, field):
                found.append(f"{words} is {_in_words(getattr(self, field))}, not {_in_words(getattr(other, field))}")
        return found


class ComparisonDir:
    """The paths inside the directory of one comparison."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    @property
    def plan(self) -> Path:
        """What was asked for: the variants with their configs, the seeds, the rates to try."""
        return self.path / "plan.json"

    @property
    def diverged(self) -> Path:
        """The runs of the search for a learning rate that diverged, each with its sentence."""
        return self.path / "diverged.json"

    @property
    def results(self) -> Path:
        """Every number of the comparison."""
        return self.path / "comparison.json"

    @property
    def table(self) -> Path:
        """A row a run."""
        return self.path / "comparison.csv"

    @property
    def figure(self) -> Path:
        """The learning curves side by side."""
        return self.path / "learning_curves.png"

    @property
    def page(self) -> Path:
        return self.path / "compare.html"

    def run(self, variant: str, seed: int, learning_rate: float | None = None) -> RunDir:
        """The run of one variant with one seed, and with a rate that is searched."""
        rate = "" if learning_rate is None else f"-{learning_rate:g}"
        return RunDir(self.path / f"{variant}{rate}-seed{seed}")

    def locked(self):
        """Holds the directory for this process; see `RunDir.locked`."""
        return RunDir(self.path).locked()

    def read_plan(self) -> Plan:
        """The plan; UserError where the file is missing or damaged."""
        values = renamed(read_json(self.plan), {"sides": "variants"})
        try:
            variants = {
                name: RunConfig.from_json(json.dumps(config), f"the config of {name} in {self.plan}")
                for name, config in values.pop("variants").items()
            }
            return Plan(
                variants, **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.plan} is not what `compare` writes (at {error}); restore it, or compare anew."
            ) from None

    def write_plan(self, plan: Plan) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.plan, dataclasses.asdict(plan))


def last_phase(config: RunConfig) -> str:
    """The phase that a run ends with."""
    return "fine_tune" if config.fine_tune.epochs else "frozen"


def _in_words(value: int | tuple[float, ...]) -> str:
    return (",".join(f"{rate:g}" for rate in value) or "none") if isinstance(value, tuple) else str(value)
