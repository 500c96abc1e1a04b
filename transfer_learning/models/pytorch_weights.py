"""Weights of a PyTorch network for a Keras network with the same layers."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from transfer_learning.errors import UserError
from transfer_learning.models.state_dict import read_state_dict

if TYPE_CHECKING:
    import keras

# Our weights are float32, which holds both exactly; float64 would be rounded, and integers may be quantized.
NUMBER_FORMATS = ("float32", "float16")


class PyTorchWeights(NamedTuple):
    """The names of a network and of its parts in PyTorch."""

    name: str  # of the network and its publishers, for messages
    module: Callable[[str], str]  # name of a Keras layer with weights -> name of the PyTorch module
    classifier: str  # the PyTorch module that our head replaces


class _Target(NamedTuple):
    """The variable that an array of the state dict is assigned to."""

    variable: "keras.Variable"
    axes: tuple[int, ...]  # ``array.transpose(axes)`` has the axes of the variable

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array, in PyTorch's order of axes."""
        return tuple(self.variable.shape[self.axes.index(axis)] for axis in range(len(self.axes)))


def load_state_dict(model: "keras.Model", path: Path, pytorch_weights: PyTorchWeights, otherwise: str) -> None:
    """Sets every variable of a model from a file that `read_state_dict` reads.

    Each variable needs one array, and each array belongs to one variable. The arrays of the classifier and the counters
    of batch normalization are checked but not used, and may be missing.

    Args:
        otherwise: what the user can do, for the message.

    Raises:
        UserError: arrays are missing, unknown, or of another shape or number format; the model is unchanged.
    """
    state = read_state_dict(path)
    targets, counters = _targets(model, pytorch_weights.module)
    num_classes = np.size(state.get(f"{pytorch_weights.classifier}.bias", ()))
    shapes = {name: target.shape for name, target in targets.items()} | dict.fromkeys(counters, ())
    shapes[f"{pytorch_weights.classifier}.weight"] = num_classes, model.output_shape[-1]
    shapes[f"{pytorch_weights.classifier}.bias"] = (num_classes,)
    formats = dict.fromkeys(shapes, NUMBER_FORMATS) | dict.fromkeys(counters, ("int64",))

    known = [name for name in state if name in shapes]
    misshapen = [name for name in known if state[name].shape != shapes[name]]
    misformed = [name for name in known if state[name].dtype.name not in formats[name]]
    faults = {
        "missing": [name for name in targets if name not in state],
        "unknown": [name for name in state if name not in shapes],
        "of another shape": [f"{name}, {state[name].shape} in place of {shapes[name]}" for name in misshapen],
        "of another number format": [
            f"{name}, {state[name].dtype} in place of {' or '.join(formats[name])}" for name in misformed
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(found)} {fault} (the first: {found[0]})" for fault, found in faults.items() if found)
        raise UserError(
            f"{path} does not fit: expected the {len(targets)} arrays of {pytorch_weights.name}, found {listed}; "
            f"{otherwise}."
        )
    for name, (variable, axes) in targets.items():
        variable.assign(state[name].transpose(axes))


def _targets(model: "keras.Model", module_of: Callable[[str], str]) -> tuple[dict[str, _Target], list[str]]:
    """Returns the targets of the arrays that are needed, by their names, and the names of optional counters."""
    from keras import layers

    # PyTorch: (out, in, height, width), depthwise (channels, 1, height, width).
    # Keras: (height, width, in, out), depthwise (height, width, channels, 1).
    axes_of_kernel = {layers.Conv2D: (2, 3, 1, 0), layers.DepthwiseConv2D: (2, 3, 0, 1)}
    targets: dict[str, _Target] = {}
    counters = []
    for layer in model.layers:
        if not layer.weights:
            continue
        module = module_of(layer.name)
        if isinstance(layer, layers.BatchNormalization):
            targets[f"{module}.weight"] = _Target(layer.gamma, (0,))
            targets[f"{module}.bias"] = _Target(layer.beta, (0,))
            targets[f"{module}.running_mean"] = _Target(layer.moving_mean, (0,))
            targets[f"{module}.running_var"] = _Target(layer.moving_variance, (0,))
            counters.append(f"{module}.num_batches_tracked")
        else:
            targets[f"{module}.weight"] = _Target(layer.kernel, axes_of_kernel[type(layer)])
    return targets, counters
