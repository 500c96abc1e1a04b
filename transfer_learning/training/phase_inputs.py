"""Activations at the cut of a phase as its inputs: cached, or computed whenever they are read."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from transfer_learning.config import Phase, RunConfig
from transfer_learning.datasets import augmentation
from transfer_learning.datasets.pipeline import Examples, key_of
from transfer_learning.datasets.prepared import PreparedDataset
from transfer_learning.errors import UserError
from transfer_learning.machine.devices import set_up_devices
from transfer_learning.machine.strategy import ALONE, Workers
from transfer_learning.models.classifier import build_classifier, unfreeze_layers
from transfer_learning.models.features import (
    ComputedActivations,
    FrozenPart,
    NamedImages,
    activations_entry,
    cached_activations,
)
from transfer_learning.models.freezing import Cut, find_cut
from transfer_learning.models.head_features import feature_blocks
from transfer_learning.storage.cache import Cache, NoSpace
from transfer_learning.storage.cache_index import EntrySpec
from transfer_learning.storage.rows import Rows

logger = logging.getLogger(__name__)

COPY_SEED = 0  # not the run's seed, so that runs with other seeds find the same augmented copies in the cache


def activations_of_cut(cut: Cut, config: RunConfig, pixel_key: str, runtime: dict[str, str]) -> EntrySpec:
    """The cache entry of the activations at the cut: `pixel_key` as in `CachedImages`; `runtime`, versions, device and
    flags, which the last bits depend on.
    """
    runtime = {name: value for name, value in runtime.items() if name != "keras_settings"}  # as earlier versions did
    key = json.dumps([runtime, pixel_key, keras.mixed_precision.dtype_policy().name])
    entry = activations_entry(cut.below, key, config.backbone, config.image_size)
    return replace(entry, facts={**entry.facts, "resize": config.resize})


def frozen_part(cut: Cut, config: RunConfig, pixel_key: str, runtime: dict[str, str]) -> FrozenPart:
    """The layers below the cut, whose graph is built when the first activation is missing; arguments as above."""
    return FrozenPart(activations_of_cut(cut, config, pixel_key, runtime), lambda images: cut.below_fn(images))


def frozen_features(config: RunConfig, class_names: tuple[str, ...]) -> tuple[Callable[[str], FrozenPart], int]:
    """Sets up the device and builds the network; returns a function from `pixel_key` to the frozen backbone and its pooling,
    and the width of the first of the parts of the features, those of the highest map.

    Raises:
        UserError: the backbone has random weights.
    """
    devices = set_up_devices(config.precision, config.seed)
    classifier = build_classifier(config, class_names)
    unfreeze_layers(classifier, config.backbone, "none")
    cut = find_cut(classifier)
    if cut is None:
        raise UserError(
            f"--features needs a pretrained backbone, and {config.backbone} with --weights {config.weights} is not; "
            "leave --features out, or choose another backbone."
        )
    width = feature_blocks(classifier.backbone, config.head_features)[0]
    return (lambda pixel_key: frozen_part(cut, config, pixel_key, devices.fingerprint)), width


def copy_names(hashes: Sequence[str], settings: Phase, flip: bool) -> list[list[str]]:
    """Returns for each copy of a phase the cache keys of all images; copy 0 of an image is the image itself."""
    kind = f"{settings.augmentation} {augmentation.VERSION} {'flip' if flip else 'no flip'}"
    return [list(hashes), *([f"{hashed} {kind} {copy}" for hashed in hashes] for copy in range(1, settings.copies))]


def make_phase_inputs(
    cut: Cut,
    settings: Phase,
    is_cached: bool,
    config: RunConfig,
    data: PreparedDataset,
    runtime: dict[str, str],
    workers: Workers = ALONE,
) -> tuple[Examples, Examples]:
    """Returns training and validation examples whose inputs are the activations at the cut, computed once (`is_cached`)
    or whenever they are read, with the same bits. Each of several workers computes a part of those that are missing.

    Augmented copies depend on the content of an image only, so that another run finds them in the cache, whatever its
    seed, labels and other images.
    """
    train, val = data.split("train"), data.split("val")
    train_names = copy_names(data.hashes("train").tolist(), settings, config.flip)
    num_copies = len(train_names)

    def augment(images: np.ndarray, names: list[str]) -> tf.Tensor:
        content_keys = np.array([key_of(name.split()[0]) for name in names], np.uint64)
        copies = np.array([int(name.split()[-1]) if " " in name else 0 for name in names])
        parameters = augmentation.draw(
            settings.augmentation, config.flip, COPY_SEED, copies, content_keys, images.shape[1]
        )
        is_plain = (copies == 0)[:, None, None, None]
        augmented = augmentation.apply(settings.augmentation, tf.constant(images), parameters)
        return tf.where(is_plain, tf.cast(images, tf.float32), augmented)

    frozen = frozen_part(cut, config, data.images.pixel_key, runtime)
    rows = np.concatenate([np.tile(train.rows, num_copies), val.rows])
    names = [name for names_of_copy in train_names for name in names_of_copy] + data.hashes("val").tolist()
    images = NamedImages(data.images.pixels, rows, names, augment if num_copies > 1 else None)
    inputs: Rows = ComputedActivations(frozen, images)
    positions = np.arange(len(names))
    if is_cached:
        if workers.count > 1:
            own = workers.part(len(names))
            with suppress(NoSpace):
                cached_activations(frozen, images._replace(rows=rows[own], names=names[own]), Cache.of(config))
            workers.wait()
        try:
            inputs, positions = cached_activations(frozen, images, Cache.of(config))
        except NoSpace as error:
            logger.warning(f"{error} The run continues and computes them in every epoch, with the same bits.")
    num_train_rows = num_copies * len(train)
    train_rows = positions[:num_train_rows].reshape(num_copies, len(train))
    if num_copies == 1:
        train_rows = train_rows[0]
    return replace(train, inputs=inputs, rows=train_rows), replace(val, inputs=inputs, rows=positions[num_train_rows:])
