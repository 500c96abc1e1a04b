"""The maps that the head sees, and the standardization that is folded away before a model is saved."""

import dataclasses

import numpy as np
import pytest

from transfer_learning.config import RunConfig
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.errors import UserError
from transfer_learning.evaluation.grad_cam import grad_cam
from transfer_learning.models.backbones import build_backbone, find_backbone
from transfer_learning.models.classifier import build_classifier, probabilities, unfreeze_layers
from transfer_learning.models.freezing import find_cut
from transfer_learning.models.head_features import feature_blocks, with_stage_outputs
from transfer_learning.models.inference_graph import inference_graph
from transfer_learning.models.standardization import NAME, fold_standardization, standardized
from transfer_learning.training.phase_builder import PhaseBuilder, find_cuts

CLASSES = ("a", "b", "c")
IMAGES = np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 3)).astype(np.float32)


def built(backbone, kind, **options):
    config = RunConfig(backbone=backbone, weights="none", image_size=64, head_features=kind, **options)
    return dataclasses.replace(build_classifier(config, CLASSES), pretrained=True)


def test_features_are_the_pooled_outputs_of_the_stages():
    classifier = built("efficientnet_lite0", "all")
    widths = (1280, 320, 192, 112, 80, 40, 24, 16, 32)  # of the last map, stages 7 to 1 and the stem
    assert feature_blocks(classifier.backbone, "all") == (*widths, *widths[1:])
    features = np.asarray(classifier.extractor(IMAGES, training=False))
    maps = [np.asarray(found) for found in classifier.backbone(IMAGES, training=False)]
    expected = [found.mean(axis=(1, 2)) for found in maps] + [found.max(axis=(1, 2)) for found in maps[1:]]
    np.testing.assert_allclose(features, np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-4)
    last, stages = (built("efficientnet_lite0", kind).extractor for kind in ("last", "stages"))
    np.testing.assert_allclose(last(IMAGES, training=False), features[:, :1280], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stages(IMAGES, training=False), features[:, 1280:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_small"])
def test_frozen_and_fine_tuned_parts_compute_the_same_network(backbone):
    classifier = built(backbone, "all")
    expected = np.asarray(classifier.model(IMAGES, training=False))
    unfreeze_layers(classifier, backbone, "none")
    cut = find_cut(classifier)
    np.testing.assert_allclose(cut.above(inference_graph(cut.below, 4)(IMAGES)), expected, rtol=1e-3, atol=1e-3)
    unfreeze_layers(classifier, backbone, "0.3")
    cut = find_cut(classifier)  # below all maps that the head sees, or nowhere
    if cut is not None:
        np.testing.assert_allclose(cut.above(cut.below(IMAGES)), expected, rtol=1e-3, atol=1e-3)
    assert grad_cam(classifier, IMAGES, np.array([0, 1, 2, 0])).max() <= 1


def test_a_backbone_without_stages_is_refused():
    row = dataclasses.replace(find_backbone("small_cnn"), stages=())
    with pytest.raises(UserError, match="--head-features all needs the stages"):
        with_stage_outputs(build_backbone("small_cnn", 16, "none"), row, "all")


@pytest.mark.parametrize("options", [{"head_init": "lda"}, {"head_init": "ridge"}, {"head": (16,)}])
def test_the_standardization_is_folded_into_the_first_layer(small_config, options):
    config = dataclasses.replace(small_config, **({"head": (), "head_features": "all"} | options))
    data = load_prepared(config)
    plain = build_classifier(config, data.class_names)
    classifier = standardized(plain)
    active = PhaseBuilder(config, classifier, data, find_cuts(config, classifier), {}).build("frozen")
    assert {"mean", "scale"} <= {variable.name for variable in active.weights}, "a checkpoint holds them"
    rows = np.arange(len(data.images.pixels))
    expected = probabilities(classifier, data.images.pixels, rows)
    scale = classifier.head.get_layer(NAME).scale.numpy()
    assert scale.min() > 0 and scale.std() > 0
    folded = fold_standardization(classifier, plain)
    np.testing.assert_allclose(probabilities(folded, data.images.pixels, rows), expected, atol=1e-4)
    np.testing.assert_allclose(probabilities(classifier, data.images.pixels, rows), expected, atol=1e-4)
    assert [type(layer).__name__ for layer in folded.head.layers[1:]].count("Dense") == 1 + bool(config.head)
    assert NAME not in [layer.name for layer in folded.head.layers]
