"""The configs that a comparison trains: those that --config names, or a suitable pair."""

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

from transfer_learning.cli.flags import add_config_flags, given_values
from transfer_learning.cli.parser import Parser
from transfer_learning.config import RunConfig, difference, flag_name, flat, values_from_json, with_values
from transfer_learning.datasets.sources.registry import scheme_of
from transfer_learning.errors import UserError
from transfer_learning.models.backbones import find_backbone
from transfer_learning.recipes.resolve import config_from_values, recipe_for
from transfer_learning.recipes.variants import VARIANTS, pretrained_or_scratch

# Must be equal in all variants, so that all train and are evaluated on the same images.
DATA_FIELDS = (
    "dataset data_dir val_fraction test_fraction group_by corrections unseen_classes skip_unreadable seed".split()
)


def choose_variants(
    values: dict[str, Any], texts: list[str], epochs: int | None
) -> tuple[dict[str, RunConfig], list[str]]:
    """Returns the configs by name, and the reasons for settings that were chosen without a recipe.

    Args:
        values: config fields for all variants, by the names that `config.with_values` takes.
        texts: ``NAME=FILE`` or ``NAME=FLAGS``, one per variant; empty: a pretrained network and one from scratch.
        epochs: of each variant in total; None: as its config says.

    Raises:
        UserError: a variant cannot be read or contradicts itself, or the comparison would not be fair.
    """
    _check_no_time_limit(values)
    variants, reasons = _named_variants(texts, values) if texts else _suitable_variants(values)
    if epochs is not None:
        variants = {name: with_epochs(name, config, epochs) for name, config in variants.items()}
    for config in variants.values():
        config.check()
        find_backbone(config.backbone).check_unfreeze(config.fine_tune.unfreeze)
    _check_fairness(variants)
    return variants, reasons


def with_epochs(name: str, config: RunConfig, epochs: int) -> RunConfig:
    """The config with this total number of epochs; those of the frozen phase stay as they are."""
    if config.fine_tune.epochs == 0:
        return with_values(config, {"frozen.epochs": epochs})
    if epochs <= config.frozen.epochs:
        raise UserError(
            f"--epochs {epochs} leaves none for the fine-tune phase of {name}, whose frozen phase has "
            f"{config.frozen.epochs}; give more, or --frozen.epochs and --fine-tune.epochs instead."
        )
    return with_values(config, {"fine_tune.epochs": epochs - config.frozen.epochs})


def _suitable_variants(values: dict[str, Any]) -> tuple[dict[str, RunConfig], list[str]]:
    """A pretrained network and a small one from scratch; a given --weights is for the former."""
    recipe, reason_of, values = recipe_for(values)
    make_variants = VARIANTS.get(scheme_of(values["dataset"])[0] or values["dataset"], pretrained_or_scratch)
    variants = make_variants(recipe)
    changed = {
        name for variant in variants.values() for name, value in flat(variant).items() if value != flat(recipe)[name]
    }
    reasons = [reason for name, reason in reason_of.items() if name not in changed and name not in values]
    for name, variant in variants.items():
        own = {key: value for key, value in values.items() if variant.weights != "none" or key != "weights"}
        variants[name] = with_values(variant, own)
    return variants, reasons


def _named_variants(texts: list[str], values: dict[str, Any]) -> tuple[dict[str, RunConfig], list[str]]:
    variants, reasons = {}, []
    for text in texts:
        found = re.fullmatch(r"(\w[\w.-]*)=(.*)", text, re.DOTALL)
        if not found:
            form = "NAME=FILE.json or NAME='FLAGS', NAME of letters, digits, - and _"
            raise UserError(f"--config {text} has no name; give {form}.")
        name, what = found.groups()
        if name in variants:
            raise UserError(f"--config {name} is given twice; give each variant its own name.")
        own = _values_of_flags(what) if what.startswith("-") or not what.strip() else _values_of_file(Path(what))
        variants[name], variant_reasons = config_from_values(own | values)
        reasons += [f"{name}: {reason}" for reason in variant_reasons]
    return variants, reasons


def _values_of_flags(text: str) -> dict[str, Any]:
    parser = Parser("compare")
    add_config_flags(parser)
    try:
        values = given_values(parser.parse_args(shlex.split(text)))
    except ValueError as error:  # a quotation mark is missing
        raise UserError(f"--config {text} cannot be read ({error}); give flags as on the command line.") from None
    _check_no_time_limit(values)
    return values


def _check_no_time_limit(values: dict[str, Any]) -> None:
    if "time_limit" in values:
        raise UserError(
            "--time-limit is for run; a comparison has the same --epochs for each variant, so leave it out."
        )


def _values_of_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"There is no file {path}; --config takes NAME=FILE.json or NAME='FLAGS'.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give the config.json of a run, or parts of it.") from None
    return values_from_json(text, str(path))


def _check_fairness(variants: dict[str, RunConfig]) -> None:
    """Raises UserError unless there are two or more different variants with the same data and number of epochs."""
    if len(variants) < 2:
        raise UserError(
            f"--config names one variant, {next(iter(variants))}; give at least two, each with its own --config."
        )
    for (name, config), (other_name, other) in itertools.combinations(variants.items(), 2):
        for field in DATA_FIELDS:
            values = getattr(config, field), getattr(other, field)
            one, two = ("empty" if value == "" else value for value in values)
            if one != two:
                raise UserError(
                    f"The {field} of {name} is {one} and of {other_name} {two}, but must be the same; give "
                    f"--{flag_name(field)} outside of --config."
                )
        if not difference(config, other):
            raise UserError(
                f"The variants {name} and {other_name} have the same config; give different flags inside --config "
                "(flags outside apply to all variants)."
            )
        if config.num_epochs != other.num_epochs:
            raise UserError(
                f"{name} trains {config.num_epochs} epochs and {other_name} {other.num_epochs}, which must be equal; "
                "give --epochs outside of --config."
            )
