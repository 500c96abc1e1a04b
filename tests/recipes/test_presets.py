"""Presets: what each tries and trains, only with weights that are here, and for a dataset with its own recipe too."""

import dataclasses

import pytest

from transfer_learning.config import RunConfig, with_values
from transfer_learning.models.backbones import BACKBONES
from transfer_learning.recipes.auto import auto_recipe
from transfer_learning.recipes.presets import PRESETS, backbones_to_compare, preset_values, sizes_to_compare
from transfer_learning.recipes.resolve import config_from_values

PHOTOS = dict(num_images=400, num_classes=4, smallest_class=100, largest_class=100, short_side=500)


def recipe(preset, **changes):
    config, _ = auto_recipe("photos", **PHOTOS | changes)
    config = dataclasses.replace(config, preset=preset)
    return with_values(config, preset_values(config)[0]), preset_values(config)[1]


@pytest.mark.parametrize(
    ("preset", "sizes", "factor"), [("fast", [160], 0), ("balanced", [160, 224], 1), ("best", [160, 224, 288], 2)]
)
def test_a_preset_decides_sizes_and_fine_tuning(preset, sizes, factor):
    config, reasons = recipe(preset)
    config.check()
    usual = auto_recipe("photos", **PHOTOS)[0]
    assert sizes_to_compare(config) == sizes and config.image_size in sizes
    assert config.fine_tune.epochs == factor * usual.fine_tune.epochs
    assert (config == usual) == (preset == "balanced") == (not reasons)
    assert all(reason.endswith(".") for reason in reasons.values())


@pytest.mark.parametrize(("preset", "sizes"), [("fast", [96]), ("balanced", [96, 224]), ("best", [96, 224])])
def test_small_images_are_enlarged_to_96_or_224_pixels(preset, sizes):
    config, _ = recipe(preset, short_side=28)
    assert sizes_to_compare(config) == sizes and config.image_size == 96
    assert sizes_to_compare(dataclasses.replace(config, image_size=260)) == [260]


@pytest.mark.parametrize(
    ("preset", "changes", "expected"),
    [
        ("balanced", {}, []),
        ("best", {}, ["efficientnet_lite1", "efficientnet_lite2"]),
        ("best", {"backbone": "efficientnet_lite1"}, ["efficientnet_lite2"]),
        ("best", {"weights": "mine.h5"}, []),
    ],
)
def test_larger_backbones_are_compared_if_their_weights_are_here(preset, changes, expected, monkeypatch):
    config = dataclasses.replace(recipe(preset)[0], **changes)
    assert backbones_to_compare(config) == expected
    missing = dataclasses.replace(BACKBONES["efficientnet_lite2"], weights_package="no-such-package")
    monkeypatch.setitem(BACKBONES, "efficientnet_lite2", missing)
    assert backbones_to_compare(config) == [name for name in expected if name != "efficientnet_lite2"]


def test_the_fast_preset_trains_a_head_that_has_no_closed_form_and_epochs_that_are_given():
    fast = {"dataset": "digits", "preset": "fast"}
    assert config_from_values(fast)[0].frozen.learning_rate == 1e-9
    hidden, usual = (config_from_values(fast | {"head": (64,), "preset": one})[0] for one in ("fast", "balanced"))
    assert hidden.frozen == usual.frozen and hidden.frozen.epochs > 3 and hidden.fine_tune.epochs == 0
    longer = config_from_values(fast | {"frozen.epochs": 10})[0]
    assert longer.frozen.epochs == 10 and longer.frozen.learning_rate == 3e-4 and longer.fine_tune.epochs == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_replaces_the_recipe_of_a_known_dataset(preset):
    config, reasons = config_from_values({"dataset": "digits", "preset": preset, "fine_tune.patience": 4})
    assert config.preset == preset and config.fine_tune.patience == 4 and reasons
    assert (config.fine_tune.epochs == 0) == (preset == "fast")
    assert config_from_values({"dataset": "digits"})[0].preset == RunConfig.preset
