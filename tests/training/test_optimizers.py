"""The optimizer that a phase asks for."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from transfer_learning.config import Phase
from transfer_learning.models.backbones import find_backbone
from transfer_learning.models.classifier import build_classifier, leaf_layers
from transfer_learning.training.optimizers import OPTIMIZERS, make_optimizer
from transfer_learning.training.phases import rate_factors


@pytest.mark.parametrize(("clip_norm", "expected"), [(0.0, [-3.0, -4.0]), (1.0, [-0.6, -0.8]), (10.0, [-3.0, -4.0])])
def test_gradients_are_clipped_by_their_common_norm(clip_norm, expected):
    optimizer = make_optimizer(Phase(optimizer="sgd", momentum=0.0, learning_rate=1.0, clip_norm=clip_norm))
    variables = [keras.Variable(0.0), keras.Variable(0.0)]
    optimizer.build(variables)
    optimizer.apply([np.float32(3), np.float32(4)], variables)
    assert [float(variable) for variable in variables] == pytest.approx(expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_only_with_a_decay_there_is_a_moving_average(name, ema_decay):
    optimizer = make_optimizer(Phase(optimizer=name, ema_decay=ema_decay))
    optimizer.build([keras.Variable(0.0, name="weight")])
    assert any("average" in variable.name for variable in optimizer.variables) == (ema_decay > 0)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_variable_learns_at_its_own_part_of_the_rate(name, precision):
    keras.config.set_dtype_policy(precision)
    optimizer = make_optimizer(Phase(optimizer=name, learning_rate=0.1, momentum=0.0), [1.0, 0.25])
    variables = [keras.Variable(0.0), keras.Variable(0.0)]
    optimizer.build(variables)
    optimizer.apply([tf.constant(256.0)] * 2, variables)  # scaled, under mixed_float16
    high, low = map(float, variables)
    assert high < 0 and low == pytest.approx(0.25 * high, rel=1e-5)


def test_the_rate_falls_by_layer_decay_from_stage_to_stage(small_config):
    classifier = build_classifier(small_config, ("a", "b"))
    layers = leaf_layers(classifier.model)
    settings = Phase(layer_decay=0.5)
    factors = iter(rate_factors(small_config, classifier, layers, settings))
    of_layer = {layer.name: {next(factors) for _ in layer.trainable_variables} for layer in layers}
    assert not list(factors)
    stages = find_backbone("small_cnn").stages
    for number, stage in enumerate(reversed(stages)):
        own = set().union(*(of_layer[name] for name in of_layer if name.startswith(stage)))
        assert own == {0.5 ** (number + 1)}
    assert of_layer["logits"] == {1.0}
