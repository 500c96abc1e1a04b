"""Finding images, and predicting them with the classifier of a finished run."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transfer_learning.cli.formatting import counted
from transfer_learning.datasets.dataset import Source
from transfer_learning.datasets.decoding.formats import IMAGE_SUFFIXES
from transfer_learning.datasets.decoding.given import each_image
from transfer_learning.datasets.decoding.value_range import values_in
from transfer_learning.datasets.decoding.workers import DecodeWorkers
from transfer_learning.datasets.sources import archive, table
from transfer_learning.datasets.sources.folder import files_below, reason_to_ignore
from transfer_learning.datasets.sources.registry import DATASETS, load_dataset, scheme_of
from transfer_learning.errors import UserError
from transfer_learning.exports.predictor import COLUMNS, FilePrediction, ImagePredictor

logger = logging.getLogger(__name__)

IMAGES_AT_A_TIME = 256  # decoded ones in memory
Progress = Callable[[int, int], None]
TABLE_SUFFIXES = (".csv", ".tsv", ".txt")


class Image(NamedTuple):
    """An image to predict."""

    name: str  # its path; inside an archive below the path of the archive
    source: Source | bytes


class FoundImages(NamedTuple):
    """Images, and the files beside them that are none, each with a reason."""

    images: list[Image]
    ignored: list[tuple[str, str]]  # (file, reason)

    def describe_ignored(self) -> str:
        """``3 other files ignored: 2 not named like an image (.txt), 1 hidden``; "" for none."""
        if not self.ignored:
            return ""
        reasons = Counter(reason for _, reason in self.ignored).most_common()
        named = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
        return f"{counted(len(self.ignored), 'other file')} ignored: {named}"


def columns(top_k: int) -> list[str]:
    """``file, class, confidence, rejected, problem``, and ``class_2, confidence_2, ...`` up to `top_k`."""
    return [*COLUMNS, *(f"{name}_{place}" for place in range(2, top_k + 1) for name in ("class", "confidence"))]


def predict_images(
    predictor: ImagePredictor, images: Sequence[Image], tta: str = "", progress: Progress = lambda done, total: None
) -> Iterator[FilePrediction]:
    """Predicts images in their order; at most IMAGES_AT_A_TIME are in memory.

    Args:
        tta: "flip" averages the probabilities of an image and of the mirrored one.
        progress: called with the number of images done, and of all.
    """
    ranges, warned = predictor.value_ranges, set[str]()
    with DecodeWorkers(predictor.image_size, predictor.resize, ranges=ranges) as workers:
        for start in range(0, len(images), IMAGES_AT_A_TIME):
            chunk = images[start : start + IMAGES_AT_A_TIME]
            results = [image for _, image in workers.map(image.source for image in chunk)]
            kinds = {values.kind for result in results if (values := values_in(result.remarks))}
            for kind in sorted(kinds - set(ranges) - warned):
                warned.add(kind)
                logger.warning(
                    f"Some images have {kind} values, for which the run has no value range, so they are scaled by "
                    "their type; give images like those that it was trained on."
                )
            readable = [result.pixels for result in results if result.pixels is not None]
            predicted: Iterator[np.ndarray] = iter(())
            if readable:
                pixels = np.stack(readable)
                table = predictor.probabilities(pixels)
                if tta == "flip":
                    table = (table + predictor.probabilities(np.ascontiguousarray(pixels[:, :, ::-1]))) / 2
                predicted = iter(table)
            for image, result in zip(chunk, results, strict=True):
                found = None if result.pixels is None else next(predicted)
                yield FilePrediction(image.name, found, result.problem, result.kind)
            progress(start + len(chunk), len(images))


def find_images(places: Any, data_dir: str | Path) -> FoundImages:
    """The images at one or more places, those of a folder sorted by name.

    Args:
        places: what `each_image` takes, where a path is that of an image file, of a folder that is searched for images at
            any depth, a pattern such as ``photos/*.jpg``, or everything that `run` takes: archives, tables, names of known
            datasets.
        data_dir: where archives are unpacked and known datasets are.

    Raises:
        UserError: there is nothing at a place, or no image.
    """
    images, ignored = [], []
    for place in each_image(places):
        if isinstance(place, bytes | np.ndarray):
            images.append(Image("", place))
            continue
        found = _images_at(os.path.expanduser(os.fspath(place)), Path(data_dir))
        if not found.images:
            there = f" ({found.describe_ignored()})" if found.ignored else ""
            raise UserError(f"{place} holds no images{there}; give images, or folders, archives or tables of images.")
        images += found.images
        ignored += found.ignored
    return FoundImages(images, ignored)


def _images_at(place: str, data_dir: Path) -> FoundImages:
    path = Path(place)
    if path.is_dir():
        return _images_below(path, path)
    if archive.is_archive(path):
        return _images_below(archive.unpacked(path, data_dir), path)
    if path.is_file() and path.suffix.lower() not in TABLE_SUFFIXES:
        return FoundImages([Image(str(path), path)], [])
    if path.is_file():
        dataset = table.read(path, with_labels=False)
    elif place in DATASETS or scheme_of(place)[0]:
        dataset = load_dataset(place, data_dir, for_training=False)
    elif glob.has_magic(place):
        return FoundImages([Image(name, Path(name)) for name in matching_images(place)], [])
    else:
        raise UserError(
            f"There is no image and no folder {place}; give images, or folders, archives or tables of images."
        )
    for note in dataset.notes:
        logger.log(*note)
    images = [
        Image(str(example.source) if isinstance(example.source, Path) else example.id, example.source)
        for example in dataset.examples
    ]
    return FoundImages(images, list(dataset.ignored))


def matching_images(pattern: str) -> list[str]:
    """The image files that match a pattern of the shell, sorted; ``**`` is any number of folders."""
    return [
        name
        for name in sorted(glob.glob(pattern, recursive=True))
        if os.path.isfile(name) and Path(name).suffix.lower() in IMAGE_SUFFIXES
    ]


def _images_below(folder: Path, shown_as: Path) -> FoundImages:
    found = FoundImages([], [])
    for file in files_below(folder):
        name = str(shown_as / file.relative_to(folder))
        if reason := reason_to_ignore(file, folder):
            found.ignored.append((name, reason))
        else:
            found.images.append(Image(name, file))
    return found
