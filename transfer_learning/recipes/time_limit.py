"""``--time-limit``: the number of epochs with which a run fits into a time, from its estimate.

Schedules follow the number of epochs, so they are stretched or shortened as a whole, and never cut.
"""

import math
from collections.abc import Callable, Collection
from typing import Any

from transfer_learning.cli.console import muted
from transfer_learning.config import RunConfig, with_values
from transfer_learning.datasets.dataset import Dataset, split_off_unseen
from transfer_learning.datasets.decoding.sample import sample_dataset
from transfer_learning.machine.devices import set_up_devices
from transfer_learning.models.classifier import build_classifier
from transfer_learning.models.standardization import standardized
from transfer_learning.recipes.deadline import Deadline
from transfer_learning.recipes.presets import CLOSED_FORM_ONLY
from transfer_learning.storage.cache import Cache
from transfer_learning.training.estimate import estimate_stages, measure_run
from transfer_learning.training.phase_builder import find_cuts

LONGEST = 3  # times as many epochs as the recipe has, at most


def check_decoding(config: RunConfig, dataset: Dataset, deadline: Deadline) -> None:
    """Raises UserError if the images cannot even be decoded in time."""
    sample = sample_dataset(dataset, config.stored_size, config.resize, Cache.of(config), config.decoded_gb)
    seconds = sample.missing_fraction * len(dataset.examples) / sample.images_per_second
    deadline.check(seconds, f"decoding {len(dataset.examples):,} images")


def fit_to_time(
    config: RunConfig, dataset: Dataset, given: Collection[str], deadline: Deadline
) -> tuple[dict[str, Any], dict[str, str]]:
    """Epochs, except for the `given` ones, with which the run ends in time, and reasons, by the name of their field.

    Raises:
        UserError: even the shortest run takes longer.
    """
    dataset = split_off_unseen(dataset, config.unseen_classes)
    with muted():  # the run logs it
        runtime = set_up_devices(config.precision, config.seed).fingerprint
        classifier = build_classifier(config, dataset.class_names)
        if config.head_features != "last":
            classifier = standardized(classifier)
        measured = measure_run(config, dataset, classifier, find_cuts(config, classifier), runtime)

    def estimated(config: RunConfig) -> float:
        return sum(stage.estimated_seconds or 0.0 for stage in estimate_stages(config, *measured))

    return fit_epochs(config, given, deadline, estimated)


def fit_epochs(
    config: RunConfig, given: Collection[str], deadline: Deadline, estimated: Callable[[RunConfig], float]
) -> tuple[dict[str, Any], dict[str, str]]:
    """As `fit_to_time`, with the seconds of a run with any config: most epochs of fine-tuning that fit, at most LONGEST
    times those of the config; if none fit, the closed form alone.
    """
    usual = config.fine_tune.epochs
    fewest = max(1, math.ceil(config.fine_tune.warmup_epochs))
    plans: list[dict[str, Any]] = [{}]
    if usual and "fine_tune.epochs" not in given:
        plans = [{"fine_tune.epochs": epochs} for epochs in range(LONGEST * usual, fewest - 1, -1)]
    if config.starts_from_closed_form and not {"fine_tune.epochs", "frozen.epochs"} & set(given):
        plans.append(CLOSED_FORM_ONLY)
    for plan in plans:
        values = {name: value for name, value in plan.items() if name not in given}
        if estimated(with_values(config, values)) <= deadline.left:
            break
    else:
        deadline.check(estimated(with_values(config, values)), "the shortest such run")
    if not values or (usual and values["fine_tune.epochs"] == usual):
        return {}, {}
    if not values["fine_tune.epochs"]:
        text = f"No fine-tuning: --time-limit {deadline.text} leaves no time for it, so the head of the frozen phase stays."
        return values, {"frozen.epochs": text}
    epochs = values["fine_tune.epochs"]
    return values, {
        "fine_tune.epochs": f"Fine-tuning: {epochs} epochs, as many as fit into --time-limit {deadline.text}."
    }
