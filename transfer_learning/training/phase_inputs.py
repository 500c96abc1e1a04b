"""What a phase is fed: images, or, computed once, what its frozen part makes of them."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from transfer_learning.config import Phase, RunConfig
from transfer_learning.datasets import augmentation
from transfer_learning.datasets.pipeline import Examples, key_of
from transfer_learning.datasets.prepared import PreparedDataset
from transfer_learning.models.features import (
    ComputedActivations,
    FrozenPart,
    NamedImages,
    activations_entry,
    cached_activations,
)
from transfer_learning.models.freezing import Cut
from transfer_learning.storage.cache import Cache, NoSpace
from transfer_learning.storage.cache_index import EntrySpec
from transfer_learning.storage.rows import Rows

logger = logging.getLogger(__name__)

COPY_SEED = 0  # not the run's: another run would have to make its own views


def activations_of_cut(cut: Cut, config: RunConfig, pixel_key: str, runtime: dict[str, str]) -> EntrySpec:
    """The cache entry for the output of the layers below the cut.

    Args:
        pixel_key: see `CachedImages`.
        runtime: versions, device and flags, that the last bits depend on.
    """
    key = json.dumps([runtime, pixel_key, keras.mixed_precision.dtype_policy().name])
    return activations_entry(cut.below, key, config.backbone, config.image_size)


def copy_names(hashes: Sequence[str], settings: Phase, flip: bool) -> list[list[str]]:
    """For each view of a phase the names that its images are kept under; view 0 of an image is the image."""
    kind = f"{settings.augmentation} {augmentation.VERSION} {'flip' if flip else 'no flip'}"
    return [list(hashes), *([f"{hashed} {kind} {view}" for hashed in hashes] for view in range(1, settings.copies))]


def make_phase_inputs(
    cut: Cut, settings: Phase, keep: bool, config: RunConfig, data: PreparedDataset, runtime: dict[str, str]
) -> tuple[Examples, Examples]:
    """The training and validation examples of a phase as what ``cut.below`` makes of them.

    The views of an image are drawn from its content alone. So another run finds them, whatever its seed, its labels and
    the images beside them.

    Args:
        keep: whether they are computed once and kept, or in every epoch, to the same bits.
    """
    train, val = data.split("train"), data.split("val")
    train_hashes, val_hashes = data.hashes("train").tolist(), data.hashes("val").tolist()
    views = copy_names(train_hashes, settings, config.flip)

    def draw_views(images: np.ndarray, names: list[str]) -> tf.Tensor:
        keys = np.array([key_of(name.split()[0]) for name in names], np.uint64)  # of the content
        numbers = np.array([int(name.split()[-1]) if " " in name else 0 for name in names])
        parameters = augmentation.draw(settings.augmentation, config.flip, COPY_SEED, numbers, keys, images.shape[1])
        is_plain = (numbers == 0)[:, None, None, None]
        changed = augmentation.apply(settings.augmentation, tf.constant(images), parameters)
        return tf.where(is_plain, tf.cast(images, tf.float32), changed)

    # The graph is built when the first activation is missing.
    entry = activations_of_cut(cut, config, data.images.pixel_key, runtime)
    frozen = FrozenPart(entry, lambda images: cut.below_fn(images))
    all_rows = np.concatenate([np.tile(train.rows, len(views)), val.rows])
    all_names = [name for names in views for name in names] + val_hashes
    images = NamedImages(data.images.pixels, all_rows, all_names, draw_views if len(views) > 1 else None)
    inputs: Rows = ComputedActivations(frozen, images)
    positions = np.arange(len(all_names))
    if keep:
        try:
            inputs, positions = cached_activations(frozen, images, Cache.of(config))
        except NoSpace as error:
            logger.info(f"{error} The run goes on and computes them in every epoch, to the same bits.")
    num_rows = len(views) * len(train)
    train_rows = positions[:num_rows].reshape(len(views), len(train))
    if len(views) == 1:
        train_rows = train_rows[0]
    return replace(train, inputs=inputs, rows=train_rows), replace(val, inputs=inputs, rows=positions[num_rows:])
