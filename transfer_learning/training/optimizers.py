"""The optimizers; a new one is one function in the table `OPTIMIZERS`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfer_learning.config import Phase

if TYPE_CHECKING:  # `--help` reads the table without importing Keras
    import keras


def make_optimizer(phase: Phase, rate_factors: Sequence[float] = ()) -> "keras.optimizers.Optimizer":
    """Returns a new optimizer; under mixed_float16 with loss scaling, so that small gradients do not become 0.

    Args:
        rate_factors: of the learning rate of each variable that it will be built with; (): 1.
    """
    import keras

    optimizer = OPTIMIZERS[phase.optimizer](phase)
    if set(rate_factors) - {1.0}:
        update = optimizer.update_step
        optimizer.update_step = lambda gradient, variable, learning_rate: update(
            gradient, variable, learning_rate * rate_factors[optimizer._get_variable_index(variable)]
        )
    optimizer.global_clipnorm = phase.clip_norm or None
    optimizer.use_ema, optimizer.ema_momentum = phase.ema_decay > 0, phase.ema_decay
    if keras.mixed_precision.dtype_policy().name == "mixed_float16":
        return keras.mixed_precision.LossScaleOptimizer(optimizer)
    return optimizer


def adam(phase: Phase) -> "keras.optimizers.Optimizer":
    import keras

    return keras.optimizers.Adam(phase.learning_rate)


def adamw(phase: Phase) -> "keras.optimizers.Optimizer":
    import keras

    optimizer = keras.optimizers.AdamW(phase.learning_rate, weight_decay=phase.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])  # common practice: they do not overfit
    return optimizer


def sgd(phase: Phase) -> "keras.optimizers.Optimizer":
    import keras

    return keras.optimizers.SGD(phase.learning_rate, momentum=phase.momentum)


OPTIMIZERS = {"adam": adam, "adamw": adamw, "sgd": sgd}
