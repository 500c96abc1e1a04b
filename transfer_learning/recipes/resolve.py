"""From flags to a config: the recipe of the dataset, or the automatic one, with the given values."""

import argparse
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from transfer_learning.cli.flags import given_values
from transfer_learning.cli.parser import quiet_start
from transfer_learning.config import NAMED_WEIGHTS, PHASES, RunConfig, flag_name, with_values
from transfer_learning.datasets.dataset import split_off_unseen
from transfer_learning.datasets.prepared import load_dataset_of
from transfer_learning.datasets.sources.registry import DATASETS, scheme_of
from transfer_learning.datasets.survey import survey
from transfer_learning.errors import UserError
from transfer_learning.models.backbones import find_backbone
from transfer_learning.models.earlier_run import earlier_run, names_run
from transfer_learning.recipes.auto import auto_recipe
from transfer_learning.recipes.deadline import Deadline
from transfer_learning.recipes.known import RECIPES
from transfer_learning.recipes.presets import is_closed_form_only, preset_values
from transfer_learning.storage.notes import Note, as_note
from transfer_learning.storage.run_directory import RunDir, new_run_dir

logger = logging.getLogger(__name__)


def resolve_config(flags: argparse.Namespace) -> tuple[RunConfig, list[Note | str]]:
    """Returns the config that the flags ask for and the reasons for automatic choices, which are logged."""
    return logged(config_from_values(given_values(flags)))


def logged(found: tuple[RunConfig, list[Note | str]]) -> tuple[RunConfig, list[Note | str]]:
    """Logs the reasons that `config_from_values` found, and returns both."""
    for reason in found[1]:
        logger.info(as_note(reason)["text"])
    return found


def new_run(values: dict[str, Any], path: str | os.PathLike | None) -> tuple[RunDir, RunConfig, list[Note | str]]:
    """The directory of a new run, which is `path` or one under ``runs/``, and what `config_from_values` measures for it.

    Raises:
        UserError: what `new_run_dir` and `recipe_for` raise.
    """
    new_run_dir(path, "")  # fails now, not after the settings are measured
    config, reasons = logged(config_from_values(values, measure=True))
    return new_run_dir(path, f"{Path(config.dataset).stem}-{config.backbone}"), config, reasons


def recipe_for(values: dict[str, Any]) -> tuple[RunConfig, dict[str, str], dict[str, Any]]:
    """Returns the recipe of the dataset in `values`, the reasons for its automatic choices, and `values` with full paths.

    Args:
        values: given ones, by the names that `config.with_values` takes.

    Returns:
        The recipe; reasons by the name of the field, empty for a known dataset; and the values.

    Raises:
        UserError: no dataset is given or it cannot be read, or the cache would be written among its images.
    """
    if "backbone" in values:
        find_backbone(values["backbone"])  # a misspelt name fails before the dataset is read
    if "preset" in values:
        replace(RunConfig(), preset=values["preset"]).check()
    if names_run(values.get("weights", "")):
        if "preset" in values:
            raise UserError(
                f"--preset {values['preset']} chooses settings, but a run that starts from {values['weights']} takes the "
                "settings of that run; leave --preset out, or start without that run."
            )
        return _config_of_earlier_run(values)
    if not values.get("dataset"):
        raise UserError(
            "--dataset is missing; name one of "
            f"{', '.join(DATASETS)}, a folder or a table, or continue a run with --resume or --from."
        )
    values = with_full_paths(values)
    _check_places(values)
    if recipe := _known_recipe(values):
        return recipe(), {}, values
    given = with_values(RunConfig(), values)
    dataset = split_off_unseen(load_dataset_of(given), given.unseen_classes)
    config, reasons = auto_recipe(values["dataset"], **survey(dataset)._asdict())
    config = replace(config, preset=values.get("preset", config.preset))
    preset, preset_reasons = preset_values(with_values(config, values), values)
    return with_values(config, preset), reasons | preset_reasons, values


def _known_recipe(values: dict[str, Any]) -> Callable[[], RunConfig] | None:
    scheme, _ = scheme_of(values["dataset"])
    return None if "preset" in values else RECIPES.get(scheme or values["dataset"])


def with_features_of_run(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """The config, with the features that `run` computes first: the automatic recipe compares heads on those of all maps."""
    is_given = "head_features" in values or _known_recipe(values) or names_run(config.weights)
    if is_given or not config.starts_from_closed_form or len(find_backbone(config.backbone).stages) < 2:
        return config
    return replace(config, head_features="all")


def _config_of_earlier_run(values: dict[str, Any]) -> tuple[RunConfig, dict[str, str], dict[str, Any]]:
    """As `recipe_for`, of a run that starts from a finished one: the config of that, for its dataset or another one."""
    values = with_full_paths(values)
    run_dir, config = earlier_run(values["weights"], values.get("backbone"))
    logger.info(f"Settings that you did not give are those of {values['weights']}.")
    had_validation = config.monitor.startswith("val") or run_dir.predictions("val").exists()
    is_other = values.get("dataset", config.dataset) != config.dataset
    if is_other:
        fields = ("unseen_classes", "corrections", "path_column", "label_column")  # of the other dataset
        config = with_values(config, {name: getattr(RunConfig, name) for name in fields})
    config = with_values(config, {"time_limit": ""})  # what fitted into it stays
    values = {"dataset": config.dataset} | values
    _check_places(values)
    changes, reasons = _changes_to_earlier_run(config, values, is_other and not had_validation)
    return with_values(config, changes), reasons, values


def _changes_to_earlier_run(
    config: RunConfig, values: dict[str, Any], may_validate: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns values that a run from an earlier one cannot take from its `config`, and the reasons, by the name of the field.

    Args:
        may_validate: other images than those of the earlier run, which had none for validation.
    """
    changes: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    if config.folds and "folds" not in values:
        changes["folds"] = 0
        reasons["folds"] = f"No folds: the weights of {values['weights']} may have been trained on their images."
    fraction = values.get("val_fraction", config.val_fraction or (RunConfig.val_fraction if config.folds else 0.0))
    may_validate = may_validate and fraction > 0
    if may_validate:
        changes |= {"val_fraction": fraction, "monitor": f"val_{config.monitor.removeprefix('val_')}"}
        reasons["monitor"] = (
            f"Monitor {changes['monitor']}, with --val-fraction {fraction}: {values['weights']} had no validation images."
        )
    given = with_values(config, values)
    trains = may_validate or "frozen.epochs" in values or not given.starts_from_closed_form
    if is_closed_form_only(config) and trains:
        dataset = split_off_unseen(load_dataset_of(given), given.unseen_classes)
        frozen = auto_recipe(given.dataset, **survey(dataset)._asdict())[0].frozen
        changes |= {"frozen.epochs": frozen.epochs, "frozen.learning_rate": frozen.learning_rate}
        reasons["frozen.epochs"] = (
            f"Frozen phase: at most {frozen.epochs} epochs with early stopping; {values['weights']} has trained none."
        )
    return changes, reasons


def with_full_paths(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with ``~`` expanded, and with absolute paths of what exists: else --resume would work in one folder only."""
    values = dict(values)
    for name, known in (("dataset", DATASETS), ("weights", NAMED_WEIGHTS), ("corrections", ())):
        if values.get(name) and values[name] not in known:
            values[name] = os.path.expanduser(values[name])
            if Path(values[name]).exists():
                values[name] = os.path.abspath(values[name])
    for name in ("data_dir", "cache_dir", "feature_store"):
        if name in values:
            values[name] = os.path.expanduser(values[name])
    scheme, place = scheme_of(values.get("dataset", ""))
    if scheme:
        place = os.path.expanduser(place)
        path, *options = [place] if Path(place).exists() else place.split(",")
        if Path(path).exists():
            values["dataset"] = f"{scheme}:{','.join([os.path.abspath(path), *options])}"
    return values


def _check_places(values: dict[str, Any]) -> None:
    """Raises UserError if the cache would be written among the user's images, where it would be read as a class."""
    images = Path(values["dataset"])
    if values["dataset"] in DATASETS or not images.is_dir():
        return
    for name in ("cache_dir", "data_dir"):
        place = values.get(name, getattr(RunConfig, name))
        if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(images)):
            raise UserError(
                f"--{flag_name(name)} {place} is inside the image folder {images}, where nothing may be written; change to "
                "another directory, or pass other folders with --data-dir and --cache-dir."
            )


def config_from_values(values: dict[str, Any], measure: bool = False) -> tuple[RunConfig, list[Note | str]]:
    """Returns the config of a dataset with these values, and the reasons for automatic choices of other fields.

    Args:
        values: given ones, by the names that `config.with_values` takes.
        measure: whether the automatic recipe compares settings on the images, for which it decodes them.
    """
    deadline = Deadline(values.get("time_limit", ""))
    config, reason_by_field, values = recipe_for(values)
    config = with_values(config, values)
    config.check()
    if "frozen.epochs" in reason_by_field and not config.starts_from_closed_form and "frozen.epochs" not in values:
        longer = {"frozen.epochs": 3 * config.frozen.epochs, "frozen.patience": 5, "frozen.learning_rate": 1e-3}
        config = with_values(config, {name: value for name, value in longer.items() if name not in values})
        start = "that of the earlier run" if names_run(config.weights) else "random weights"
        reason_by_field["frozen.epochs"] = (
            f"Frozen phase: at most {config.frozen.epochs} epochs with early stopping; the head starts from {start}."
        )
    if measure and deadline:
        with quiet_start(in_command=True):  # imports TensorFlow
            from transfer_learning.recipes.time_limit import check_decoding, fit_to_time
        check_decoding(config, load_dataset_of(config), deadline)
    notes: list[Note | str] = []
    if measure and reason_by_field and not names_run(config.weights):
        with quiet_start(in_command=True):  # imports TensorFlow
            from transfer_learning.recipes.measure import measured_choices
        measured, measured_reasons, candidates = measured_choices(config, load_dataset_of(config), values, deadline)
        if candidates:  # the report of the run shows their table
            text = f"{len(candidates)} candidates were compared; the report has their table."
            notes = [{"level": "info", "text": text, "candidates": [one._asdict() for one in candidates]}]
        config = with_values(config, measured)
        reason_by_field |= measured_reasons
    if config.folds and not config.fine_tune.epochs and "val_fraction" not in values:
        config = with_values(config, {"val_fraction": 0.0})
        reason_by_field["val_fraction"] = (
            "No validation images: the head trains on all images that are not for testing; "
            f"{config.folds} folds estimate its accuracy."
        )
    backbone = find_backbone(config.backbone)
    try:
        backbone.check_unfreeze(config.fine_tune.unfreeze)
    except UserError:
        if "fine_tune.unfreeze" in values:
            raise
        reason_by_field["fine_tune.unfreeze"] = (
            f"Fine-tuning unfreezes the upper 0.3 of the layers: {config.backbone} has no stage "
            f"{config.fine_tune.unfreeze}."
        )
        config = with_values(config, {"fine_tune.unfreeze": "0.3"})
    if measure and deadline:
        fitted, fitted_reasons = fit_to_time(config, load_dataset_of(config), values, deadline)
        config = with_values(config, fitted)
        reason_by_field |= fitted_reasons
    skipped = tuple(f"{phase}." for phase in PHASES if config.phase(phase).epochs == 0)
    reasons = [
        reason
        for name, reason in reason_by_field.items()
        if (name not in values or name in ("preset", "time_limit")) and not name.startswith(skipped)
    ]
    return config, [*reasons, *notes]
