"""A dataset that is ready for a run: loaded, decoded and split."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from transfer_learning.cli.console import PACKAGE, each_message_once
from transfer_learning.cli.formatting import counted
from transfer_learning.config import RunConfig
from transfer_learning.datasets.corrections import apply_corrections, read_corrections
from transfer_learning.datasets.dataset import UNSEEN, Dataset, split_off_unseen
from transfer_learning.datasets.decoding.pixel_cache import CachedImages, cached_images
from transfer_learning.datasets.decoding.value_range import Ranges
from transfer_learning.datasets.manifest import check_classes, fingerprint, group_numbers, make_manifest
from transfer_learning.datasets.names import alike, folded_label
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.datasets.sources.table import Columns
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.rows import Rows

if TYPE_CHECKING:
    from transfer_learning.datasets.pipeline import Examples

logger = logging.getLogger(__name__)

_first: ContextVar[list | None] = ContextVar("first", default=None)  # of `images_once`
_loaded: ContextVar[dict | None] = ContextVar("loaded", default=None)  # of `images_once`: the dataset by its place


@dataclass(frozen=True)
class PreparedDataset:
    """Decoded images, and the manifest with the split of each."""

    class_names: tuple[str, ...]
    ignored: tuple[tuple[str, str], ...]  # (file, reason)
    images: CachedImages
    manifest: pd.DataFrame  # one row per example, see `make_manifest`

    def split(self, name: str) -> "Examples":
        """The examples of "train", "val", "test" or UNSEEN; there may be none."""
        from transfer_learning.datasets.pipeline import examples_of_split  # imports TensorFlow

        return examples_of_split(self.manifest, name, self.class_names, self.images.pixels, self.images.rows)

    def hashes(self, *splits: str) -> np.ndarray:
        """SHA-256 of the images of these splits, one split after the other, in the order of their examples."""
        return np.concatenate([self.manifest.loc[self.manifest["split"] == split, "sha256"] for split in splits])

    def groups(self, *splits: str) -> np.ndarray | None:
        """The group of each image of these splits, one split after the other, int64 (n,); None if all images are alone."""
        return group_numbers(pd.concat([self.manifest[self.manifest["split"] == split] for split in splits]))

    @property
    def fingerprint(self) -> str:
        """The identity of the data of a run; see `manifest.fingerprint`."""
        return fingerprint(self.manifest, self.class_names, self.images.ranges)

    @property
    def eval_split(self) -> str:
        """The evaluation split: "test"; "val" for a dataset without test images; "train" for one without both."""
        return next((name for name in ("test", "val") if (self.manifest["split"] == name).any()), "train")

    def describe(self) -> str:
        """``1,200 images of 10 classes: 812 train, 148 val, 240 test, 0 skipped; 3 other files ignored``."""
        counts = self.manifest["split"].value_counts()
        splits = ", ".join(f"{counts.get(name, 0):,} {name}" for name in ("train", "val", "test"))
        if UNSEEN in counts:
            splits += f", {counts[UNSEEN]:,} of unseen classes"
        return (
            f"{len(self.manifest):,} images of {len(self.class_names):,} classes: {splits}, {counts.get('', 0):,} "
            f"skipped; {counted(len(self.ignored), 'other file')} ignored"
        )


def load_dataset_of(config: RunConfig) -> Dataset:
    """Loads the dataset of a config, or returns the one that `images_once` knows; UserError as `load_dataset`."""
    columns = Columns(config.path_column, config.label_column)
    place, loaded = (config.dataset, config.data_dir, columns), _loaded.get()
    if loaded and place in loaded:
        return loaded[place]
    dataset = load_dataset(config.dataset, config.data_dir, columns=columns)
    if loaded is not None:
        loaded[place] = dataset
    return dataset


def take_dataset_of(config: RunConfig) -> Dataset:
    """As `load_dataset_of`, after which `images_once` knows no dataset: the paths of a million images take a gigabyte."""
    dataset = load_dataset_of(config)
    _loaded.set(None)
    return dataset


def load_prepared(config: RunConfig, ranges: Ranges | None = None) -> PreparedDataset:
    """Loads, decodes (what is not cached) and splits the dataset of `config`; UserError if there is no such dataset, or
    no classifier can be trained on it. `ranges`: of values with more than 8 bits, those of a run; None: of the dataset.
    """
    return prepare_dataset(load_dataset_of(config), config, ranges=ranges)


def decoded_otherwise(
    config: RunConfig, hashes: Iterable[str], size: int, resize: str, ranges: Ranges
) -> tuple[Rows, np.ndarray]:
    """The images of the dataset of `config` as another classifier takes them.

    Args:
        hashes: SHA-256 of n of them.
        size: side in pixels.
        resize: how they become square.
        ranges: of values with more than 8 bits.

    Returns:
        Pixels, uint8 (records, size, size, 3), and the rows of these n images, int64 (n,).
    """
    images = cached_images(load_dataset_of(config), size, resize, Cache.of(config), config.decoded_gb, ranges)
    row_of = dict(zip(images.facts["sha256"], images.rows, strict=True))
    return images.pixels, np.array([row_of[digest] for digest in hashes], np.int64)


def decode_part(dataset: Dataset, config: RunConfig, part: slice) -> None:
    """Decodes into the cache what it lacks of some of the examples of a dataset."""
    own = replace(dataset, examples=dataset.examples[part])
    if own.examples:
        of = len(dataset.examples)
        cached_images(own, config.stored_size, config.resize, Cache.of(config), config.decoded_gb, {}, of)


def prepare_dataset(
    dataset: Dataset, config: RunConfig, allow_empty_classes: bool = False, ranges: Ranges | None = None
) -> PreparedDataset:
    """As `load_prepared`, of a dataset that is loaded; `allow_empty_classes`: classes may lack training images."""
    for level, text in dataset.notes:
        logger.log(level, text)
    dropped: dict[str, str] = {}
    if config.corrections:
        dataset, dropped = apply_corrections(dataset, read_corrections(config.corrections))
    dataset = split_off_unseen(dataset, config.unseen_classes)  # by the corrected labels
    _warn_of_similar_classes(dataset)
    images = _images_of(dataset, config, ranges)
    manifest = make_manifest(dataset, images.facts, config, dropped)
    if not allow_empty_classes:
        check_classes(manifest, dataset.class_names)
    return PreparedDataset(dataset.class_names, dataset.ignored, images, manifest)


@contextmanager
def images_once() -> Iterator[None]:
    """In the block the second call of `prepare_dataset` takes over the images of the first one, if they are the same
    files: a run chooses its settings on them, then trains. Every file is hashed, and all its pixels are checked, once.
    The folder is read once, until `take_dataset_of`, and messages about the dataset are logged once.
    """
    of_first, of_loaded = _first.set([]), _loaded.set({})
    try:
        with each_message_once(f"{PACKAGE}.datasets"):
            yield
    finally:
        _first.reset(of_first)
        _loaded.reset(of_loaded)


def _images_of(dataset: Dataset, config: RunConfig, ranges: Ranges | None) -> CachedImages:
    """The cached images; those of the first call where `images_once` allows it."""
    first, files = _first.get(), [example.source for example in dataset.examples]
    settings = config.stored_size, config.resize, Cache.of(config), config.decoded_gb
    if first and first[0]:
        (known_settings, known_files, images), first[0] = first[0], None  # a million paths take a gigabyte
        if ranges is None and known_settings == settings and known_files == files:
            return images
    images = cached_images(dataset, *settings, ranges)
    # Ranges of values are logged by the call that finds them, so images that have them are looked up again.
    if first == [] and not images.ranges and all(isinstance(file, Path) for file in files):
        first.append((settings, files, images))
    return images


def _distinct(name: str, others: Sequence[str]) -> str:
    """A quoted name, with escapes for what looks the same in another one: two ways to write é."""
    looks_same = [
        other for other in others if unicodedata.normalize("NFKC", other) == unicodedata.normalize("NFKC", name)
    ]
    return ascii(name) if len(looks_same) > 1 else repr(name)


def _warn_of_similar_classes(dataset: Dataset) -> None:
    """The audit lists the images of such classes: ``similar class names``."""
    groups = alike(dataset.class_names, folded_label)
    if groups:
        counts = Counter(example.label for example in dataset.examples)
        names = [[dataset.class_names[number] for number in group] for group in groups]
        listed = "; ".join(
            " and ".join(f"{_distinct(name, group)} ({counted(counts[name], 'image')})" for name in group)
            for group in names[:4]
        )
        more = f"; and {len(groups) - 4:,} more" if len(groups) > 4 else ""
        logger.warning(
            f"Class names that are nearly the same are trained as different classes: {listed}{more}; if they are one "
            "class, give it one name."
        )
