"""Numbers of more than 8 bits: their extremes in an image, the value range of a dataset, and the scaling to 0..255.

The type of an image says little about its values: 12 of 16 bits are usual, and floats are 0..1, 0..255 or anything. So
the values of each type of number are scaled by one range, which all images of the dataset decide together: equal values
stay equal, and the range is a setting of the run, like its class names. It is rounded up to powers of two, so that one
more image seldom changes it. Images of 8 bits are never scaled.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

Range = tuple[float, float]  # lowest and highest value, which become 0 and 255
Ranges = Mapping[str, Range]  # by type of number: "uint16", "int32", "float", ...; or "uint12" for the depth of a file

PLAIN: Range = (0, 65535)  # the upper 8 bits of 16
SMALL_DEPTHS = (1, 2, 4, 8)  # as PNG has them; then 9, 10, ...
OVERSHOOT = 1 / 16  # of the highest value, which interpolated floats may exceed
NO_DATA = 1e30  # floats from here on mark missing pixels
MISSING = (-9999, -99999)  # as do these numbers in scans, depths and temperatures
TIGHT = 1 / 8  # of a range: values that take less get a range of their own
ROWS_BYTES = 1 << 23  # converted at once
WORD = re.compile(r"values=([a-z]+\d*),([^,\s]+),([^,\s]+),(\d+)")


class Values(NamedTuple):
    """What is known of the values of one image."""

    kind: str  # type of number, as in Ranges
    low: float  # lowest and highest finite value; low > high for none
    high: float
    bits: int = 0  # significant bits, as the file says; 0: it does not

    def __str__(self) -> str:
        return f"values={self.kind},{self.low!r},{self.high!r},{self.bits}"


def values_in(remarks: str) -> Values | None:
    """The values in the remarks of `decode`; None for an image of 8 bits."""
    found = WORD.search(remarks)
    return Values(found[1], float(found[2]), float(found[3]), int(found[4])) if found else None


def extremes(kind: str, array: np.ndarray, bits: int = 0, no_data: float | None = None) -> Values:
    """Finds the lowest and highest value of an array (height, width[, channels]) of any numbers.

    Args:
        no_data: a value that marks missing pixels.
    """
    low, high = math.inf, -math.inf
    for part in _parts(array):
        if array.dtype.kind == "f":
            part = part[np.abs(part) < NO_DATA]  # false for NaN
        if no_data is not None:
            part = part[part != no_data]
        if part.size and part.min() in MISSING:
            part = part[~np.isin(part, MISSING)]
        if part.size:
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    return Values(kind, low, high, bits)


def ranges_of(images: Iterable[Values]) -> dict[str, Range]:
    """The range of each type of number in a dataset, from the values of its images.

    From 0, or for negative values minus a power of two, to ``2 ** bits - 1``; to 1 for floats from 1/16 to 1, or to a
    smaller power of two. Values that take less than TIGHT of that, such as 281 to 304, get the range around them.
    """
    by_kind: dict[str, list[Values]] = {}
    for values in images:
        by_kind.setdefault(values.kind, []).append(values)
    return {kind: _range_of(kind, by_kind[kind]) for kind in sorted(by_kind)}


def _range_of(kind: str, images: list[Values]) -> Range:
    depth = int(re.sub(r"\D", "", kind) or 0)
    if depth % 8:  # the depth of the file is that of its values
        return 0.0, 2.0**depth - 1
    found = min(values.low for values in images), max(values.high for values in images)
    limits = _rounded(kind, *found, bits=max(values.bits for values in images))
    used = found[1] - found[0]
    if not 0 < used < TIGHT * (limits[1] - limits[0]):
        return limits
    step = 2.0 ** math.ceil(math.log2(TIGHT * used))
    return math.floor(found[0] / step) * step, math.ceil(found[1] / step) * step


def _rounded(kind: str, low: float, high: float, bits: int) -> Range:
    low = 0.0 if low >= 0 else -(2.0 ** math.ceil(math.log2(-low)))
    if high <= 0:
        return low, 0.0 if low else 1.0
    if kind == "float":
        high /= 1 + OVERSHOOT
        if high <= 1:
            return low, 1.0 if high >= OVERSHOOT else 2.0 ** math.ceil(math.log2(high))
    depth = int(math.ceil(high)).bit_length()
    depth = max(depth, bits) if high < 2.0**bits else depth
    if not low:
        depth = next((small for small in SMALL_DEPTHS if depth <= small), depth)
    return low, 2.0**depth - 1


def is_plain(kind: str, limits: Range) -> bool:
    """Whether scaling by this range is what `decode` does without ranges, to the same bits."""
    return kind == "uint16" and limits == PLAIN


def scaled(array: np.ndarray, limits: Range) -> np.ndarray:
    """Scales values by a range to uint8 of the same shape; NaN becomes 0, values outside are clipped.

    More than 256 integers are cut into 256 equal parts, which keeps the upper 8 bits of 16.
    """
    low, high = limits
    result = np.empty(array.shape, np.uint8)
    start = 0
    for part in _parts(array):
        values = np.nan_to_num(part.astype(np.float64), nan=low, posinf=high, neginf=low) - low
        if array.dtype.kind != "f" and high - low > 255:
            values = np.floor(values * (256 / (high - low + 1)))
        else:
            values = np.rint(values * (255 / (high - low)))
        result[start : start + len(part)] = values.clip(0, 255)
        start += len(part)
    return result


def describe(kind: str, limits: Range, num_images: int) -> str:
    """``16-bit values of 42 images: 0 to 4,095 is scaled to 0 to 255``."""
    low, high = (f"{value:,.10g}" for value in limits)
    name = "Float" if kind == "float" else f"{re.sub(r'[a-z]', '', kind)}-bit {'un' * kind.startswith('u')}signed"
    images = "1 image" if num_images == 1 else f"{num_images:,} images"
    return f"{name} values of {images}: {low} to {high} is scaled to 0 to 255"


def to_json(ranges: Ranges) -> dict[str, list[float]]:
    """The ranges as ``environment.json`` holds them."""
    return {kind: list(limits) for kind, limits in sorted(ranges.items())}


def from_json(values: Mapping[str, list[float]] | None) -> dict[str, Range]:
    """The ranges of a run; none for one of an earlier version, which converted values by their type."""
    return {kind: (float(low), float(high)) for kind, (low, high) in (values or {}).items()}


def recorded(environment: Mapping[str, Any]) -> dict[str, Range]:
    """The ranges in the content of an ``environment.json``."""
    return from_json(environment["dataset"].get("value_ranges"))


def _parts(array: np.ndarray) -> Iterable[np.ndarray]:
    """The rows of an array, some at a time, so that copies of them are small."""
    step = max(1, ROWS_BYTES // max(1, 8 * int(np.prod(array.shape[1:]))))
    return (array[start : start + step] for start in range(0, len(array), step))
