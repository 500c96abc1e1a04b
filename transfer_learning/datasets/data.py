"""A dataset as a run sees it: loaded, decoded, divided into splits."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from transfer_learning.config import RunConfig
from transfer_learning.datasets.corrections import apply_corrections, read_corrections
from transfer_learning.datasets.dataset import UNSEEN, Dataset, split_off_unseen
from transfer_learning.datasets.decoding.pixel_cache import Store, open_store
from transfer_learning.datasets.manifest import check_classes, fingerprint, make_manifest
from transfer_learning.datasets.sources.registry import load_dataset

if TYPE_CHECKING:
    from transfer_learning.datasets.pipeline import Examples


@dataclass(frozen=True)
class Data:
    """The decoded images of a dataset, and the manifest that says which split each belongs to."""

    class_names: tuple[str, ...]
    ignored: tuple[tuple[str, str], ...]  # (file, reason)
    store: Store
    manifest: pd.DataFrame  # a row an example, as `make_manifest` makes it

    def split(self, name: str) -> "Examples":
        """The images of "train", "val", "test" or UNSEEN; there may be none."""
        from transfer_learning.datasets.pipeline import examples_of_split  # TensorFlow, which `prepare` does without

        return examples_of_split(self.manifest, name, self.class_names, self.store.pixels, self.store.rows)

    def hashes(self, *splits: str) -> np.ndarray:
        """SHA-256 of the images of these splits, one split after the other, in the order of `split`."""
        return np.concatenate([self.manifest.loc[self.manifest["split"] == split, "sha256"] for split in splits])

    @property
    def fingerprint(self) -> str:
        """What a run belongs to; see `manifest.fingerprint`."""
        return fingerprint(self.manifest, self.class_names)

    @property
    def eval_split(self) -> str:
        """The split that a run is judged by: the test, or the validation images of a dataset without one."""
        return "test" if (self.manifest["split"] == "test").any() else "val"

    def describe(self) -> str:
        """``1,200 images of 10 classes: 812 train, 148 val, 240 test, 0 skipped; 3 other files ignored``."""
        counts = self.manifest["split"].value_counts()
        splits = ", ".join(f"{counts.get(name, 0):,} {name}" for name in ("train", "val", "test"))
        if UNSEEN in counts:
            splits += f", {counts[UNSEEN]:,} of classes held out"
        return (
            f"{len(self.manifest):,} images of {len(self.class_names)} classes: {splits}, {counts.get('', 0):,} skipped; "
            f"{len(self.ignored):,} other files ignored"
        )


def load_data(config: RunConfig) -> Data:
    """Loads, decodes (unless an earlier run did) and splits the dataset that `config` names.

    Args:

    Raises:
        UserError: there is no such dataset, or no classifier can be made of it.
    """
    return open_data(load_dataset(config.dataset, config.data_dir), config)


def open_data(dataset: Dataset, config: RunConfig) -> Data:
    """`load_data` of a dataset whose files are listed already."""
    data = look_at(dataset, config)
    check_classes(data.manifest, data.class_names)
    return data


def look_at(dataset: Dataset, config: RunConfig) -> Data:
    """`open_data` of a dataset of which a class may have nothing to train on."""
    dropped: dict[str, str] = {}
    if config.corrections:
        dataset, dropped = apply_corrections(dataset, read_corrections(config.corrections))
    dataset = split_off_unseen(dataset, config.unseen_classes)  # by the corrected labels
    store = open_store(dataset, config.stored_size, config.resize, config.cache_dir, config.decoded_gb, config.cache_gb)
    manifest = make_manifest(
        dataset,
        store.facts,
        config.val_fraction,
        config.test_fraction,
        config.skip_unreadable,
        config.group_by,
        dropped,
    )
    return Data(dataset.class_names, dataset.ignored, store, manifest)
