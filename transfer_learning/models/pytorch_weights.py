"""A PyTorch network with the same layers as ours, and how the arrays of its state dict become our weights."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transfer_learning.errors import UserError
from transfer_learning.models.state_dict import read_state_dict

# float32, in which we keep weights, holds both exactly. Other floats would be rounded, and integers stand for something.
NUMBER_FORMATS = ("float32", "float16")


class PyTorchWeights(NamedTuple):
    """What PyTorch calls the parts of a network of ours."""

    name: str  # of the network and of those who publish its weights, for messages
    module: Callable[[str], str]  # the name of a Keras layer with weights -> that of the PyTorch module
    classifier: str  # the PyTorch module whose place our head takes


class _Place(NamedTuple):
    """Where an array of the state dict goes."""

    variable: object  # of Keras
    axes: tuple[int, ...]  # which axis of the array is the first of the variable, which the second ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array, in PyTorch's order."""
        return tuple(self.variable.shape[self.axes.index(axis)] for axis in range(len(self.axes)))


def load_state_dict(model, path: Path, pytorch_weights: PyTorchWeights, otherwise: str) -> None:
    """Sets every variable of a `keras.Model` from a file that `read_state_dict` reads.

    Each variable has one array, and each array one variable. Left aside are what needs none: the classifier, and the
    counters of batch normalisation, which older files lack; where they are there, they are checked too.

    otherwise: what the user can do, for the message.
    Raises UserError, with the model untouched, for arrays that are missing, unknown, or of another shape or number format.
    """
    state = read_state_dict(path)
    places, counters = _places(model, pytorch_weights.module)
    num_classes = np.size(state.get(f"{pytorch_weights.classifier}.bias", ()))
    shapes = {name: place.shape for name, place in places.items()} | dict.fromkeys(counters, ())
    shapes[f"{pytorch_weights.classifier}.weight"] = num_classes, model.output_shape[-1]
    shapes[f"{pytorch_weights.classifier}.bias"] = (num_classes,)
    formats = dict.fromkeys(shapes, NUMBER_FORMATS) | dict.fromkeys(counters, ("int64",))

    known = [name for name in state if name in shapes]
    misshapen = [name for name in known if state[name].shape != shapes[name]]
    misformed = [name for name in known if state[name].dtype.name not in formats[name]]
    faults = {
        "missing": [name for name in places if name not in state],
        "unknown": [name for name in state if name not in shapes],
        "of another shape": [f"{name}, {state[name].shape} in place of {shapes[name]}" for name in misshapen],
        "of another number format": [
            f"{name}, {state[name].dtype} in place of {' or '.join(formats[name])}" for name in misformed
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(found)} {fault} (the first: {found[0]})" for fault, found in faults.items() if found)
        raise UserError(
            f"{path} does not fit: expected the {len(places)} arrays of {pytorch_weights.name}, found {listed}; {otherwise}."
        )
    for name, (variable, axes) in places.items():
        variable.assign(state[name].transpose(axes))


def _places(model, module_of: Callable[[str], str]) -> tuple[dict[str, _Place], list[str]]:
    """Returns the place of each array that is needed, by its name, and the names of the counters that may be there."""
    from keras import layers

    # PyTorch: (out, in, height, width), depthwise (channels, 1, height, width).
    # Keras: (height, width, in, out), depthwise (height, width, channels, 1).
    axes_of_kernel = {layers.Conv2D: (2, 3, 1, 0), layers.DepthwiseConv2D: (2, 3, 0, 1)}
    places, counters = {}, []
    for layer in model.layers:
        if not layer.weights:
            continue
        module = module_of(layer.name)
        if isinstance(layer, layers.BatchNormalization):
            places[f"{module}.weight"] = _Place(layer.gamma, (0,))
            places[f"{module}.bias"] = _Place(layer.beta, (0,))
            places[f"{module}.running_mean"] = _Place(layer.moving_mean, (0,))
            places[f"{module}.running_var"] = _Place(layer.moving_variance, (0,))
            counters.append(f"{module}.num_batches_tracked")
        else:
            places[f"{module}.weight"] = _Place(layer.kernel, axes_of_kernel[type(layer)])
    return places, counters
