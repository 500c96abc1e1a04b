"""Cached features: those of the network, computed once per content, with the same bits after an interruption."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tests.support import ROOT
from tests.support.logs import log_messages
from transfer_learning.errors import UserError
from transfer_learning.machine.device_memory import STEPS_AHEAD
from transfer_learning.models import features
from transfer_learning.models.classifier import build_classifier
from transfer_learning.models.inference_graph import inference_graph
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.cache import Cache

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), np.uint8)
HASHES = [f"hash {number}" for number in range(11)]
ALL = np.arange(11)
WIDTH = 256  # of small_cnn's features


@pytest.fixture(scope="module")
def extractor(small_config):
    return build_classifier(small_config, ("a", "b", "c")).extractor


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(features, "BATCH", 2)
    monkeypatch.setattr(features, "BYTES_PER_WRITE", 4 * 4 * WIDTH)  # two batches


@pytest.fixture
def batches():
    """The batches that went through the network, each as bytes."""
    return []


@pytest.fixture
def extract(extractor, tmp_path, batches, monkeypatch):
    """Calls `cached_activations` with a cache of its own; returns the features in the order of `rows`, and messages."""

    def call(rows=ALL, key="key", cache="cache", progress=lambda done, total: None, cache_gb=1.0, augment=None):
        monkeypatch.setattr(features, "count_progress", lambda title: progress)
        messages = log_messages()
        graph = inference_graph(extractor, 2)

        def compute(images):
            batches.append(images.numpy().tobytes())
            return graph(images)

        frozen = features.FrozenPart(features.activations_entry(extractor, key, "small_cnn", 16), compute)
        images = features.NamedImages(IMAGES, rows, [HASHES[row] for row in rows], augment)
        values, positions = features.cached_activations(frozen, images, Cache(tmp_path / cache, cache_gb))
        assert values.dtype == np.float32 and positions.dtype == np.int64
        return values[positions], messages

    return call


def test_features_of_a_gpu_are_read_while_it_computes_later_ones(extract, extractor, tmp_path, monkeypatch):
    expected, _ = extract()
    graph, events = inference_graph(extractor, 2), []

    class OnDevice:
        def __init__(self, values):
            self.values = values

        def __getitem__(self, part):
            return OnDevice(self.values[part])

        def __array__(self, dtype=None, copy=None):
            events.append("read")
            return self.values.numpy()

    def compute(images):
        events.append("compute")
        return OnDevice(graph(images))

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    frozen = features.FrozenPart(features.activations_entry(extractor, "key", "small_cnn", 16), compute)
    images = features.NamedImages(IMAGES, ALL, HASHES)
    values, positions = features.cached_activations(frozen, images, Cache(tmp_path / "of a GPU", 1.0))
    np.testing.assert_array_equal(values[positions], expected, strict=True)
    in_turns = ["compute"] * STEPS_AHEAD + ["compute", "read"] * (6 - STEPS_AHEAD) + ["read"] * STEPS_AHEAD
    assert events == in_turns
    np.testing.assert_array_equal(features.ComputedActivations(frozen, images)[ALL], expected, strict=True)
    assert events == 2 * in_turns


def test_features_equal_those_of_the_network_and_are_computed_once(extractor, extract, batches):
    rows = np.array([4, 0, 2])
    first, messages = extract(rows)
    live = np.asarray(extractor(IMAGES[rows].astype(np.float32), training=False))
    assert first == pytest.approx(live, rel=1e-4, abs=1e-5)
    assert messages == ["Computing the features of 3 images (backbone small_cnn, image size 16); 0 are in the cache."]
    batches.clear()
    for again in (rows, rows[::-1], rows[1:], np.array([0, 0, 4])):
        values, messages = extract(again)
        np.testing.assert_array_equal(values, first[[rows.tolist().index(row) for row in again]])
        number = len(set(again.tolist()))
        assert messages == [f"The features of {number} images (backbone small_cnn, image size 16) are in the cache."]
    assert not batches


def test_another_key_is_computed_again(extract, batches):
    extract()
    batches.clear()
    extract(key="other key")
    assert len(batches) == 6


def test_only_added_images_are_computed(extract, batches):
    before, _ = extract(ALL[:4])
    batches.clear()
    after, messages = extract(np.array([9, 0, 1, 2, 3]))
    assert len(batches) == 1 and "of 1 image " in messages[0] and "; 4 are in the cache" in messages[0]
    np.testing.assert_array_equal(after[1:], before)
    np.testing.assert_array_equal(after, extract(np.array([9, 0, 1, 2, 3]), cache="other")[0])


def test_the_same_content_is_computed_once(extract, batches):
    values, _ = extract(np.array([3, 3, 1, 3]))
    assert len(batches) == 1 and np.array_equal(values[0], values[3]) and not np.array_equal(values[0], values[2])


def test_every_batch_is_full(extract, batches):
    extract(ALL[:3])
    assert batches[1] == IMAGES[2].astype(np.float32).tobytes() + bytes(IMAGES[0].size * 4)


def test_no_images_give_no_features(extract):
    assert extract(ALL[:0])[0].shape[0] == 0


@pytest.mark.parametrize("stop_at", [1, 2, 3, 6])
def test_an_interrupted_computation_continues_with_the_same_batches(stop_at, extract, batches):
    unbroken, _ = extract(cache="unbroken")
    expected = batches.copy()
    batches.clear()

    def stop(done, total):
        assert total == 11
        if done == min(2 * stop_at, 11):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(progress=stop)
    assert batches == expected[:stop_at]
    batches.clear()
    resumed, messages = extract()
    num_stored = stop_at // 2 * 2  # batches are stored in twos
    assert batches == expected[num_stored:]
    assert (
        "features of 11 images (backbone small_cnn, image size 16) are in the cache"
        if stop_at == 6
        else f"; {2 * num_stored} are in the cache"
    ) in messages[0]
    np.testing.assert_array_equal(resumed, unbroken)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
import transfer_learning
import keras
from transfer_learning.machine.device_memory import STEPS_AHEAD
from transfer_learning.models import features
from transfer_learning.models.inference_graph import inference_graph
from transfer_learning.storage.cache import Cache

features.BATCH, features.BYTES_PER_WRITE = 2, 4 * 4 * 256
with np.load(sys.argv[2]) as given:
    images, hashes = given["images"], given["hashes"].tolist()

def progress(done, total):
    if done == 6:
        os.kill(os.getpid(), signal.SIGKILL)

features.count_progress = lambda title: progress
extractor = keras.models.load_model(sys.argv[3])
entry = features.activations_entry(extractor, "key", "small_cnn", 16)
features.cached_activations(
    features.FrozenPart(entry, inference_graph(extractor, 2)),
    features.NamedImages(images, np.arange(11), hashes),
    Cache(Path(sys.argv[1])),
)
"""


def test_a_killed_computation_ends_with_the_same_bits(extractor, extract, tmp_path):
    np.savez(tmp_path / "given.npz", images=IMAGES, hashes=HASHES)
    extractor.save(tmp_path / "extractor.keras")
    files = [tmp_path / name for name in ("cache", "given.npz", "extractor.keras")]
    assert subprocess.run([sys.executable, "-c", KILLED, *files], cwd=ROOT).returncode == -signal.SIGKILL
    resumed, messages = extract()
    assert "of 7 images" in messages[0] and "; 4 are in the cache" in messages[0]
    np.testing.assert_array_equal(resumed, extract(cache="unbroken")[0])


def test_damaged_features_are_logged_and_computed_again(extract, tmp_path):
    expected, _ = extract()
    (records,) = (tmp_path / "cache").rglob("records.bin")
    content = bytearray(records.read_bytes())
    content[5] ^= 1
    records.write_bytes(content)
    values, messages = extract()
    assert "1 record damaged" in messages[0] and "of 1 image " in messages[1]
    np.testing.assert_array_equal(values, expected)


def test_features_are_held_in_memory_if_the_disk_is_full(extract, batches, monkeypatch):
    expected, _ = extract(cache="unbroken")
    original, calls = ArrayCache._add_on_disk, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(ArrayCache, "_add_on_disk", full)
        values, messages = extract()
    np.testing.assert_array_equal(values, expected)
    assert len(messages) == 2 and messages[1].startswith("Cannot write 1 MB to ") and "No space" in messages[1]
    batches.clear()
    extract()
    assert len(batches) == 4, "what was stored before stays"


def test_an_error_names_the_space_needed_if_memory_is_short_too(extract, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ArrayCache, "_add_on_disk", full)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(
        UserError,
        match="The features .backbone small_cnn, image size 16. need 1 MB in .*cache, .*No space.*--cache-dir",
    ):
        extract()


def test_a_full_cache_is_logged_and_stays_empty(extract, batches, tmp_path):
    expected, _ = extract(cache="unbroken")
    values, messages = extract(cache_gb=1e-6)
    np.testing.assert_array_equal(values, expected)
    assert "--cache-gb 1e-06 allows no more" in messages[1]
    batches.clear()
    extract(cache_gb=1e-6)
    assert len(batches) == 6


def test_the_network_sees_augmented_images(extractor, extract, batches):
    def darker(images, names):
        assert len(names) == len(images) == 2, "every batch is full"
        return images / 2

    values, _ = extract(augment=darker)
    live = np.asarray(extractor(IMAGES.astype(np.float32) / 2, training=False))
    assert values == pytest.approx(live, rel=1e-4, abs=1e-5)


def test_the_entry_name_depends_on_network_weights_and_key_only(small_config):
    def name(key="key", seed=0, image_size=16):
        config = replace(small_config, seed=seed, image_size=image_size, input_size=16)
        extractor = build_classifier(config, ("a", "b", "c"), initial_weights="none").extractor
        return features.activations_entry(extractor, key, "small_cnn", 16).name

    assert name() == name(), "built twice in one process, in which Keras counts its names on"
    assert len({name(), name("other key"), name(seed=1), name(image_size=24)}) == 4
