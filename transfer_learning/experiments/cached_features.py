"""Finds features that an earlier run has cached, without importing TensorFlow."""

from collections.abc import Sequence

import numpy as np

from transfer_learning.storage.cache import Cache
from transfer_learning.storage.cache_index import FEATURES


def find_cached_features(
    hashes: Sequence[str], backbone: str, cache: Cache
) -> tuple[np.ndarray, np.ndarray, str] | None:
    """Returns the features from the cache entry of this backbone that holds most of the images; None where none does.

    The entry's weights and image size do not matter, because the features are only compared with each other. Of several
    equal entries the last used one is taken.

    Args:
        hashes: SHA-256 of the images; "" for one without content.

    Returns:
        Features, float32 (k, width); the positions of their images in `hashes`, int64 (k,); a description.
    """
    distinct = [name for name in dict.fromkeys(hashes) if name]
    candidates = []
    for entry in cache.entries():
        spec = entry.spec
        if spec and spec.kind == FEATURES and spec.facts.get("backbone") == backbone:
            candidates.append((cache.cached_fraction(spec, distinct), entry.last_used, entry.name, spec))
    fraction, _, name, spec = max(candidates, key=lambda candidate: candidate[:2], default=(0.0, None, "", None))
    if not fraction:
        return None
    with cache.open(spec) as arrays:
        row_of = dict(zip(distinct, arrays.positions(distinct).tolist(), strict=True))
        rows = np.array([row_of.get(name, -1) for name in hashes], np.int64)
        found = np.flatnonzero(rows >= 0)
        if not len(found):  # all damaged
            return None
        return arrays.rows[rows[found]], found, f"{spec.describe()}, from cache entry {name}"
