"""What predicts images: a finished run or an exported file, for `predict` and `serve` the same."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class ImagePredictor(Protocol):
    """An export's `Predictor`, or a `RunPredictor`, which also has ``grad_cam`` and ``probabilities_and_features``."""

    image_size: int
    resize: str
    rejection_threshold: float

    @property
    def class_names(self) -> Sequence[str]:
        """The classes by position."""

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns float32 (n, classes) of uint8 (n, size, size, 3)."""
