"""Weights of others, taken as arrays only: nothing in a weights file is run, and no size in it is believed unchecked.

Published files are downloaded once and known by their digest; HDF5 files are those of Keras; PyTorch's are read by
`state_dict.py` and put into place by `pytorch_weights.py`.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from transfer_learning.errors import UserError


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


# ---------------------------------------------------------------------------------------------------------------------
# Download


def keras_models_folder() -> Path:
    """Returns the folder where Keras keeps downloaded weights: ~/.keras/models, or KERAS_HOME/models."""
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models"


# ---------------------------------------------------------------------------------------------------------------------
# HDF5 files of Keras


def load_keras_weights(model, path: Path, otherwise: str = "give weights of this backbone, or --weights none") -> None:
    """Sets the weights of a `keras.Model` from an HDF5 file of arrays.

    `.weights.h5` is what `save_weights` writes; any other `.h5` is the older layout, in which keras.applications are
    published (arrays matched by position). otherwise: what the user can do, for the message. Raises UserError for
    anything that is not a complete set for this model; the model may then be half loaded.
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
    except Exception as problem:  # the file is a stranger's: whatever it makes Keras raise, the file is at fault
        reason = " ".join(str(problem).split())[:300]
        raise UserError(
            f"{path} does not fit: expected the {num_expected} arrays of {model.name} without its classifier, as "
            f"save_weights (.weights.h5) or keras.applications (.h5) write them, found: {reason}; {otherwise}."
        ) from problem


def check_hdf5(file: BinaryIO, file_size: int) -> tuple[int, int]:
    """Looks at everything in an HDF5 file, which `file` reads, ahead of Keras.

    Returns:
        The number of arrays that are no optimizer's, and the number of their elements.

    Raises:
        ValueError: there is more in it than plain numbers that lie in this file; it says what.
    """
    import h5py

    num_arrays, num_elements, num_bytes, seen = 0, 0, 0, set()
    try:
        with h5py.File(file, "r") as opened:
            groups = [opened]
            while groups:
                group = groups.pop()
                for name in group:
                    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                        raise ValueError(f"{name!r} points elsewhere")
                    item = group[name]
                    if (address := h5py.h5o.get_info(item.id).addr) in seen:  # hard links can make a circle
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
    except Exception as problem:  # for damage h5py raises anything
        raise ValueError(f"it cannot be read ({problem})") from None
    # Keras writes arrays uncompressed. A few bytes that declare a terabyte would be allocated before they fail.
    if num_bytes > file_size:
        raise ValueError(f"it declares {num_bytes} bytes of arrays in {file_size} bytes")
    return num_arrays, num_elements
