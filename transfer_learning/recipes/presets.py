"""How much the automatic recipe tries and trains; a new preset is a row of `PRESETS`."""

from collections.abc import Collection
from typing import Any, NamedTuple

from transfer_learning.config import RunConfig
from transfer_learning.models.backbones import find_backbone

LARGE_ENOUGH = (160, 224)  # image sizes of the recipe that others may replace
USUAL_SIZE = 224  # that the backbones were trained with
# A tiny step: what is shipped is the closed form.
CLOSED_FORM_ONLY = {"fine_tune.epochs": 0, "frozen.epochs": 1, "frozen.learning_rate": 1e-9}
WHY_ONE_EPOCH = "Frozen phase: 1 epoch at a tiny learning rate, which keeps the closed-form head."


class Preset(NamedTuple):
    """What is compared by leave-one-out loss, and for how long the chosen network is fine-tuned."""

    description: str
    image_sizes: tuple[int, ...]  # the cheapest first
    backbones: tuple[str, ...]  # beside that of the recipe, if their weights are installed; the cheapest first
    epochs: int  # of fine-tuning, in units of the recipe's; 0: the closed form is the result


PRESETS = {
    "fast": Preset("the closed-form head at 160 pixels (or --image-size), no fine-tuning", (160,), (), 0),
    "balanced": Preset("the head at 160 and 224 pixels, fine-tuning", (160, 224), (), 1),
    "best": Preset(
        "also 288 pixels and larger backbones, twice the fine-tuning",
        (160, 224, 288),
        ("efficientnet_lite1", "efficientnet_lite2"),
        2,
    ),
}


def sizes_to_compare(config: RunConfig) -> list[int]:
    """The image sizes to compare, the cheapest first."""
    sizes = list(PRESETS[config.preset].image_sizes)
    if config.image_size in LARGE_ENOUGH:
        return sizes
    return [config.image_size, *(size for size in sizes if size == USUAL_SIZE > config.image_size)]


def backbones_to_compare(config: RunConfig) -> list[str]:
    """Backbones to compare with that of the config: those of its preset whose weights are here."""
    if config.weights != "imagenet":
        return []
    names = [name for name in PRESETS[config.preset].backbones if name != config.backbone]
    return [name for name in names if find_backbone(name).weights_status() in ("installed", "downloaded")]


def closed_form_only(given: Collection[str]) -> dict[str, Any]:
    """The values with which the closed form is shipped; epochs of the frozen phase that are given do train the head."""
    skipped = "frozen.learning_rate" if "frozen.epochs" in given else ""
    return {name: value for name, value in CLOSED_FORM_ONLY.items() if name != skipped}


def is_closed_form_only(config: RunConfig) -> bool:
    """Whether a run with this config ships a closed form, trained at the rate of this or an earlier version."""
    is_tiny = config.frozen.epochs == 1 and config.frozen.learning_rate <= 1e-5
    return is_tiny and config.fine_tune.epochs == 0 and config.starts_from_closed_form


def preset_values(config: RunConfig, given: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """What the preset changes in a config of the automatic recipe, and the reasons, by the name of the field.

    Args:
        config: with the values of the `given` fields.
    """
    preset = PRESETS[config.preset]
    values: dict[str, Any] = {}
    reasons = {"preset": f"Preset {config.preset}: {preset.description}."} if config.preset != RunConfig.preset else {}
    if config.image_size not in sizes_to_compare(config):
        values["image_size"] = sizes_to_compare(config)[0]
    if preset.epochs == 0 and not config.starts_from_closed_form:
        values["fine_tune.epochs"] = 0
    elif preset.epochs == 0:
        values |= closed_form_only(given)
        reasons["frozen.epochs"] = WHY_ONE_EPOCH
    elif preset.epochs > 1:
        epochs = values["fine_tune.epochs"] = preset.epochs * config.fine_tune.epochs
        reasons["fine_tune.epochs"] = f"Fine-tuning: {epochs} epochs, a low learning rate that falls to 0."
    return values, reasons
