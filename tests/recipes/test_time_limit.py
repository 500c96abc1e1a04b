"""A time limit: the epochs that fit into it, decided once, and a sentence if nothing does."""

import math

import pytest

import transfer_learning as tl
from transfer_learning.config import Phase, RunConfig, limit_seconds
from transfer_learning.errors import UserError
from transfer_learning.experiments import api
from transfer_learning.recipes.deadline import USED, Deadline
from transfer_learning.recipes.time_limit import LONGEST, fit_epochs

CONFIG = RunConfig(frozen=Phase(epochs=5), fine_tune=Phase(epochs=4, unfreeze="all", warmup_epochs=0.5))


def seconds(config):
    return 10 + 1 * config.frozen.epochs + 10 * config.fine_tune.epochs


def deadline_with(left):
    return Deadline(f"{(left + 0.5) / USED:.3f}s")  # half a second for the test


@pytest.mark.parametrize(
    ("text", "expected"), [("", math.inf), ("90s", 90), ("20m", 1200), ("1.5h", 5400), ("0.5s", 0.5)]
)
def test_a_time_limit_has_a_unit(text, expected):
    assert limit_seconds(text) == expected


@pytest.mark.parametrize("text", ["20", "m", "-5m", "0m", "0.0h", "5 m", "2d", "1h30m", "nan"])
def test_anything_else_is_refused(text):
    with pytest.raises(UserError, match=f"--time-limit {text} .* give, for example, 90s, 20m or 2h"):
        RunConfig(time_limit=text).check()


@pytest.mark.parametrize(
    ("left", "given", "expected"),
    [
        (1000, (), {"fine_tune.epochs": LONGEST * 4}),  # stretched, but not endlessly
        (75, (), {"fine_tune.epochs": 6}),
        (55, (), {}),  # as it is
        (36, (), {"fine_tune.epochs": 2}),
        (25, (), {"fine_tune.epochs": 1}),
        (24, (), {"fine_tune.epochs": 0, "frozen.epochs": 1, "frozen.learning_rate": 1e-9}),
        (1000, ("fine_tune.epochs",), {}),
    ],
)
def test_the_epochs_are_those_that_fit(left, given, expected):
    values, reasons = fit_epochs(CONFIG, given, deadline_with(left), seconds)
    assert values == expected and bool(reasons) == bool(expected)
    assert all("--time-limit" in reason for reason in reasons.values())


@pytest.mark.parametrize(("left", "given"), [(10, ()), (50, ("fine_tune.epochs",)), (20, ("frozen.epochs",))])
def test_a_limit_that_nothing_fits_into_is_refused(left, given):
    with pytest.raises(UserError, match=r"is too short: .* takes about .*; give \d+s or more") as caught:
        fit_epochs(CONFIG, given, deadline_with(left), seconds)
    least = str(caught.value).split("; give ")[1].split("s ")[0]
    assert fit_epochs(CONFIG, given, Deadline(f"{int(least) + 1}s"), seconds) is not None


@pytest.mark.long
def test_a_continued_run_keeps_the_epochs_that_were_fitted(small_config, tmp_path, monkeypatch):
    options = {name: getattr(small_config, name) for name in ("backbone", "weights", "image_size", "cache_dir")}
    options |= {"val_fraction": 0.45, "fine_tune.unfreeze": "block5", "time_limit": "10m", "run_dir": tmp_path / "run"}
    run = tl.train(small_config.dataset, **options)
    assert run.config.time_limit == "10m"

    def decided_again(*_, **__):
        raise AssertionError("the time that is left would decide")

    monkeypatch.setattr(api, "config_from_values", decided_again)
    assert tl.train(small_config.dataset, **options).config == run.config
    with pytest.raises(UserError, match="time_limit is 10m, not 20m"):
        tl.train(small_config.dataset, **options | {"time_limit": "20m"})
