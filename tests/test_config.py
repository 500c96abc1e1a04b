"""The config: contradictions are refused in one sentence, and JSON gives back the same values."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from transfer_learning.config import PHASES, Phase, RunConfig, difference, flat, values_from_options, with_values
from transfer_learning.errors import UserError
from transfer_learning.recipes.known import RECIPES

CONTRADICTIONS = {  # fields that differ from the default, and what the sentence has to name
    "image too small": ({"image_size": 4}, ["--image-size 4", "at least 8"]),
    "negative input size": ({"input_size": -1}, ["--input-size -1"]),
    "no batch": ({"batch_size": 0}, ["--batch-size 0"]),
    "parts that do not divide": (
        {"gradient_accumulation_steps": 5},
        ["--gradient-accumulation-steps 5", "--batch-size 32"],
    ),
    "no part": ({"gradient_accumulation_steps": 0}, ["--gradient-accumulation-steps 0"]),
    "layer without width": ({"head": (512, 0)}, ["--head", "512,256"]),
    "everything dropped": ({"dropout": 1.0}, ["--dropout 1.0"]),
    "dropout not a number": ({"dropout": float("nan")}, ["--dropout nan"]),
    "negative seed": ({"seed": -1}, ["--seed -1"]),
    "seed too large": ({"seed": 2**31}, ["--seed 2147483648", "2147483647"]),
    "all smoothed": ({"label_smoothing": 1.0}, ["--label-smoothing 1.0"]),
    "nothing left to train on": (
        {"val_fraction": 0.5, "test_fraction": 0.5},
        ["--val-fraction 0.5", "--test-fraction 0.5"],
    ),
    "negative fraction": ({"val_fraction": -0.1}, ["--val-fraction -0.1"]),
    "negative time": ({"checkpoint_seconds": -1.0}, ["--checkpoint-seconds -1.0"]),
    "no epoch at all": ({"frozen.epochs": 0}, ["--frozen.epochs", "--fine-tune.epochs"]),
    "unfrozen while frozen": ({"frozen.unfreeze": "all"}, ["--frozen.unfreeze all", "--fine-tune.unfreeze"]),
    "closed while fine-tuning": ({"fine_tune.epochs": 2, "fine_tune.unfreeze": "none"}, ["--fine-tune.unfreeze none"]),
    "random and frozen": ({"weights": "none"}, ["--weights none", "--frozen.epochs 0"]),
    "random and half frozen": (
        {"weights": "none", "frozen.epochs": 0, "fine_tune.epochs": 2, "fine_tune.unfreeze": "conv5"},
        ["--weights none", "--fine-tune.unfreeze conv5", "--fine-tune.unfreeze all"],
    ),
    "unknown choice": ({"resize": "squach"}, ["--resize squach", "Did you mean squash?"]),
    "unknown choice of a phase": ({"frozen.optimizer": "adm"}, ["--frozen.optimizer adm", "adam"]),
    "negative epochs": ({"frozen.epochs": -1}, ["--frozen.epochs -1"]),
    "no learning rate": ({"frozen.learning_rate": 0.0}, ["--frozen.learning-rate 0.0"]),
    "learning rate not a number": ({"frozen.learning_rate": float("nan")}, ["--frozen.learning-rate nan"]),
    "infinite learning rate": ({"frozen.learning_rate": float("inf")}, ["--frozen.learning-rate inf"]),
    "momentum of 1": ({"frozen.momentum": 1.0}, ["--frozen.momentum 1.0"]),
    "negative decay": ({"frozen.weight_decay": -0.1}, ["--frozen.weight-decay -0.1"]),
    "decay without adamw": ({"frozen.weight_decay": 0.1}, ["--frozen.weight-decay", "--frozen.optimizer adamw"]),
    "negative patience": ({"frozen.patience": -1}, ["--frozen.patience -1"]),
    "plateau at once": ({"frozen.plateau_patience": 0}, ["--frozen.plateau-patience 0"]),
    "triangle without height": (
        {"frozen.schedule": "triangular2", "frozen.min_learning_rate": 0.01, "frozen.learning_rate": 0.01},
        ["--frozen.min-learning-rate 0.01"],
    ),
    "triangle without length": (
        {"frozen.schedule": "triangular2", "frozen.cycle_epochs": 0.0},
        ["--frozen.cycle-epochs 0.0"],
    ),
    "triangle with a warm-up": (
        {"frozen.schedule": "triangular2", "frozen.warmup_epochs": 1.0},
        ["--frozen.warmup-epochs 1.0", "triangular2"],
    ),
    "cycle that begins above its top": (
        {"frozen.schedule": "one_cycle", "frozen.div_factor": 0.5},
        ["--frozen.div-factor 0.5"],
    ),
    "one copy": ({"frozen.augmentation": "light", "frozen.copies": 1}, ["--frozen.copies 1", "2 or more"]),
    "copies without augmentation": ({"frozen.copies": 4}, ["--frozen.copies 4", "--frozen.augmentation none"]),
    "a cache of negative size": ({"cache_gb": -1.0}, ["--cache-gb -1.0"]),
    "decoded images of negative size": ({"decoded_gb": -1.0}, ["--decoded-gb -1.0"]),
    "plateau that raises": ({"frozen.plateau_factor": 2.0}, ["--frozen.plateau-factor 2.0"]),
    "warm-up longer than the phase": (
        {"frozen.warmup_epochs": 11.0},
        ["--frozen.warmup-epochs 11.0", "--frozen.epochs 10"],
    ),
    "phase of the second name": ({"fine_tune.epochs": 2, "fine_tune.momentum": -1.0}, ["--fine-tune.momentum -1.0"]),
}


@pytest.mark.parametrize(("values", "named"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_refuses_a_contradiction_and_names_the_flag(values, named):
    with pytest.raises(UserError) as caught:
        with_values(RunConfig(), values).check()
    for words in named:
        assert words in str(caught.value)


def test_the_default_and_every_recipe_contradict_nothing():
    for config in (RunConfig(), *(recipe() for recipe in RECIPES.values())):
        config.check()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_phase_of_any_recipe_can_be_left_out_by_its_epochs_alone(recipe, phase):
    """Settings of a skipped phase, such as a warm-up longer than 0 epochs, are not checked."""
    others = [name for name in PHASES if name != phase]
    if any(recipe().phase(name).epochs for name in others):  # else nothing would be trained
        with_values(recipe(), {f"{phase}.epochs": 0}).check()


def test_training_from_scratch_works_as_the_sentence_says():
    values = {"weights": "none", "frozen.epochs": 0, "fine_tune.epochs": 20, "fine_tune.learning_rate": 1e-3}
    with_values(RunConfig(), values | {"fine_tune.unfreeze": "all"}).check()


def test_the_recipe_of_a_dataset_trains_on_that_dataset():
    for name, recipe in RECIPES.items():  # where it is a kind of dataset, at some place
        assert recipe().dataset.partition(":")[0] == name


def test_json_gives_back_the_same_config():
    config = with_values(RunConfig(), {"head": (512, 256), "dataset": "Fotos für mich/Äpfel", "fine_tune.epochs": 3})
    assert RunConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["fine_tune"]["epochs"] == 3


def test_a_whole_number_is_read_as_a_fraction_where_one_is_expected():
    text = RunConfig().to_json().replace('"dropout": 0.0', '"dropout": 0')
    assert RunConfig.from_json(text) == RunConfig()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda values: "no JSON", "Expecting value"),
        (lambda values: [1], "it is not an object with fields"),
        (lambda values: values | {"colour": "red"}, "unknown field colour"),
        (lambda values: values | {"seed": "1"}, "seed is '1', not int"),
        (lambda values: values | {"seed": True}, "seed is True, not int"),
        (lambda values: values | {"flip": 1}, "flip is 1, not bool"),
        (lambda values: values | {"head": "512"}, "head is '512', not a list of int"),
        (lambda values: values | {"head": ["512"]}, "head is ['512'], not a list of int"),
        (lambda values: values | {"frozen": 3}, "frozen is 3, not an object with fields"),
        (lambda values: values | {"frozen": values["frozen"] | {"speed": 1}}, "unknown field frozen.speed"),
        (lambda values: values | {"frozen": values["frozen"] | {"epochs": None}}, "frozen.epochs is None, not int"),
    ],
)
def test_json_that_is_no_config_is_refused(change, named):
    changed = change(json.loads(RunConfig().to_json()))
    with pytest.raises(UserError, match="runs/a/config.json") as caught:
        RunConfig.from_json(changed if isinstance(changed, str) else json.dumps(changed), "runs/a/config.json")
    assert named in str(caught.value)


def test_a_field_that_a_file_lacks_takes_its_default():
    fields = json.loads(with_values(RunConfig(), {"seed": 3, "fine_tune.copies": 4}).to_json())
    del fields["seed"], fields["fine_tune"]["copies"], fields["format"]
    assert RunConfig.from_json(json.dumps(fields)) == RunConfig()


def test_names_and_values_of_earlier_versions_are_read():
    earlier = {
        "head_start": "auto",
        "held_out": "owl",
        "micro_batches": 2,
        "frozen": {"views": 4, "augmentation": "light", "lowest_rate": 1e-5, "start_divisor": 10, "end_divisor": 100},
        "fine_tune": {"open": "conv5"},
    }
    config = RunConfig.from_json(json.dumps(earlier))
    assert (config.head_init, config.unseen_classes, config.gradient_accumulation_steps) == ("ridge", "owl", 2)
    assert (config.frozen.copies, config.frozen.min_learning_rate, config.frozen.div_factor) == (4, 1e-5, 10.0)
    assert config.frozen.final_div_factor == 100.0 and config.fine_tune.unfreeze == "conv5"


def test_a_file_of_a_newer_format_is_refused():
    with pytest.raises(UserError, match="format 99 is of a newer version"):
        RunConfig.from_json('{"format": 99}')


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"dataset": Path("photos"), "seed": 1}, {"dataset": "photos", "seed": 1}),
        (
            {"fine_tune": {"epochs": 3}, "fine_tune.unfreeze": "all"},
            {"fine_tune.epochs": 3, "fine_tune.unfreeze": "all"},
        ),
        ({"head": (64,), "dropout": 0}, {"head": (64,), "dropout": 0.0}),
        ({"fine_tune": {"open": "all"}}, {"fine_tune.unfreeze": "all"}),
        (
            {"seed": np.int64(3), "head": [np.int32(8)], "frozen": {"learning_rate": np.float64(0.5)}},
            {"seed": 3, "head": (8,), "frozen.learning_rate": 0.5},
        ),
    ],
)
def test_options_of_python_are_fields_by_name_and_phase(options, values):
    assert values_from_options(options) == values


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epoch": 3}, "unknown field epoch"),
        ({"fine_tune": {"rate": 1}}, "unknown field fine_tune.rate"),
        ({"seed": "1"}, "seed is '1', not int"),
        ({"fine_tune": 3}, "fine_tune is 3, not an object with fields"),
        ({"fine_tune": 3, "fine_tune.epochs": 2}, "fine_tune is 3, not an object with fields"),
        ({"fine_tune": {"epochs": 3}, "fine_tune.epochs": 2}, "fine_tune.epochs is given as 3 and as 2"),
    ],
)
def test_an_option_that_is_no_field_is_named(options, named):
    with pytest.raises(UserError, match=named):
        values_from_options(options)


def test_values_are_set_by_the_names_under_which_they_are_listed():
    config = RunConfig()
    for name, value in flat(config).items():
        changed = with_values(config, {name: "another"})
        assert flat(changed)[name] == "another"
        assert [other for other in flat(config) if flat(changed)[other] != flat(config)[other]] == [name], value


def test_the_difference_names_what_decides_a_result_and_nothing_else():
    old = RunConfig()
    new = with_values(old, {"seed": 1, "fine_tune.epochs": 4, "csv_log": True, "cache_dir": "x", "data_dir": "y"})
    assert difference(old, old) == {}
    assert difference(old, new) == {"seed": (0, 1), "fine_tune.epochs": (0, 4)}


def test_a_phase_and_a_config_cannot_be_changed():
    for frozen, name in ((RunConfig(), "seed"), (Phase(), "epochs")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, name, 1)


def test_a_config_without_folding_is_of_a_version_that_did_not_fold():
    text = RunConfig().to_json()
    assert RunConfig.from_json(text).fold_batch_norm
    assert not RunConfig.from_json(text.replace('"fold_batch_norm": true,', "")).fold_batch_norm
