"""What a run is going to take: arithmetic on measured rates, and the choice whether to keep what is frozen."""

import json

import numpy as np
import pytest

from tests.support.logs import log_messages
from transfer_learning.config import Phase, RunConfig
from transfer_learning.datasets.dataset import Dataset, Example
from transfer_learning.datasets.decoding.sample import Sample, sample_dataset
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.evaluation.ood import NUM_IMAGES
from transfer_learning.experiments import train
from transfer_learning.models.classifier import build_classifier
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.cache import Cache
from transfer_learning.training import estimate
from transfer_learning.training.estimate import (
    CLOSING_SECONDS,
    FORWARD,
    PHASE_SECONDS,
    TRAINING,
    Kept,
    RunEstimate,
    Work,
)

WORK = Work(train=700, val=100, test=200)
SAMPLE = Sample([], 0.5, 250.0, 1000, "")


@pytest.fixture(autouse=True)
def no_head(monkeypatch):
    monkeypatch.setattr(estimate, "HEAD_SECONDS", 0.0)


def seconds(config, kept, name, forward_rate=10.0, work=WORK):
    stages = {stage.name: stage for stage in estimate.estimates(config, work, SAMPLE, forward_rate, kept)}
    return stages[name].estimated_seconds, stages[name].estimated_bytes


def test_decoding_and_evaluation_grow_with_their_images():
    config = RunConfig()
    assert seconds(config, {}, "decode") == (500 / 250, 500 * 1000)
    assert seconds(config, {}, "evaluate") == (CLOSING_SECONDS + (300 + 2 * NUM_IMAGES) / 10, 0)


@pytest.mark.parametrize("missing", [1.0, 0.25, 0.0])
@pytest.mark.parametrize("copies", [0, 3])
def test_a_frozen_phase_on_kept_features_takes_one_pass_over_what_is_missing(copies, missing):
    config = RunConfig(frozen=Phase(epochs=50, copies=copies, augmentation="light"))
    num_images = missing * (max(1, copies) * 700 + 100)
    assert seconds(config, {"frozen": Kept(10.0, 5000, missing)}, "frozen") == (
        pytest.approx(PHASE_SECONDS + num_images / 10),
        num_images * 5000,
    )


def test_a_frozen_phase_with_fresh_augmentation_passes_all_images_in_every_epoch():
    config = RunConfig(frozen=Phase(epochs=5, augmentation="light"))
    assert seconds(config, {}, "frozen") == (pytest.approx(PHASE_SECONDS + 5 * 800 * FORWARD / 10), 0)


def test_fine_tuning_from_the_boundary_pays_for_the_lower_layers_once():
    config = RunConfig(fine_tune=Phase(epochs=4, unfreeze="conv5"))
    upper = 1 / 10 - 1 / 40
    epoch = upper * (700 * TRAINING + 100 * FORWARD)
    assert seconds(config, {"fine_tune": Kept(40.0, 7, 1.0)}, "fine_tune") == (
        pytest.approx(PHASE_SECONDS + 800 / 40 + 4 * epoch),
        800 * 7,
    )


@pytest.mark.parametrize(
    ("settings", "free_bytes", "cache_bytes", "expected", "words"),
    [
        (Phase(epochs=5, unfreeze="x"), 1e9, 1e9, True, "computed once"),
        (Phase(epochs=1, unfreeze="x"), 1e9, 1e9, False, "computed in every epoch"),
        (Phase(epochs=2, unfreeze="x", augmentation="light", copies=8), 1e9, 1e9, False, "computed in every epoch"),
        (Phase(epochs=20, unfreeze="x", augmentation="light", copies=8), 1e9, 1e9, True, "computed once"),
        (Phase(epochs=5, unfreeze="x"), 1.5e6, 1e9, False, "since 0.8 MB are free for it"),
        (Phase(epochs=5, unfreeze="x"), 1e9, 0.5e6, False, "since 0.5 MB are free for it"),
    ],
)
def test_the_boundary_is_kept_where_it_saves_time_and_has_space(settings, free_bytes, cache_bytes, expected, words):
    said = log_messages()
    kept = Kept(forward_rate=12.0, num_bytes=1000, missing=1.0)
    assert estimate.choose_kept(settings, WORK, 10.0, kept, free_bytes, cache_bytes) == expected
    assert len(said) == 1 and words in said[0]


@pytest.mark.parametrize(
    ("splits", "fractions", "expected"),
    [
        ({"": 1000}, (0.15, 0.2), (680, 120, 200)),
        ({"train": 800, "test": 200}, (0.25, 0.2), (600, 200, 200)),
        ({"train": 700, "val": 100, "test": 200}, (0.25, 0.2), (700, 100, 200)),
        ({"train": 900, "val": 100}, (0.25, 0.1), (810, 100, 90)),
        ({"": 10}, (0.0, 0.0), (10, 0, 0)),
    ],
)
def test_work_is_what_the_splits_are_going_to_hold(splits, fractions, expected):
    pixels = np.zeros((2, 2), np.uint8)
    examples = [Example(f"{split}/{i}", "a", split, pixels) for split, count in splits.items() for i in range(count)]
    config = RunConfig(val_fraction=fractions[0], test_fraction=fractions[1])
    assert estimate.work_in(Dataset("d", ("a",), tuple(examples)), config) == expected


@pytest.mark.parametrize(
    ("augmentation", "copies", "stages_that_keep"),
    [("none", 0, {"frozen", "fine_tune"}), ("light", 2, {"frozen", "fine_tune"}), ("light", 0, {"frozen"})],
)
def test_foresee_measures_what_is_missing_and_finds_what_is_kept(
    augmentation, copies, stages_that_keep, small_config, tmp_path
):
    from dataclasses import replace

    fine_tune = replace(small_config.fine_tune, epochs=9, augmentation=augmentation, copies=copies)
    config = replace(small_config, fine_tune=fine_tune, cache_dir=str(tmp_path / "cache"))
    dataset = load_dataset(config.dataset, config.data_dir)
    classifier = build_classifier(config, dataset.class_names)
    cuts = {name: train.cut_of_phase(name, config, classifier) for name in ("frozen", "fine_tune")}
    said = log_messages()
    stages, keeps = estimate.estimate_run(config, dataset, classifier, cuts, {})
    assert [stage.name for stage in stages] == ["decode", "frozen", "fine_tune", "evaluate"]
    assert all(stage.estimated_seconds > 0 for stage in stages)
    assert {stage.name for stage in stages if stage.estimated_bytes} - {"decode"} == stages_that_keep
    assert keeps == ("fine_tune" in stages_that_keep)
    assert said[-1].startswith("Foreseen, from a moment of each kind of work: decode ") and said[-1].endswith(
        " in all."
    )
    assert [path.name for path in (tmp_path / "cache").rglob("*")] == ["rates.json"], "looking ahead keeps no image"


def test_what_is_decoded_already_is_known_from_a_sample(small_config, tmp_path):
    from transfer_learning.datasets.decoding.pixel_cache import cached_images

    dataset = load_dataset(small_config.dataset, small_config.data_dir)
    arguments = 16, "squash", Cache(tmp_path / "cache")
    assert sample_dataset(dataset, *arguments, 16.0).missing_fraction == 1.0
    half = Dataset("half", dataset.class_names, dataset.examples[::2])
    cached_images(half, *arguments)
    sample = sample_dataset(dataset, *arguments, 16.0)
    assert (
        sample.missing_fraction == 0.5
        and len(sample.hashes) == len(dataset.examples)
        and 0 < sample.images_per_second < np.inf
    )
    assert sample_dataset(half, *arguments, 16.0).missing_fraction == 0.0
    assert sample_dataset(half, *arguments, 0.0).missing_fraction == 1.0, "kept as JPEGs they are others"


def test_times_are_added_up_over_sessions_and_the_choice_stays(tmp_path):
    path = tmp_path / "foresight.json"
    first = RunEstimate(path, Cache(tmp_path / "cache"))
    first.announce([estimate.Stage("decode", 2.0, 100), estimate.Stage("frozen", 3.0)], True)
    with pytest.raises(KeyboardInterrupt), first.stage("decode"):
        raise KeyboardInterrupt
    before = first.stages["decode"].seconds
    second = RunEstimate(path, Cache(tmp_path / "cache"))
    assert second.caches_activations and second.stages["decode"].estimated_bytes == 100
    with second.stage("decode"), ArrayCache(tmp_path / "cache" / "pixels" / "some", (5,), np.float32) as arrays:
        arrays.add(["key"], [np.zeros(5, np.float32)])
    with second.stage("unforeseen"):
        pass
    assert second.stages["decode"].seconds >= before >= 0
    kept = json.loads(path.read_text())["stages"]
    assert [stage["name"] for stage in kept] == ["decode", "frozen", "unforeseen"]
    assert kept[1]["seconds"] is None and kept[2]["estimated_seconds"] is None
    assert [stage["num_bytes"] for stage in kept] == [20, 0, 0]


@pytest.mark.parametrize(
    "content", ["{ damaged", "[]", '{"stages": [{"name": "decode", "colour": 1}]}', '{"stages": 1}']
)
def test_a_damaged_file_is_made_again_and_costs_no_run(content, tmp_path):
    (tmp_path / "foresight.json").write_text(content)
    said = log_messages()
    assert not RunEstimate(tmp_path / "foresight.json", Cache(tmp_path)).stages
    assert len(said) == 1 and "is damaged, and made again" in said[0]


def test_a_rate_is_measured_again_where_work_is_left_and_remembered_where_not(small_config, tmp_path, monkeypatch):
    classifier = build_classifier(small_config, ("a", "b", "c"))
    cut = train.cut_of_phase("frozen", small_config, classifier)
    measured = iter([100.0, 200.0, 300.0])
    monkeypatch.setattr(estimate, "rate", lambda *_: next(measured))
    rates = estimate.Rates(tmp_path / "rates.json")
    assert [rates.of("one", cut, anew) for anew in (False, False, True, False)] == [100.0, 100.0, 200.0, 200.0]
    assert estimate.Rates(tmp_path / "rates.json").of("other", cut, False) == 300.0
    for damaged in ("{ damaged", "[]", '{"one": 0}', '{"one": null}'):
        (tmp_path / "rates.json").write_text(damaged)
        monkeypatch.setattr(estimate, "rate", lambda *_: 400.0)
        assert rates.of("one", cut, False) == 400.0


@pytest.mark.parametrize(
    ("share", "num_views", "missing"),
    [
        (0.0, 1, 1.0),
        (0.8, 1, 0.0),
        (0.7, 1, 0.0),
        (0.4, 1, 0.5),  # 700 + 100 of 1,000 images are ever kept
        (0.725, 4, 0.0),
        (0.3625, 4, 0.5),
        (1.0, 1, 0.0),
    ],
)
def test_what_is_missing_is_told_from_a_sample_that_holds_test_images_too(share, num_views, missing):
    assert estimate.share_missing(share, WORK, num_views) == pytest.approx(missing)


def test_without_images_nothing_is_missing():
    assert estimate.share_missing(0.0, Work(0, 0, 10), 1) == 0.0
