"""The inputs of phases: the same activations as the live network gives, and nothing is computed twice."""

import dataclasses
import errno
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tests.support.logs import log_messages
from tests.support.photos import draw_photos
from transfer_learning.config import Phase
from transfer_learning.datasets import augmentation
from transfer_learning.datasets.pipeline import key_of
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.errors import UserError
from transfer_learning.models import freezing
from transfer_learning.models.classifier import build_classifier, probabilities
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training.identity import Identity
from transfer_learning.training.loop import Trainer
from transfer_learning.training.phase_builder import PhaseBuilder, cut_of_phase, find_cuts
from transfer_learning.training.phase_inputs import COPY_SEED, copy_names, make_phase_inputs
from transfer_learning.training.state import TrainingState
from transfer_learning.training.stopping import StopRequest


@pytest.fixture
def seen(monkeypatch):
    """Every image that went through an inference graph, as bytes."""
    images, original = [], freezing.inference_graph

    def watched(network, batch_size):
        graph = original(network, batch_size)

        def compute(batch):
            images.extend(image.tobytes() for image in batch.numpy() if image.any())
            return graph(batch)

        return compute

    monkeypatch.setattr(freezing, "inference_graph", watched)
    return images


@pytest.fixture
def config(small_config, tmp_path):
    return dataclasses.replace(small_config, cache_dir=str(tmp_path / "cache"))


def inputs_of(config, name="frozen", is_cached=True):
    classifier, data = build_classifier(config, ("circle", "cross", "stripes")), load_prepared(config)
    cut = cut_of_phase(name, config, classifier)
    return make_phase_inputs(cut, config.phase(name), is_cached, config, data, {}), data, cut


@pytest.mark.parametrize(("name", "unfreeze"), [("frozen", "none"), ("fine_tune", "block4"), ("fine_tune", "block5")])
def test_they_are_the_output_of_the_live_network(config, name, unfreeze):
    phase = Phase(epochs=1, unfreeze=unfreeze)
    config = dataclasses.replace(config, **{name: phase})
    (train, val), data, cut = inputs_of(config, name)
    for examples, split in ((train, "train"), (val, "val")):
        images = data.split(split)
        live = cut.below(images.inputs[images.rows].astype(np.float32), training=False)
        np.testing.assert_allclose(examples.inputs[examples.rows], live, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(examples.labels, images.labels)


OTHER_RUNS = {
    "another head": {"head": (8, 4)},
    "another seed": {"seed": 5},
    "another batch size": {"batch_size": 4},
    "another split": {"val_fraction": 0.3, "test_fraction": 0.0},
    "label smoothing": {"label_smoothing": 0.1},
    "another rate": {"frozen": Phase(epochs=2, learning_rate=3e-3, augmentation="light", copies=3)},
}


@pytest.mark.parametrize("change", OTHER_RUNS)
def test_another_run_computes_only_what_is_new(config, seen, change):
    config = dataclasses.replace(config, frozen=Phase(epochs=2, augmentation="light", copies=3))
    inputs_of(config)
    done = len(seen)
    inputs_of(dataclasses.replace(config, **OTHER_RUNS[change]))
    assert len(seen) == done or change == "another split", "its training images need copies that nobody needed before"
    assert len(seen) == len(set(seen)), "no picture went through the network twice"


def test_fewer_copies_are_cached_already_and_other_ones_are_not(config, seen):
    three, two = (Phase(epochs=1, augmentation="light", copies=copies) for copies in (3, 2))
    inputs_of(dataclasses.replace(config, frozen=three))
    done = len(seen)
    inputs_of(dataclasses.replace(config, frozen=two))
    inputs_of(dataclasses.replace(config, frozen=Phase(epochs=1)))
    assert len(seen) == done
    _, data, _ = inputs_of(dataclasses.replace(config, frozen=dataclasses.replace(two, augmentation="strong")))
    assert len(seen) == done + len(data.split("train"))
    inputs_of(dataclasses.replace(config, frozen=two, flip=False))
    assert len(seen) == done + 2 * len(data.split("train"))


def test_a_copy_depends_on_the_image_alone(config):
    config = dataclasses.replace(config, frozen=Phase(epochs=1, augmentation="strong", copies=3))
    (train, val), data, cut = inputs_of(config)
    images, hashes = data.split("train"), data.hashes("train")
    assert train.rows.shape == (3, len(images))
    pixels, keys = images.inputs[images.rows], np.array([key_of(hashed) for hashed in hashes], np.uint64)
    for copy in range(3):
        changed = pixels.astype(np.float32)
        if copy:
            drawn = augmentation.draw("strong", config.flip, COPY_SEED, copy, keys, pixels.shape[1])
            changed = augmentation.apply("strong", tf.constant(pixels), drawn)
        live = cut.below(changed, training=False)
        np.testing.assert_allclose(train.inputs[train.rows[copy]], live, rtol=1e-4, atol=1e-4)
    assert val.rows.shape == (len(data.split("val")),), "validation sees the plain image"


@pytest.mark.parametrize("copies", [0, 3])
@pytest.mark.parametrize("name", ["frozen", "fine_tune"])
def test_cached_or_computed_they_are_the_same_bits(config, name, copies):
    phase = Phase(epochs=1, unfreeze="block4" if name == "fine_tune" else "none", copies=copies, augmentation="light")
    phase = phase if copies else dataclasses.replace(phase, augmentation="none")
    config = dataclasses.replace(config, **{name: phase})
    cached, _, _ = inputs_of(config, name)
    computed, _, _ = inputs_of(config, name, is_cached=False)
    rng = np.random.default_rng(0)
    for one, other in zip(cached, computed, strict=True):
        assert one.rows.shape == other.rows.shape and one.inputs.dtype == other.inputs.dtype
        chosen = rng.permutation(len(one))[:40]  # more than pass the network at a time, in another order
        for copy in range(max(1, copies) if one.rows.ndim == 2 else 1):
            rows, other_rows = (e.rows[copy] if e.rows.ndim == 2 else e.rows for e in (one, other))
            np.testing.assert_array_equal(one.inputs[rows[chosen]], other.inputs[other_rows[chosen]], strict=True)


def test_copies_have_different_names():
    names = copy_names(["a", "b"], Phase(augmentation="light", copies=3), True)
    other = copy_names(["a", "b"], Phase(augmentation="strong", copies=3), True)
    unflipped = copy_names(["a", "b"], Phase(augmentation="light", copies=3), False)
    assert names[0] == ["a", "b"] and copy_names(["a"], Phase(), True) == [["a"]]
    assert len({name for copies in (names, other, unflipped) for copy in copies for name in copy}) == 2 + 3 * 2 * 2


def trained_head(config, with_cut, run_dir):
    """Validation predictions of a head that was trained on cached features, or through the live network."""
    data = load_prepared(config)
    classifier = build_classifier(config, data.class_names)
    identity = Identity(config, data.fingerprint, classifier.weights_digest(), {})
    cut = cut_of_phase("frozen", config, classifier) if with_cut else None
    phases = PhaseBuilder(config, classifier, data, {"frozen": cut}, {})
    run_dir.path.mkdir()
    with StopRequest() as stop:
        Trainer(identity, phases, run_dir, stop).train(TrainingState())
    val = data.split("val")
    return probabilities(classifier, val.inputs, val.rows)


@pytest.mark.parametrize("head", [(16,), ()])
def test_a_head_trained_on_cached_features_agrees_with_one_trained_through_the_live_network(head, config, tmp_path):
    config = dataclasses.replace(
        config,
        dataset=str(draw_photos(tmp_path / "photos", num_per_class=120)),
        val_fraction=0.6,
        test_fraction=0.0,
        head=head,
        head_init="random",
        frozen=Phase(epochs=4, learning_rate=5e-3, schedule="cosine"),
        fine_tune=Phase(),
    )
    cached = trained_head(config, True, RunDir(tmp_path / "cached"))
    live = trained_head(config, False, RunDir(tmp_path / "live"))
    assert len(cached) >= 150 and cached.max(axis=1).mean() > 0.5
    assert (cached.argmax(axis=1) == live.argmax(axis=1)).mean() >= 0.999
    np.testing.assert_allclose(cached, live, atol=1e-3)


def test_without_room_anywhere_they_are_computed_in_every_epoch_to_the_same_bits(config, monkeypatch):
    (expected, _), _, _ = inputs_of(config)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ArrayCache, "_add_on_disk", full)
    classifier, data = build_classifier(config, ("circle", "cross", "stripes")), load_prepared(config)
    messages = log_messages()
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    changed = dataclasses.replace(config, cache_dir=f"{config.cache_dir} of its own")
    cut = cut_of_phase("frozen", config, classifier)
    train, _ = make_phase_inputs(cut, config.frozen, True, changed, data, {})
    assert "need 1 MB in" in messages[-1] and "computes them in every epoch" in messages[-1]
    np.testing.assert_array_equal(train.inputs[train.rows], expected.inputs[expected.rows])


@pytest.mark.parametrize("name", [name for name, kind in augmentation.AUGMENTATIONS.items() if kind.share])
def test_features_of_mixed_images_are_not_cached_and_the_error_says_so(config, name):
    fine_tune = dataclasses.replace(config.fine_tune, unfreeze="block5", augmentation=name, copies=2)
    config = dataclasses.replace(config, fine_tune=fine_tune)
    with pytest.raises(UserError, match=f"--fine-tune.augmentation {name} mixes images; pass --fine-tune.copies 0"):
        find_cuts(config, build_classifier(config, ("circle", "cross", "stripes")))
