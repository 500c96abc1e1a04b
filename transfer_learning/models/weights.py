"""Weights files of Keras, read as arrays only: no code in a file is run, and no size in it is trusted unchecked.

PyTorch's files are read by `state_dict.py`, and `pytorch_weights.py` assigns their arrays.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from transfer_learning.errors import UserError
from transfer_learning.machine.keras_settings import keras_home

if TYPE_CHECKING:
    import keras


def weights_digest(variables_or_arrays: Iterable) -> str:
    """Returns the sha256 (hex) over position, dtype, shape and bytes of each Keras variable or NumPy array in turn."""
    digest = hashlib.sha256()
    for position, values in enumerate(variables_or_arrays):
        array = np.asarray(values)
        if array.dtype.byteorder == ">":  # the same values are the same bytes on every machine
            array = array.astype(array.dtype.newbyteorder("<"))
        digest.update(f"{position} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def hold_same_arrays(file: IO[bytes], variables: Iterable) -> bool:
    """Whether an HDF5 file of Keras holds the arrays of these variables, bit by bit, and no others; in any order, since
    Keras' own way to read them takes ten times as long.
    """
    import h5py

    found: Counter[str] = Counter()
    with h5py.File(file, "r") as hdf5:
        hdf5.visititems(lambda _, item: found.update([weights_digest([item[()]])] if hasattr(item, "dtype") else []))
    return found == Counter(weights_digest([variable]) for variable in variables)


def keras_models_folder() -> Path:
    """Returns the folder where Keras keeps downloaded weights: ~/.keras/models, or KERAS_HOME/models."""
    return keras_home() / "models"


def load_keras_weights(
    model: "keras.Model", path: Path, otherwise: str = "give weights of this backbone, or --weights none"
) -> None:
    """Sets the weights of a model from an HDF5 file.

    Args:
        path: ``.weights.h5`` as `save_weights` writes it, or any other ``.h5`` in the older layout of the published
            weights of keras.applications, whose arrays are matched by position.
        otherwise: what the user can do, for the message.

    Raises:
        UserError: the file is not a complete set of weights for this model, which may be partly loaded then.
    """
    refused = f"{path} was given as Keras weights; expected an HDF5 file (.weights.h5 or .h5) of plain arrays, but"
    try:
        with open(path, "rb") as file:
            num_arrays, _ = check_hdf5(file, path.stat().st_size)
    except FileNotFoundError as problem:
        raise UserError(f"The weights file {path} does not exist; give a file, or --weights none.") from problem
    except ValueError as problem:
        raise UserError(f"{refused} {problem}; give a file of weights only, or use --weights none.") from problem
    num_expected = len(model.weights)
    try:
        if num_arrays != num_expected:
            raise ValueError(f"{num_arrays} arrays")
        model.load_weights(path)
    except Exception as problem:  # an untrusted file can make Keras raise anything
        reason = " ".join(str(problem).split())[:300]
        raise UserError(
            f"{path} does not fit: expected the {num_expected} arrays of {model.name} without its classifier, as "
            f"save_weights (.weights.h5) or keras.applications (.h5) write them, found: {reason}; {otherwise}."
        ) from problem


def check_hdf5(file: IO[bytes], file_size: int) -> tuple[int, int]:
    """Checks everything in an HDF5 file before Keras reads it.

    Returns:
        The number of arrays, without those of an optimizer, and the number of their elements.

    Raises:
        ValueError: the file contains anything but arrays of numbers stored in it; the message says what.
    """
    import h5py

    num_arrays, num_elements, num_bytes = 0, 0, 0
    seen: set[int] = set()
    try:
        with h5py.File(file, "r") as hdf5:
            groups = [hdf5]
            while groups:
                group = groups.pop()
                for name in group:
                    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                        raise ValueError(f"{name!r} points elsewhere")
                    item = group[name]
                    if (address := h5py.h5o.get_info(item.id).addr) in seen:  # hard links can form a cycle
                        raise ValueError(f"{name!r} is there twice")
                    seen.add(address)
                    if isinstance(item, h5py.Group):
                        groups.append(item)
                        continue
                    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiub":
                        raise ValueError(f"{name!r} holds no numbers")
                    if item.external or item.is_virtual:
                        raise ValueError(f"{name!r} lies in another file")
                    num_bytes += item.nbytes
                    if not re.match("/(optimizer|optimizer_weights)/", item.name):
                        num_arrays, num_elements = num_arrays + 1, num_elements + (item.size or 0)
    except ValueError:
        raise
    except Exception as problem:  # a damaged file can make h5py raise anything
        raise ValueError(f"it cannot be read ({problem})") from None
    # Keras writes arrays uncompressed. A few bytes that declare a terabyte would be allocated before they fail.
    if num_bytes > file_size:
        raise ValueError(f"it declares {num_bytes} bytes of arrays in {file_size} bytes")
    return num_arrays, num_elements
