"""Images that lie elsewhere than when a run was started: the same contents, labels and splits are the same dataset.

Ids are paths, and decide the order of the images and their augmentation, so the run goes on with those that it recorded.
"""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from transfer_learning.datasets.dataset import UNSEEN
from transfer_learning.datasets.manifest import UNSEEN_IN_FINGERPRINT
from transfer_learning.datasets.prepared import PreparedDataset

logger = logging.getLogger(__name__)

SAME = ["sha256", "label", "split"]


def with_recorded_ids(data: PreparedDataset, manifest_file: Path, fingerprint: str) -> PreparedDataset:
    """`data` with the order and the ids that a run recorded, if nothing else differs; `data` itself otherwise.

    Args:
        manifest_file: the ``manifest.csv`` of the run.
        fingerprint: of the run's dataset, see `manifest.fingerprint`.
    """
    if data.fingerprint == fingerprint:
        return data
    recorded = read_manifest(manifest_file)
    if recorded is None or len(recorded) != len(data.manifest):
        return data
    # Equal images are interchangeable, so the k-th of some content takes the id of the k-th.
    now, before = (table[SAME].astype(str).sort_values(SAME, kind="stable") for table in (data.manifest, recorded))
    if not np.array_equal(now.to_numpy(), before.to_numpy()):
        return data
    order = np.empty(len(recorded), np.int64)
    order[before.index.to_numpy()] = now.index.to_numpy()
    manifest = data.manifest.iloc[order].reset_index(drop=True)
    changed = np.flatnonzero((manifest["id"] != recorded["id"]).to_numpy())
    example = f" (such as {manifest['id'][changed[0]]} instead of {recorded['id'][changed[0]]})" if len(changed) else ""
    manifest["id"] = recorded["id"]
    images = replace(
        data.images, rows=data.images.rows[order], facts=data.images.facts.iloc[order].reset_index(drop=True)
    )
    result = replace(data, images=images, manifest=manifest)
    if result.fingerprint != fingerprint:
        return data
    logger.info(
        f"{len(changed):,} of {len(recorded):,} images have other ids{example}, but the same content; the run keeps the "
        "ids that it started with."
    )
    return result


def read_manifest(path: Path) -> pd.DataFrame | None:
    """The manifest of a run, all columns as text; None if it cannot be read."""
    try:
        table = pd.read_csv(path, dtype=str, na_filter=False, encoding="utf-8", encoding_errors="surrogateescape")
        table["split"] = table["split"].replace(UNSEEN_IN_FINGERPRINT, UNSEEN)  # as earlier versions called it
        return table if {"id", *SAME} <= set(table) else None
    except (OSError, ValueError, KeyError):
        return None
