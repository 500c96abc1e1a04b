"""A finished run evaluated on any labelled dataset; classes are matched by name."""

import logging
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from transfer_learning.cli.formatting import listed
from transfer_learning.datasets.dataset import SPLITS, UNSEEN, Dataset
from transfer_learning.datasets.decoding.pixel_cache import CachedImages, cached_images
from transfer_learning.datasets.manifest import COLUMNS, unsplit
from transfer_learning.datasets.moved import read_manifest
from transfer_learning.datasets.prepared import PreparedDataset
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.datasets.sources.table import BY_NAME, Columns
from transfer_learning.errors import UserError, did_you_mean
from transfer_learning.evaluation import metrics
from transfer_learning.experiments.earlier_run import images_trained_on
from transfer_learning.experiments.ensembles import evaluate_again
from transfer_learning.experiments.evaluate import evaluate_split
from transfer_learning.experiments.finished_run import FinishedRun
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.files import write_json

logger = logging.getLogger(__name__)


def evaluate_on(run: FinishedRun, place: str, split: str | None, columns: Columns = BY_NAME) -> dict[str, Any]:
    """Evaluates a run on the dataset at `place`; the results are written into its directory and returned.

    If those are the images that the run was trained on, they have only moved, and `split` (default: "test") is evaluated
    again. Otherwise all images of the dataset are evaluated, or those of its own split `split`.

    Args:
        columns: of a table; "" for those of the run's config.

    Raises:
        UserError: there is no such dataset, or no image of a class of the run.
    """
    config = run.config
    columns = Columns(columns.path or config.path_column, columns.label or config.label_column)
    dataset = load_dataset(place, config.data_dir, for_training=False, columns=columns)
    size, cache = config.stored_size, Cache.of(config)
    images = cached_images(dataset, size, config.resize, cache, config.decoded_gb, run.value_ranges)
    recorded = read_manifest(run.run_dir.manifest)
    if recorded is not None and sorted(recorded["sha256"]) == sorted(images.facts["sha256"]):
        logger.info(f"{place} holds the images that {run.name} was trained on.")
        return evaluate_again(replace(run, dataset=place, columns=columns), split or "test")

    name = result_name(place)
    manifest, left_out = _labelled(dataset, images, run, name, split)
    trained_on = images_trained_on(run.run_dir)
    num_trained_on = int(manifest.loc[manifest["split"] == name, "sha256"].isin(trained_on).sum())
    if num_trained_on:
        logger.warning(
            f"{run.name} was trained or validated on {num_trained_on:,} of these images, so the accuracy is too high; leave "
            "these images out to measure the accuracy on new ones."
        )
    data = PreparedDataset(tuple(run.class_names), dataset.ignored, images, manifest)
    classifier = run.classifier()
    with run.run_dir.locked():
        evaluation = evaluate_split(classifier, data, name, run.run_dir) | {
            "dataset": os.path.abspath(place) if Path(place).exists() else place,
            "weights_sha256": classifier.weights_digest(),
            "num_trained_on": num_trained_on,
            **left_out,
        }
        write_json(run.run_dir.evaluation_of(name), evaluation)
    logger.info(metrics.describe(evaluation))
    logger.info(f"Results: {run.run_dir.evaluation_of(name)} and {run.run_dir.predictions(name)}")
    return evaluation


def result_name(place: str) -> str:
    """The name of the results in the files of a run: that of the dataset, which is never that of a split."""
    stem = re.sub(r"[^\w.-]", "_", Path(os.path.abspath(place) if Path(place).exists() else place).name).strip(".")
    stem = stem.partition(".")[0][:100]
    return f"dataset_{stem}" if stem in ("", *SPLITS, UNSEEN) or stem.endswith("_views") else stem


def _labelled(
    dataset: Dataset, images: CachedImages, run: FinishedRun, name: str, split: str | None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The manifest with the images to evaluate in the split `name`, and what is left out."""
    manifest = unsplit(dataset, images.facts).assign(group="")
    manifest["label"] = manifest["label"].replace(_matched(dataset.class_names, run.class_names))
    is_known = manifest["label"].isin(run.class_names)
    is_readable = manifest["problem"] == ""
    is_asked = (manifest["split"] == split) | (split is None)
    if split and not is_asked.any():
        raise UserError(f"{dataset.name} has no {split} images of its own; leave out --split {split}.")
    manifest["split"] = np.where(is_known & is_readable & is_asked, name, "")
    unknown = Counter(manifest.loc[~is_known & is_asked, "label"])
    if not (is_known & is_asked).any():
        raise UserError(
            f"{dataset.name} has no image of a class of {run.name}: its classes are {listed(sorted(unknown))}, and those "
            f"of the run {listed(run.class_names)}; rename the folders or labels, or use predict."
        )
    if unknown:
        first = min(unknown)
        logger.warning(
            f"{sum(unknown.values()):,} images are left out, because the run does not know their classes "
            f"({listed(sorted(unknown))}).{did_you_mean(first, run.class_names)}"
        )
    if not_there := [one for one in run.class_names if one not in set(manifest["label"])]:
        logger.info(f"{dataset.name} has no images of these classes of the run: {listed(not_there)}.")
    bad = manifest[~is_readable & is_known & is_asked]
    if len(bad):
        logger.warning(
            f"{len(bad):,} images cannot be read and are left out, such as {bad['file'].iloc[0] or bad['id'].iloc[0]}: "
            f"{bad['problem'].iloc[0]}."
        )
    if not (manifest["split"] == name).any():
        raise UserError(f"{dataset.name} has no image that can be read; repair the files, or name others.")
    return manifest[list(COLUMNS)], {"unknown_classes": dict(sorted(unknown.items())), "num_unreadable": len(bad)}


def _matched(names: tuple[str, ...], class_names: list[str]) -> dict[str, str]:
    """The class of the run for each name that differs from it in case and surrounding spaces only."""
    by_folded: dict[str, list[str]] = {}
    for name in class_names:
        by_folded.setdefault(name.strip().casefold(), []).append(name)
    matched = {}
    for name in names:
        found = by_folded.get(name.strip().casefold(), [])
        if name not in class_names and len(found) == 1:
            matched[name] = found[0]
    if matched:
        logger.info(f"Matched to classes of the run: {', '.join(f'{one} to {own}' for one, own in matched.items())}.")
    return matched
