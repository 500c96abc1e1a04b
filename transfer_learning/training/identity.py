"""What a checkpoint belongs to: a run continues only from its own."""

import dataclasses
import json
import logging

from transfer_learning.config import RunConfig, difference, named
from transfer_learning.errors import UserError
from transfer_learning.storage.files import renamed
from transfer_learning.storage.run_directory import RunDir

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What decides the bits of a run. The first three must agree; other runtime only cost the last bits."""

    config: RunConfig
    dataset: str  # fingerprint of the manifest
    initial_weights: str  # SHA-256 of the network before the first update
    runtime: dict[str, str]  # versions, device, flags

    def to_values(self) -> dict:
        return dataclasses.asdict(self) | {"config": json.loads(self.config.to_json())}

    def check(self, values: dict, run_dir: RunDir) -> None:
        """Compares with the `to_values` of a checkpoint in `run_dir`; says which runtime have changed.

        Raises:
            UserError: the checkpoint belongs to another config, to other images or to another network.
        """
        values = renamed(values, {"surroundings": "runtime"})
        config = RunConfig.from_json(json.dumps(values["config"]), f"the config inside {run_dir.checkpoint}")
        if fields := difference(config, self.config):
            raise UserError(
                f"{run_dir.path} was trained with another config ({named(fields)}); restore it, or start a new run."
            )
        if values["dataset"] != self.dataset:
            raise UserError(
                f"The images, labels, splits or order of classes of {self.config.dataset} are not those that {run_dir.path} "
                "was trained on; restore them, or start a new run."
            )
        if values["initial_weights"] != self.initial_weights:
            raise UserError(
                f"The network that {config.backbone} ({config.weights} weights, seed {config.seed}) starts from is not the "
                f"one that {run_dir.path} started from; restore the weights file or the version, or start a new run."
            )
        changed = {
            name: (values["runtime"].get(name), value)
            for name, value in self.runtime.items()
            if values["runtime"].get(name) != value
        }
        if changed:
            was = ", ".join(f"{name} was {old} and is {new}" for name, (old, new) in changed.items())
            logger.info(
                f"The run continues in other runtime ({was}), so its last bits may differ from an unbroken run's."
            )
