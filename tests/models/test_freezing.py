"""The cut between frozen and trained layers: both parts together are the network, and it is as high as possible."""

import dataclasses

import keras
import numpy as np
import pytest

from transfer_learning.config import RunConfig
from transfer_learning.models.backbones import BACKBONES
from transfer_learning.models.classifier import build_classifier, unfreeze_layers
from transfer_learning.models.freezing import find_cut

SIZE = 40
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
CLASSES = ("a", "b", "c")
NETWORKS = [
    "resnet50",
    pytest.param("resnet50v1_5", marks=pytest.mark.long),
    "resnet18",
    "mobilenetv3_small",
    "convnext_tiny",
    "efficientnet_lite0",
]


def built(backbone, image_size=64, **options):
    """A network marked as pretrained, though its weights are random: nothing has to be downloaded."""
    config = RunConfig(backbone=backbone, weights="none", image_size=image_size, input_size=SIZE, head=(8,), **options)
    return dataclasses.replace(build_classifier(config, CLASSES), pretrained=True)


@pytest.fixture(scope="module", params=NETWORKS)
def classifier(request):
    return request.param, built(request.param)


def test_both_parts_together_are_the_network(classifier):
    name, network = classifier
    expected = np.asarray(network.model(IMAGES, training=False))
    sizes = []
    for unfreeze in ("none", *reversed(BACKBONES[name].stages[1:]), "0.1", "0.5"):
        unfreeze_layers(network, name, unfreeze)
        cut = find_cut(network)
        np.testing.assert_allclose(cut.above(cut.below(IMAGES)), expected, rtol=1e-4, atol=1e-4)
        assert not cut.below.trainable_variables, unfreeze
        above = {id(variable) for layer in cut.layers_above for variable in layer.trainable_variables}
        assert above == {id(variable) for variable in network.model.trainable_variables}, unfreeze
        sizes.append(cut.below.count_params())
    by_stage = sizes[: len(BACKBONES[name].stages)]
    assert by_stage == sorted(by_stage, reverse=True) and by_stage[-1] > 0


def test_the_cut_is_between_stages(classifier):
    name, network = classifier
    for backbone, unfreeze, shape in (
        ("resnet50", "none", (2048,)),
        ("resnet50", "conv5", (4, 4, 1024)),
        ("resnet50", "conv4", (8, 8, 512)),
        ("resnet18", "none", (512,)),
        ("resnet18", "conv5", (4, 4, 256)),
        ("resnet18", "conv3", (16, 16, 64)),
        ("resnet50v1_5", "none", (2048,)),
        ("resnet50v1_5", "conv4", (8, 8, 512)),
        ("efficientnet_lite0", "none", (1280,)),
        ("efficientnet_lite0", "stage5", (4, 4, 80)),
    ):
        if backbone == name:
            unfreeze_layers(network, name, unfreeze)
            assert find_cut(network).below.output_shape[1:] == shape


def test_the_cut_is_never_inside_a_residual_block():
    network = built("resnet50")
    first = network.backbone.get_layer("conv5_block2_2_conv")  # its block's shortcut begins two layers below
    for layer in network.backbone.layers:
        layer.trainable = False
    first.trainable = True
    cut = find_cut(network)
    assert cut.below.output_shape[1:] == (2, 2, 2048)  # what block 1 ends with
    expected = np.asarray(network.model(IMAGES, training=False))
    np.testing.assert_allclose(cut.above(cut.below(IMAGES)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("pretrained", "unfreeze"), [(True, "all"), (False, "block4"), (False, "all")])
def test_there_is_no_cut_if_all_layers_train_or_batchnorm_learns(pretrained, unfreeze):
    network = dataclasses.replace(built("small_cnn"), pretrained=pretrained)
    unfreeze_layers(network, "small_cnn", unfreeze)
    assert find_cut(network) is None


def test_only_the_head_is_in_training_mode_above_the_cut():
    network = built("small_cnn", dropout=0.5)
    unfreeze_layers(network, "small_cnn", "block5")
    cut = find_cut(network)
    activations = cut.below(IMAGES)
    moving = [layer.moving_mean for layer in cut.layers_above if isinstance(layer, keras.layers.BatchNormalization)]
    before = [np.array(mean) for mean in moving]
    assert not np.array_equal(cut.above(activations, training=True), cut.above(activations)), "dropout"
    for mean, old in zip(moving, before, strict=True):
        np.testing.assert_array_equal(mean, old)


def test_in_mixed_float16_the_activations_are_those_of_the_network():
    keras.config.set_dtype_policy("mixed_float16")
    network = built("small_cnn", fold_batch_norm=False)
    expected = np.asarray(network.model(IMAGES, training=False))
    unfreeze_layers(network, "small_cnn", "block4")
    cut = find_cut(network)
    activations = np.asarray(cut.below(IMAGES))
    assert activations.dtype == np.float16
    np.testing.assert_array_equal(cut.above(activations.astype(np.float32)), expected)
