"""The interface of everything that holds the inputs of a split."""

from typing import Protocol

import numpy as np


class Rows(Protocol):
    """Array-like rows (n, ...): an ndarray, or rows that are read, decoded or computed on each access.

    Implemented by `ndarray`, `CachedRows`, `JpegPixels`, `PixelsOnRead`, `ComputedActivations` and `LastInputs`; any
    number of threads may read at once.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Returns a new array (k, ...) for integers (k,)."""
        ...
