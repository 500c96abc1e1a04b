"""The estimate of a run: arithmetic on measured rates, and the decision whether to cache activations."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.support.logs import log_messages
from transfer_learning.config import Phase, RunConfig
from transfer_learning.datasets.dataset import Dataset, Example
from transfer_learning.datasets.decoding.sample import Sample, sample_dataset
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.evaluation.ood import NUM_IMAGES
from transfer_learning.models.classifier import build_classifier
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.cache import Cache
from transfer_learning.training import estimate
from transfer_learning.training.estimate import (
    CLOSING_SECONDS,
    FORWARD,
    PHASE_SECONDS,
    TRAINING,
    CutCost,
    RunEstimate,
    SplitSizes,
)
from transfer_learning.training.phase_builder import cut_of_phase

SIZES = SplitSizes(train=700, val=100, test=200)
SAMPLE = Sample([], 0.5, 250.0, 1000, "")


@pytest.fixture(autouse=True)
def no_head(monkeypatch):
    monkeypatch.setattr(estimate, "HEAD_SECONDS", 0.0)


def cost(config, costs, name):
    """Estimated seconds and bytes of a stage at 10 images per second through the whole network."""
    stages = {stage.name: stage for stage in estimate.estimate_stages(config, SIZES, SAMPLE, 10.0, costs)}
    return stages[name].estimated_seconds, stages[name].estimated_bytes


def test_decoding_and_evaluation_grow_with_their_images():
    config = RunConfig()
    assert cost(config, {}, "decode") == (500 / 250, 500 * 1000)
    assert cost(config, {}, "evaluate") == (CLOSING_SECONDS + (300 + 2 * NUM_IMAGES) / 10, 0)


def test_closed_form_heads_after_fine_tuning_take_two_passes_over_the_training_images():
    config = RunConfig(frozen=Phase(epochs=1), fine_tune=Phase(epochs=4, unfreeze="all"), head=())
    without, _ = cost(config, {}, "fine_tune")
    assert cost(replace(config, refit=True), {}, "fine_tune") == (pytest.approx(without + 2 * 700 / 10), 0)


def test_folds_train_a_head_each_on_features_that_are_cached(monkeypatch):
    monkeypatch.setattr(estimate, "HEAD_SECONDS", 0.01)
    config = RunConfig(frozen=Phase(epochs=5), fine_tune=Phase(), head=())
    costs = {"frozen": CutCost(10.0, 1000, 1.0)}
    of_one, _ = cost(config, {"frozen": CutCost(10.0, 1000, 0.0)}, "frozen")
    assert cost(replace(config, folds=4), costs, "folds") == (pytest.approx(4 * of_one), 0)
    with pytest.raises(KeyError):
        cost(config, costs, "folds")


@pytest.mark.parametrize("missing", [1.0, 0.25, 0.0])
@pytest.mark.parametrize("copies", [0, 3])
def test_a_frozen_phase_computes_missing_features_once(copies, missing):
    config = RunConfig(frozen=Phase(epochs=50, copies=copies, augmentation="light"))
    num_images = missing * (max(1, copies) * 700 + 100)
    assert cost(config, {"frozen": CutCost(10.0, 5000, missing)}, "frozen") == (
        pytest.approx(PHASE_SECONDS + num_images / 10),
        num_images * 5000,
    )


def test_a_frozen_phase_with_fresh_augmentation_computes_all_images_in_every_epoch():
    config = RunConfig(frozen=Phase(epochs=5, augmentation="light"))
    assert cost(config, {}, "frozen") == (pytest.approx(PHASE_SECONDS + 5 * 800 * FORWARD / 10), 0)


def test_fine_tuning_on_cached_activations_computes_the_lower_layers_once():
    config = RunConfig(fine_tune=Phase(epochs=4, unfreeze="conv5"))
    upper = 1 / 10 - 1 / 40
    epoch = upper * (700 * TRAINING + 100 * FORWARD)
    assert cost(config, {"fine_tune": CutCost(40.0, 7, 1.0)}, "fine_tune") == (
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
        (Phase(epochs=5, unfreeze="x"), 1.5e6, 1e9, False, "0.8 MB are free"),
        (Phase(epochs=5, unfreeze="x"), 1e9, 0.5e6, False, "0.5 MB are free"),
    ],
)
def test_activations_are_cached_if_that_saves_time_and_there_is_space(
    settings, free_bytes, cache_bytes, expected, words
):
    messages = log_messages()
    activations = CutCost(images_per_second=12.0, num_bytes=1000, missing=1.0)
    assert estimate.caching_pays(settings, SIZES, 10.0, activations, free_bytes, cache_bytes) == expected
    assert len(messages) == 1 and words in messages[0]


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
def test_split_sizes_are_estimated_before_the_split(splits, fractions, expected):
    pixels = np.zeros((2, 2), np.uint8)
    examples = [Example(f"{split}/{i}", "a", split, pixels) for split, count in splits.items() for i in range(count)]
    config = RunConfig(val_fraction=fractions[0], test_fraction=fractions[1])
    assert estimate.split_sizes(Dataset("d", ("a",), tuple(examples)), config) == expected


@pytest.mark.parametrize(
    ("augmentation", "copies", "caching_stages"),
    [("none", 0, {"frozen", "fine_tune"}), ("light", 2, {"frozen", "fine_tune"}), ("light", 0, {"frozen"})],
)
def test_the_estimate_measures_what_is_missing_and_decides_what_is_cached(
    augmentation, copies, caching_stages, small_config, tmp_path
):
    from dataclasses import replace

    fine_tune = replace(small_config.fine_tune, epochs=9, augmentation=augmentation, copies=copies)
    config = replace(small_config, fine_tune=fine_tune, cache_dir=str(tmp_path / "cache"))
    dataset = load_dataset(config.dataset, config.data_dir)
    classifier = build_classifier(config, dataset.class_names)
    cuts = {name: cut_of_phase(name, config, classifier) for name in ("frozen", "fine_tune")}
    messages = log_messages()
    stages, caches = estimate.estimate_run(config, dataset, classifier, cuts, {})
    assert [stage.name for stage in stages] == ["decode", "frozen", "fine_tune", "evaluate"]
    assert all(stage.estimated_seconds > 0 for stage in stages)
    assert {stage.name for stage in stages if stage.estimated_bytes} - {"decode"} == caching_stages
    assert caches == ("fine_tune" in caching_stages)
    assert messages[-1].startswith("Estimated time: decode ") and messages[-1].endswith(" in total.")
    assert [path.name for path in (tmp_path / "cache").rglob("*")] == ["rates.json"], "an estimate caches no image"


def test_a_sample_estimates_the_fraction_of_decoded_images(small_config, tmp_path):
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
    assert sample_dataset(half, *arguments, 0.0).missing_fraction == 1.0, "JPEGs are other cache entries"


def test_times_add_up_over_sessions_and_the_choice_stays(tmp_path):
    path = tmp_path / "foresight.json"
    first = RunEstimate(path, Cache(tmp_path / "cache"))
    first.start([estimate.Stage("decode", 2.0, 100), estimate.Stage("frozen", 3.0)], True)
    with pytest.raises(KeyboardInterrupt), first.stage("decode"):
        raise KeyboardInterrupt
    before = first.stages["decode"].seconds
    second = RunEstimate(path, Cache(tmp_path / "cache"))
    assert second.caches_activations and second.stages["decode"].estimated_bytes == 100
    with second.stage("decode"), ArrayCache(tmp_path / "cache" / "pixels" / "some", (5,), np.float32) as arrays:
        arrays.add(["key"], [np.zeros(5, np.float32)])
    with second.stage("not estimated"):
        pass
    assert second.stages["decode"].seconds >= before >= 0
    stages = json.loads(path.read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["decode", "frozen", "not estimated"]
    assert stages[1]["seconds"] is None and stages[2]["estimated_seconds"] is None
    assert [stage["num_bytes"] for stage in stages] == [20, 0, 0]


@pytest.mark.parametrize(
    "content", ["{ damaged", "[]", '{"stages": [{"name": "decode", "colour": 1}]}', '{"stages": 1}']
)
def test_a_damaged_file_is_replaced(content, tmp_path):
    (tmp_path / "foresight.json").write_text(content)
    messages = log_messages()
    assert not RunEstimate(tmp_path / "foresight.json", Cache(tmp_path)).stages
    assert len(messages) == 1 and "is damaged" in messages[0]


def test_a_rate_is_measured_again_only_if_activations_are_missing(small_config, tmp_path, monkeypatch):
    classifier = build_classifier(small_config, ("a", "b", "c"))
    cut = cut_of_phase("frozen", small_config, classifier)
    measured = iter([100.0, 200.0, 300.0])
    monkeypatch.setattr(estimate, "measure_rate", lambda *_: next(measured))
    cache = Cache(tmp_path)
    rates = [estimate.rate_below(cut, "one", cache, anew) for anew in (False, False, True, False)]
    assert rates == [100.0, 100.0, 200.0, 200.0]
    assert estimate.rate_below(cut, "other", cache, False) == 300.0
    for damaged in ("{ damaged", "[]", '{"one": 0}', '{"one": null}'):
        (cache.folder / "rates.json").write_text(damaged)
        monkeypatch.setattr(estimate, "measure_rate", lambda *_: 400.0)
        assert estimate.rate_below(cut, "one", cache, False) == 400.0


@pytest.mark.parametrize(
    ("share", "num_copies", "missing"),
    [
        (0.0, 1, 1.0),
        (0.8, 1, 0.0),
        (0.7, 1, 0.0),
        (0.4, 1, 0.5),  # 700 + 100 of 1,000 images are ever cached
        (0.725, 4, 0.0),
        (0.3625, 4, 0.5),
        (1.0, 1, 0.0),
    ],
)
def test_the_missing_fraction_comes_from_a_sample_with_test_images(share, num_copies, missing):
    assert estimate.missing_fraction(share, SIZES, num_copies) == pytest.approx(missing)


def test_without_images_nothing_is_missing():
    assert estimate.missing_fraction(0.0, SplitSizes(0, 0, 10), 1) == 0.0
