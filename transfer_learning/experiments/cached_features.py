"""Features that some run has kept of images, found without TensorFlow: by what the pools of the cache say of themselves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transfer_learning.storage.array_cache import ArrayCache, cached_fraction, layout_of
from transfer_learning.storage.cache import list_entries

KIND = "features"  # the folder of the cache, see `features.activations_of`


def find_kept_features(
    names: Sequence[str], backbone: str, cache_dir: str | Path
) -> tuple[np.ndarray, np.ndarray, str] | None:
    """Returns the features of as many images as some pool of this backbone holds; None where none holds any.

    Which weights and which image size they were computed with does not matter to whoever compares them with each other,
    so they are all of one pool: the one that holds most of them, the last used of several.

    Args:
        names: SHA-256 of the images; "" for one that has no content.

    Returns:
        Features, float32 (k, width); the positions of their images in `names`, int64 (k,); where they stem from, in words.
    """
    distinct = [name for name in dict.fromkeys(names) if name]
    candidates = []
    for pool in list_entries(cache_dir):
        layout = (
            layout_of(pool.path) if pool.kind == KIND and pool.about.startswith(f"{KIND} of {backbone} at ") else None
        )
        if layout and len(layout[0]) == 1 and (share := cached_fraction(pool.path, *layout, distinct)):
            candidates.append((share, pool.last_used, pool, layout))
    if not candidates:
        return None
    _, _, pool, (shape, dtype) = max(candidates, key=lambda candidate: candidate[:2])
    with ArrayCache(pool.path, shape, dtype) as kept:
        position = dict(zip(distinct, kept.positions(distinct).tolist(), strict=True))
        rows = np.array([position.get(name, -1) for name in names], np.int64)
        found = np.flatnonzero(rows >= 0)
        if not len(found):
            return None
        return kept.rows[rows[found]], found, f"{pool.about}, kept in {pool.name} by an earlier run"
