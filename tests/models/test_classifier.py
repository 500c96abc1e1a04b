"""The classifier: which layers train, what BatchNorm does, what is saved."""

import dataclasses
import json
import zipfile

import keras
import numpy as np
import pytest

from transfer_learning.errors import UserError
from transfer_learning.models.classifier import (
    build_classifier,
    leaf_layers,
    load_model,
    probabilities,
    save_model,
    unfreeze_layers,
)

CLASS_NAMES = ("Fish Oil", 'with "quotes", and comma', "薬")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


@pytest.fixture
def classifier(small_config):
    return build_classifier(small_config, CLASS_NAMES)


def test_the_seed_decides_the_initial_weights(small_config, classifier):
    assert build_classifier(small_config, CLASS_NAMES).weights_digest() == classifier.weights_digest()
    other = build_classifier(dataclasses.replace(small_config, seed=1), CLASS_NAMES)
    assert other.weights_digest() != classifier.weights_digest()
    kernels = [one.head.get_layer("logits").kernel.numpy() for one in (classifier, other)]
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize(
    ("head", "layers"),
    [
        ((), ["dropout_0", "logits"]),
        ((16,), ["dense_0", "dropout_0", "logits"]),
        ((512, 256), ["dense_0", "dropout_0", "dense_1", "dropout_1", "logits"]),
    ],
)
def test_the_head_has_the_layers_of_the_config(small_config, head, layers):
    classifier = build_classifier(dataclasses.replace(small_config, head=head), CLASS_NAMES)
    assert [layer.name for layer in classifier.head.layers[1:]] == layers


def unfrozen_names(classifier):
    return [layer.name for layer in leaf_layers(classifier.backbone) if layer.trainable and layer.weights]


def test_unfreeze_takes_none_all_a_stage_or_a_fraction(classifier):
    every = [layer.name for layer in leaf_layers(classifier.backbone) if layer.weights]
    for unfreeze, expected in (
        ("none", []),
        ("all", every),
        ("1.0", every),
        ("0.5", every[len(every) // 2 :]),
        ("0.001", every[-1:]),
        ("block4", [name for name in every if name.startswith(("block4", "block5"))]),
    ):
        unfreeze_layers(classifier, "small_cnn", unfreeze)
        assert unfrozen_names(classifier) == expected, unfreeze
        assert all(layer.trainable for layer in classifier.head.layers)


@pytest.mark.parametrize("unfreeze", ["block9", "block", "1.5", "0", "nan", ""])
def test_an_unknown_part_is_refused_with_the_known_stages(classifier, unfreeze):
    with pytest.raises(UserError, match="is not a part of small_cnn; give one of block1, block2"):
        unfreeze_layers(classifier, "small_cnn", unfreeze)


def moving_statistics(classifier):
    return [
        value.numpy()
        for layer in leaf_layers(classifier.backbone)
        if isinstance(layer, keras.layers.BatchNormalization)
        for value in (layer.moving_mean, layer.moving_variance)
    ]


@pytest.mark.parametrize("pretrained", [True, False])
def test_batch_norm_learns_statistics_only_from_random_weights(small_config, pretrained):
    weights = small_config.weights if pretrained else "none"
    classifier = build_classifier(dataclasses.replace(small_config, weights=weights), CLASS_NAMES)
    unfreeze_layers(classifier, "small_cnn", "all")
    before = moving_statistics(classifier)
    classifier.logits(IMAGES.astype(np.float32), training=True)
    same = [np.array_equal(old, new) for old, new in zip(before, moving_statistics(classifier), strict=True)]
    assert before and (all(same) if pretrained else not any(same))


def test_dropout_is_active_in_training_only(classifier):
    images = IMAGES.astype(np.float32)
    first, second = (np.asarray(classifier.logits(images, training=True)) for _ in range(2))
    assert not np.array_equal(first, second)
    assert np.array_equal(*(np.asarray(classifier.model(images, training=False)) for _ in range(2)))


def test_probabilities_of_an_image_do_not_depend_on_its_batch(classifier):
    rows = np.arange(5)
    together = probabilities(classifier, IMAGES, rows)
    assert together.shape == (5, 3) and together.dtype == np.float32
    assert together.sum(axis=1) == pytest.approx(1, abs=1e-5)
    alone = np.concatenate([probabilities(classifier, IMAGES, rows[index : index + 1]) for index in range(5)])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
def test_keras_alone_reads_the_saved_model(classifier, small_config, tmp_path, temperature):
    classifier = dataclasses.replace(classifier, temperature=temperature, rejection_threshold=0.75)
    path = tmp_path / "model.keras"
    save_model(classifier, path)
    expected = probabilities(classifier, IMAGES, np.arange(5))
    alone = keras.models.load_model(path)  # without our code, from raw images
    assert np.asarray(alone(IMAGES.astype(np.float32), training=False)) == pytest.approx(expected, abs=1e-6)
    assert json.loads(zipfile.ZipFile(path).read("class_names.json")) == list(CLASS_NAMES)
    loaded = load_model(small_config, path)
    assert loaded.class_names == CLASS_NAMES and loaded.weights_digest() == classifier.weights_digest()
    assert np.array_equal(probabilities(loaded, IMAGES, np.arange(5)), expected)
    assert (loaded.temperature, loaded.rejection_threshold) == (temperature, 0.75)


def test_calibration_does_not_trace_the_network_again(classifier):
    compute = classifier.inference_fn()
    assert dataclasses.replace(classifier, temperature=2.0).inference_fn() is compute
    assert classifier.temperature == 1


def test_predictions_follow_changed_weights(small_config):
    classifier = build_classifier(small_config, CLASS_NAMES)
    before = probabilities(classifier, IMAGES, np.arange(5))
    logits = classifier.head.get_layer("logits")
    logits.bias.assign([0.0, 100.0, 0.0])
    assert np.all(probabilities(classifier, IMAGES, np.arange(5))[:, 1] > 0.99)
    logits.bias.assign([0.0, 0.0, 0.0])
    assert np.array_equal(probabilities(classifier, IMAGES, np.arange(5)), before)


def test_the_temperature_changes_confidences_but_no_class(classifier):
    plain, divided = (
        probabilities(dataclasses.replace(classifier, temperature=temperature), IMAGES, np.arange(5))
        for temperature in (1.0, 5.0)
    )
    assert np.array_equal(plain.argmax(axis=1), divided.argmax(axis=1)) and np.all(
        plain.max(axis=1) > divided.max(axis=1)
    )


def test_a_model_without_calibration_is_read(classifier, small_config, tmp_path):
    new, old = tmp_path / "new.keras", tmp_path / "old.keras"
    save_model(dataclasses.replace(classifier, temperature=2.0, rejection_threshold=0.5), new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as copy:
        for name in source.namelist():
            if name != "calibration.json":
                copy.writestr(name, source.read(name))
    calibrations = [
        (loaded.temperature, loaded.rejection_threshold)
        for loaded in (load_model(small_config, path) for path in (new, old))
    ]
    assert calibrations == [(2.0, 0.5), (1.0, 0.0)]


@pytest.mark.parametrize(
    "content",
    [
        '{"temperature": 0.0}',
        '{"temperature": NaN}',
        '{"temperature": Infinity}',
        '{"temperature": "2"}',
        "[]",
        "{",
        '{"rejection_threshold": 2.0}',
        '{"rejection_threshold": NaN}',
        '{"rejection_threshold": null}',
    ],
)
def test_an_invalid_calibration_is_a_user_error(classifier, small_config, tmp_path, content):
    good, bad = tmp_path / "good.keras", tmp_path / "bad.keras"
    save_model(classifier, good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as copy:
        for name in source.namelist():
            copy.writestr(name, content if name == "calibration.json" else source.read(name))
    with pytest.raises(UserError, match="bad.keras cannot be read"):
        load_model(small_config, bad)


@pytest.mark.parametrize("content", [None, b"", b"no archive"])
def test_a_damaged_model_is_a_user_error(small_config, tmp_path, content):
    path = tmp_path / "model.keras"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="model.keras cannot be read"):
        load_model(small_config, path)


def test_stored_images_are_enlarged_inside_the_model(small_config):
    config = dataclasses.replace(small_config, image_size=32, input_size=8)
    classifier = build_classifier(config, CLASS_NAMES)
    assert classifier.model.input_shape == (None, 8, 8, 3)
    assert classifier.backbone.input_shape == (None, 32, 32, 3)
