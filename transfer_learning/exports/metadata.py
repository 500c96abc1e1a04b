"""What an exported file says about itself: class names, the size and resize method of its images, calibration."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import NamedTuple

import numpy as np

from transfer_learning.config import MAX_SIZE, RESIZES
from transfer_learning.datasets.decoding import value_range
from transfer_learning.datasets.decoding.value_range import Ranges

KEY = "transfer_learning"  # of the text of `Metadata.to_json` in each file


@dataclass(frozen=True)
class Metadata:
    """The contract of a file: uint8 RGB (n, image_size, image_size, 3) -> float32 probabilities (n, classes)."""

    class_names: tuple[str, ...]
    image_size: int  # side of the images in pixels
    resize: str  # how an image becomes square: squash, crop or pad
    temperature: float = 1.0  # inside the network
    rejection_threshold: float = 0.0  # images whose highest probability is below are rejected; 0: none is
    weights_sha256: str = ""  # of the run's weights
    value_ranges: Ranges = field(default_factory=dict)  # of images with more than 8 bits

    def to_json(self) -> str:
        """ASCII on one line, which every container of metadata takes."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Metadata":
        """Reads the text of `to_json`, perhaps a stranger's or a later version's; ValueError if it is something else."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("its metadata is not an object")
        known = {one.name: values[one.name] for one in fields(cls) if one.name in values}
        names, size = known.get("class_names"), known.get("image_size")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError("its class_names are not a list of names")
        if type(size) is not int or not 1 <= size <= MAX_SIZE:
            raise ValueError(f"its image_size {size!r} is not in 1..{MAX_SIZE}")
        if known.get("resize") not in RESIZES:
            raise ValueError(f"its resize {known.get('resize')!r} is none of {', '.join(RESIZES)}")
        for name in ("temperature", "rejection_threshold"):
            if not isinstance(known.get(name, 0.0), int | float) or not math.isfinite(known.get(name, 0.0)):
                raise ValueError(f"its {name} is not a number")
        try:
            ranges = value_range.from_json(known.get("value_ranges"))
        except (AttributeError, TypeError, ValueError):
            raise ValueError("its value_ranges are not pairs of numbers by type") from None
        return cls(**known | {"class_names": tuple(names), "value_ranges": ranges})


class Loaded(NamedTuple):
    """What every format's `load` returns: an exported file, opened by its own runtime."""

    metadata: Metadata
    run: Callable[[np.ndarray], np.ndarray]  # uint8 (n, size, size, 3) -> float32 (n, classes); threads may call it
