"""Flags made from the fields of the config: names, groups, help, and the names of earlier versions."""

import argparse
import dataclasses

import pytest

from tests.support.logs import log_messages
from transfer_learning import run
from transfer_learning.cli.flags import add_config_flags, as_flags, given_values
from transfer_learning.cli.parser import Parser
from transfer_learning.config import PHASES, Phase, RunConfig, choices_of, flag_name, flat
from transfer_learning.datasets.sources.registry import DATASETS
from transfer_learning.errors import UserError
from transfer_learning.models.backbones import BACKBONES
from transfer_learning.recipes.known import RECIPES


def given(*arguments):
    return given_values(run.parse(list(arguments)))


@pytest.fixture
def help_of_run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        run.parse(["--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_a_flag_that_is_not_given_is_not_in_the_values():
    assert given() == {}


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["--dataset", "photos"], {"dataset": "photos"}),
        (["--batch-size", "64"], {"batch_size": 64}),
        (["--dropout", "0"], {"dropout": 0.0}),
        (["--head", "512,256"], {"head": (512, 256)}),
        (["--head", "none"], {"head": ()}),
        (["--no-flip"], {"flip": False}),
        (["--skip-unreadable"], {"skip_unreadable": True}),
        (["--frozen.epochs", "3"], {"frozen.epochs": 3}),
        (["--fine-tune.learning-rate=1e-5"], {"fine_tune.learning_rate": 1e-5}),
        (["--fine-tune.unfreeze", "0.3"], {"fine_tune.unfreeze": "0.3"}),
    ],
)
def test_flags_become_values_by_the_names_of_the_fields(arguments, values):
    assert given(*arguments) == values
    assert given(*as_flags(values)) == values


@pytest.mark.parametrize(
    ("arguments", "values", "current"),
    [
        (["--fine-tune.open", "conv5"], {"fine_tune.unfreeze": "conv5"}, "--fine-tune.unfreeze"),
        (["--frozen.views", "4"], {"frozen.copies": 4}, "--frozen.copies"),
        (["--frozen.lowest-rate", "1e-4"], {"frozen.min_learning_rate": 1e-4}, "--frozen.min-learning-rate"),
        (["--fine-tune.start-divisor", "10"], {"fine_tune.div_factor": 10.0}, "--fine-tune.div-factor"),
        (["--fine-tune.end-divisor", "10"], {"fine_tune.final_div_factor": 10.0}, "--fine-tune.final-div-factor"),
        (["--held-out", "owl,fox"], {"unseen_classes": "owl,fox"}, "--unseen-classes"),
        (["--micro-batches", "2"], {"gradient_accumulation_steps": 2}, "--gradient-accumulation-steps"),
        (["--head-start", "random"], {"head_init": "random"}, "--head-init"),
        (["--head-init", "auto"], {"head_init": "ridge"}, "ridge"),
    ],
)
def test_names_of_earlier_versions_work_with_one_warning(arguments, values, current, help_of_run):
    logged = log_messages()
    assert given(*arguments) == values
    assert len(logged) == 1 and f"is now called {current};" in logged[0]
    assert f"{arguments[0]} " not in help_of_run or arguments[0] == "--head-init"


def test_every_field_is_a_flag_but_the_one_that_has_a_single_value():
    parser = Parser("any")
    add_config_flags(parser)
    flags = {option for action in parser._actions for option in action.option_strings}
    for name in flat(RunConfig()):
        assert (f"--{flag_name(name)}" in flags) == (name != "frozen.unfreeze")


def test_help_shows_every_flag_with_its_default_range_and_choices(help_of_run):
    shown = " ".join(help_of_run.split())
    for cls in (RunConfig, Phase):
        for item in dataclasses.fields(cls):
            if item.name not in PHASES:
                assert " ".join(item.metadata["help"].split()) in shown
                assert str(item.metadata["bounds"]) in shown
                assert all(choice in shown for choice in choices_of(item))
    assert "images per train step (default: 32; at least 1)" in shown
    assert "one of constant, cosine, plateau" in shown


def test_help_names_datasets_backbones_and_recipes_under_headings_and_fits_a_terminal(help_of_run):
    shown = " ".join(help_of_run.split())
    for table in (DATASETS, BACKBONES, RECIPES):
        assert ", ".join(table) in shown
    headings = ["data:", "model:", "training:", "files and machine:", "frozen phase:", "fine-tune phase:"]
    assert [line for line in help_of_run.splitlines() if line in headings] == headings
    assert max(map(len, help_of_run.splitlines())) <= 80
    assert not {item.metadata["group"] for item in dataclasses.fields(RunConfig) if item.metadata} - {
        heading.rstrip(":") for heading in headings
    }


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--bath-size", "3"], "--bath-size"),
        (["--batch", "3"], "--batch"),  # no abbreviations: they would change their meaning with the next field
        (["--batch-size", "many"], "'many'"),
        (["--batch-size"], "--batch-size"),
        (["--head", "512;256"], "'512;256'"),
        (["photos"], "photos"),
    ],
)
def test_a_flag_that_cannot_be_read_is_named_with_the_way_to_the_help(arguments, named):
    with pytest.raises(UserError, match="--help") as caught:
        run.parse(arguments)
    assert named in str(caught.value)


def test_choices_complete_a_flag():
    parser = Parser("any")
    add_config_flags(parser)
    completers = {
        flag: action.completer
        for action in parser._actions
        if hasattr(action, "completer")
        for flag in action.option_strings
    }
    assert "random" in completers["--head-init"](prefix="r", parsed_args=argparse.Namespace())
    assert "drawn_pills" in completers["--dataset"](prefix="", parsed_args=argparse.Namespace())
