"""An exported file, opened by its own runtime."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from transfer_learning.exports.metadata import Metadata


class Loaded(NamedTuple):
    """What every format's `load` returns."""

    metadata: Metadata
    run: Callable[
        [np.ndarray], np.ndarray
    ]  # uint8 (n, size, size, 3) -> float32 (n, classes); may be called by threads
