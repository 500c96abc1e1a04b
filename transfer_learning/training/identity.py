"""The identity of a run: its checkpoints continue only a run with the same config, dataset and initial weights."""

import dataclasses
import json
import logging

from transfer_learning.config import RunConfig, difference, named
from transfer_learning.errors import UserError
from transfer_learning.storage.files import renamed
from transfer_learning.storage.run_directory import RunDir

logger = logging.getLogger(__name__)

ADDED = ("keras_settings", "workers")  # to the runtime fingerprint since the first version


@dataclasses.dataclass(frozen=True)
class Identity:
    """What decides the bits of a run. All but the runtime must agree, which changes the last bits only."""

    config: RunConfig
    dataset: str  # fingerprint of the manifest
    initial_weights: str  # SHA-256 of the network before the first train step
    runtime: dict[str, str]  # runtime fingerprint: versions, device, flags

    def to_values(self) -> dict:
        return dataclasses.asdict(self) | {"config": json.loads(self.config.to_json())}

    def check(self, values: dict, run_dir: RunDir) -> None:
        """Compares with the `to_values` of a checkpoint in `run_dir`; logs changes of the runtime. UserError if it
        belongs to another config, dataset or network.
        """
        values = renamed(values, {"surroundings": "runtime"})
        config = RunConfig.from_json(json.dumps(values["config"]), f"the config inside {run_dir.checkpoint}")
        if fields := difference(config, self.config, may_have_moved=True):
            raise UserError(
                f"{run_dir.path} was trained with another config ({named(fields)}); restore it, or start a new run."
            )
        if values["dataset"] != self.dataset:
            raise UserError(
                f"The images, labels, splits or classes of {self.config.dataset} have changed since {run_dir.path} was "
                "started; restore them, or start a new run."
            )
        if values["initial_weights"] != self.initial_weights:
            raise UserError(
                f"{config.backbone} ({config.weights} weights, seed {config.seed}) has other initial weights than when "
                f"{run_dir.path} was started; restore the weights file or the version, or start a new run."
            )
        before = values["runtime"]
        changed = [
            f"{name} was {before.get(name)}, is {value}"
            for name, value in self.runtime.items()
            if before.get(name) != value and (name in before or name not in ADDED)
        ]
        if changed:
            logger.warning(
                f"The runtime has changed ({'; '.join(changed)}), so the last bits of the result may differ."
            )
