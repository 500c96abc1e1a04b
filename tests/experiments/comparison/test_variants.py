"""The configs of a comparison: a suitable pair, those that --config names, and unfair comparisons."""

import json
import shlex

import pytest

from transfer_learning import compare
from transfer_learning.cli.flags import given_values
from transfer_learning.config import RunConfig, difference, flat
from transfer_learning.errors import UserError
from transfer_learning.experiments.comparison.variants import choose_variants
from transfer_learning.recipes.known import RECIPES


def chosen(words):
    flags = compare.parse(words)
    return choose_variants(given_values(flags), flags.config or [], flags.epochs)


def variants(text, *more):
    return chosen([*shlex.split(text), *map(str, more)])[0]


def test_every_recipe_has_two_variants_that_differ_in_network_weights_and_rate_alone():
    for name in RECIPES:
        found = variants(f"--dataset {name}")
        assert list(found) == ["pretrained", "scratch"]
        pretrained, scratch = found.values()
        assert set(difference(pretrained, scratch)) == {"backbone", "weights", "fine_tune.learning_rate"}
        assert (pretrained.weights, scratch.weights, scratch.backbone) == ("imagenet", "none", "small_cnn")
        for variant in (pretrained, scratch):
            assert variant.dataset == name and variant.head == () and variant.frozen.epochs == 0
            assert (variant.fine_tune.optimizer, variant.fine_tune.unfreeze, variant.fine_tune.schedule) == (
                "adam",
                "all",
                "constant",
            )


def test_cifar10_is_resnet18_against_the_small_cnn_on_its_own_pixels():
    pretrained, scratch = variants("--dataset cifar10").values()
    assert pretrained.backbone == "resnet18" and pretrained.fine_tune.augmentation == "padded_crop" and pretrained.flip
    assert pretrained.stored_size == pretrained.image_size == scratch.image_size == 32


def test_drawn_pills_needs_no_download():
    assert variants("--dataset drawn_pills")["pretrained"].backbone == "efficientnet_lite0"


def test_a_folder_has_the_same_two_variants_and_their_reasons(photos):
    found, reasons = chosen(["--dataset", str(photos)])
    assert list(found) == ["pretrained", "scratch"] and found["scratch"].dataset == str(photos)
    assert any("cached at 16, the images' own size" in reason for reason in reasons)
    assert not any("Frozen phase" in reason or "Fine-tuning" in reason for reason in reasons), "the pair has its own"


def test_flags_apply_to_all_variants():
    for variant in variants("--dataset digits --image-size 64 --fine-tune.epochs 7 --seed 5").values():
        assert (variant.image_size, variant.fine_tune.epochs, variant.seed) == (64, 7, 5)
    with pytest.raises(UserError, match="have the same config"):
        variants("--dataset digits --backbone small_cnn --weights none --fine-tune.learning-rate 1e-3")


def test_given_weights_are_where_the_pretrained_variant_starts():
    found = variants("--dataset cifar10 --weights", __file__)  # whatever it holds
    assert [variant.weights for variant in found.values()] == [__file__, "none"]
    assert [variant.backbone for variant in found.values()] == ["resnet18", "small_cnn"]
    same_network = variants("--dataset cifar10 --backbone resnet18")
    assert [variant.weights for variant in same_network.values()] == ["imagenet", "none"]
    assert {variant.backbone for variant in same_network.values()} == {"resnet18"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--dataset digits --epochs 4", [(0, 4), (0, 4)]),
        ("--dataset digits --epochs 9 --config a= --config 'b=--dropout 0.5'", [(3, 6), (3, 6)]),
        ("--dataset digits --epochs 9 --config a= --config 'b=--fine-tune.epochs 0'", [(3, 6), (9, 0)]),
        ("--dataset digits --epochs 9 --config a= --config 'b=--frozen.epochs 0'", [(3, 6), (0, 9)]),
    ],
)
def test_epochs_are_those_of_both_phases(text, expected):
    assert [(variant.frozen.epochs, variant.fine_tune.epochs) for variant in variants(text).values()] == expected


def test_a_variant_is_named_by_flags_or_by_a_file_that_holds_all_or_some_fields(tmp_path):
    whole, part = tmp_path / "config.json", tmp_path / "part.json"
    config = RECIPES["digits"]()
    whole.write_text(config.to_json())
    part.write_text(json.dumps({"head": [64], "fine_tune": {"learning_rate": 1e-4}}))
    found = variants(
        "--dataset digits --batch-size 64 --config 'flags=--dropout 0.5'",
        "--config",
        f"whole={whole}",
        "--config",
        f"part={part}",
    )
    recipe = flat(config) | {"batch_size": 64}
    assert flat(found["whole"]) == recipe
    assert flat(found["flags"]) == recipe | {"dropout": 0.5}
    assert flat(found["part"]) == recipe | {"head": (64,), "fine_tune.learning_rate": 1e-4}


def test_a_file_may_name_the_dataset(tmp_path):
    for name, dropout in (("a", 0.1), ("b", 0.2)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"dataset": "digits", "dropout": dropout}))
    found = variants("--config", f"a={tmp_path}/a.json", "--config", f"b={tmp_path}/b.json")
    assert [(variant.dataset, variant.dropout) for variant in found.values()] == [("digits", 0.1), ("digits", 0.2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--dataset is missing"),
        ("--dataset drawn_pils", "Did you mean drawn_pills"),
        ("--dataset digits --config a=", "names one variant, a"),
        ("--dataset digits --config a= --config b=", "a and b have the same config"),
        ("--dataset digits --config a= --config 'a=--dropout 0.5'", "a is given twice"),
        ("--dataset digits --config recipe.json", "has no name"),
        ("--dataset digits --config a= --config 'b/c=--dropout 0.5'", "has no name"),
        ("--dataset digits --config a= --config b=none.json", "no file none.json"),
        ("--dataset digits --config a= --config 'b=--dropuot 0.5'", "unrecognized arguments: --dropuot"),
        ("--dataset digits --config a= --config 'b=--backbone \"x'", "No closing quotation"),
        ("--dataset digits --config a= --config 'b=--backbone x'", "no backbone 'x'"),
        ("--dataset digits --config a= --config 'b=--dropout 2'", "--dropout 2.0 is out of range"),
        ("--dataset digits --config a= --config 'b=--frozen.epochs 5'", "11 epochs and b 13, which must be equal"),
        ("--dataset digits --config a= --config 'b=--val-fraction 0.3'", "val_fraction of a is 0.15 and of b 0.3"),
        ("--dataset digits --config a= --config 'b=--group-by x'", "group_by of a is empty and of b x"),
        (
            "--dataset digits --config a= --config 'b=--dropout 0.5 --corrections c.csv'",
            "corrections of a is empty and of b c.csv",
        ),
        ("--dataset digits --config a= --config 'b=--seed 3'", "seed of a is 0 and of b 3"),
        (
            "--config 'a=--dataset digits' --config 'b=--dataset drawn_pills'",
            "dataset of a is digits and of b drawn_pills",
        ),
        ("--dataset digits --config a= --config 'b=--unseen-classes 7'", "unseen_classes of a is empty and of b 7"),
        ("--dataset digits --epochs 3 --config a= --config 'b=--dropout 0.5'", "--epochs 3 leaves none"),
        ("--dataset digits --fine-tune.unfreeze stage5", "would leave random layers untrained"),
        (
            "--dataset digits --config a= --config 'b=--backbone small_cnn --fine-tune.unfreeze stage5'",
            "not a part of small_cnn",
        ),
    ],
)
def test_unfair_comparisons_are_refused_with_one_sentence(text, message):
    with pytest.raises(UserError, match=message) as caught:
        variants(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read .Expecting property name"),
        ("[1]", "it is not an object with fields"),
        ('{"dropuot": 0.5}', "unknown field dropuot"),
        ('{"fine_tune": {"epoch": 5}}', "unknown field fine_tune.epoch"),
        ('{"fine_tune": 5}', "fine_tune is 5, not an object"),
        ('{"dropout": "0.5"}', "dropout is '0.5', not float"),
    ],
)
def test_a_file_that_is_no_config_is_refused_with_its_name_and_problem(tmp_path, content, message):
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        variants("--dataset digits --config a=", "--config", f"b={tmp_path}/b.json")
    assert "b.json" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds is 0"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--learning-rates", "1e-3,fast"], "--learning-rates: invalid numbers value"),
        (["--learning-rates", "1e-3,-1"], "--learning-rates has -1; give positive numbers"),
        (["--target-accuracies", "50"], "--target-accuracies has 50; give numbers above 0"),
        (["--learning-rate", "1e-3"], "unrecognized arguments: --learning-rate"),
    ],
)
def test_impossible_flags_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        compare.parse(["--dataset", "digits", *arguments])


def test_learning_rates_are_sorted_without_repetitions():
    assert compare.parse(["--learning-rates", "1e-2,1e-4,0.01"]).learning_rates == (1e-4, 1e-2)


def test_the_default_config_has_every_field_of_a_file():
    assert RunConfig.from_json(RunConfig().to_json()) == RunConfig()


@pytest.mark.parametrize(
    ("values", "texts"), [({"time_limit": "5m"}, []), ({}, ["a=--time-limit 5m", "b=--seed 1"])], ids=["all", "one"]
)
def test_a_time_limit_for_a_comparison_is_refused(values, texts):
    with pytest.raises(UserError, match="--time-limit is for run"):
        choose_variants({"dataset": "digits"} | values, texts, None)
