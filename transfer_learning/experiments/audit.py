"""Audits a dataset before training: prepares it as `run` would, finds its features, and looks for problems."""

import logging
import time
from dataclasses import replace

import numpy as np

from transfer_learning.cli.formatting import duration
from transfer_learning.cli.parser import quiet_start
from transfer_learning.config import RunConfig
from transfer_learning.datasets.audit.findings import Audit, Features, audit
from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.manifest import check_classes, check_decoders
from transfer_learning.datasets.prepared import PreparedDataset, load_dataset_of, prepare_dataset
from transfer_learning.errors import UserError
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.cache_index import FEATURES

logger = logging.getLogger(__name__)


def prepare_for_audit(config: RunConfig) -> tuple[Dataset, PreparedDataset]:
    """Loads and prepares the dataset; unreadable images are skipped, and classes may lack training images."""
    started = time.monotonic()
    dataset = load_dataset_of(config)
    data = prepare_dataset(dataset, replace(config, skip_unreadable=True), allow_empty_classes=True)
    seconds, entry = time.monotonic() - started, data.images.cached_in
    logger.info(
        f"Prepared in {duration(seconds)} ({len(dataset.examples) / seconds:,.0f} images/s); {entry.describe()} in "
        f"{Cache.of(config).entry_folder(entry)}."
    )
    return dataset, data


def audit_dataset(dataset: Dataset, data: PreparedDataset, config: RunConfig, compute_features: bool) -> Audit:
    """Finds everything that `audit.kinds` lists, by the features of all images or, unless they are to be computed,
    those in the cache.
    """
    features = computed_features(config, data) if compute_features else cached_features(config, data)
    return audit(dataset, data, _of_used_images(features, data) if features else None)


def refuse_unusable(data: PreparedDataset, config: RunConfig) -> None:
    """Raises UserError as `run` would: for unreadable images, or a class without training images."""
    num_unreadable, num_images = int((data.images.rows < 0).sum()), len(data.manifest)
    if num_unreadable and not config.skip_unreadable:
        check_decoders(data.manifest)
        raise UserError(
            f"{num_unreadable:,} of {num_images:,} images cannot be read, so `run` would refuse them; repair or remove "
            "them, or pass --skip-unreadable."
        )
    check_classes(data.manifest, data.class_names)


def cached_features(config: RunConfig, data: PreparedDataset) -> Features | None:
    """The features from the cache entry of the backbone that has most of the images; does not import TensorFlow.

    Weights and image size of the entry do not matter, because the features are only compared with each other. Of
    several equal entries the last used one is taken.
    """
    cache, hashes = Cache.of(config), data.manifest["sha256"].tolist()
    distinct = [name for name in dict.fromkeys(hashes) if name]
    candidates = []
    for entry in cache.entries():
        spec = entry.spec
        if spec and spec.kind == FEATURES and spec.facts.get("backbone") == config.backbone:
            candidates.append((cache.cached_fraction(spec, distinct), entry.last_used, entry.name, spec))
    fraction, _, name, spec = max(candidates, key=lambda candidate: candidate[:2], default=(0.0, None, "", None))
    if spec is None or not fraction:
        return None
    with cache.open(spec) as arrays:
        row_of = dict(zip(distinct, arrays.positions(distinct).tolist(), strict=True))
        rows = np.array([row_of.get(name, -1) for name in hashes], np.int64)
        found = np.flatnonzero(rows >= 0)
        return Features(np.asarray(arrays.rows[rows[found]]), found, f"{spec.describe()}, from cache entry {name}")


def computed_features(config: RunConfig, data: PreparedDataset) -> Features:
    """Computes and caches the features of all readable images; a run with this config finds them in the cache.

    Returns:
        Those of the highest map alone.

    Raises:
        UserError: the backbone has random weights, or there is no space.
    """
    with quiet_start():  # imports TensorFlow
        from transfer_learning.models.features import NamedImages, cached_activations
        from transfer_learning.training.phase_inputs import frozen_features
    frozen_part, width = frozen_features(config, data.class_names)
    frozen = frozen_part(data.images.pixel_key)
    positions = np.flatnonzero(data.images.rows >= 0)
    hashes = data.manifest["sha256"].iloc[positions].tolist()
    images = NamedImages(data.images.pixels, data.images.rows[positions], hashes)
    cached, rows = cached_activations(frozen, images, Cache.of(config))
    return Features(np.asarray(cached[rows])[:, :width], positions, frozen.entry.describe())


def _of_used_images(features: Features, data: PreparedDataset) -> Features | None:
    is_used = (data.manifest["split"].iloc[features.examples] != "").to_numpy()
    num_found, num_used = int(is_used.sum()), int((data.manifest["split"] != "").sum())
    if not num_found:
        return None
    more = "" if num_found == num_used else "; pass --features for all"
    about = f"{features.about}, of {num_found:,} of {num_used:,} used images{more}"
    return Features(features.values[is_used], features.examples[is_used], about)
