"""The optimizer that a phase asks for."""

import keras
import numpy as np
import pytest

from transfer_learning.config import Phase
from transfer_learning.training.optimizers import OPTIMIZERS, make_optimizer


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
