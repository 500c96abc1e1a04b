"""Finding images, and predicting them with the classifier of a finished run."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from transfer_learning.config import RunConfig
from transfer_learning.datasets.dataset import Source
from transfer_learning.datasets.decoding.decode import Decoded, decode
from transfer_learning.datasets.decoding.workers import DecodeWorkers
from transfer_learning.datasets.sources import archive, table
from transfer_learning.datasets.sources.folder import files_below, reason_to_ignore
from transfer_learning.datasets.sources.registry import DATASETS, load_dataset, scheme_of
from transfer_learning.errors import UserError
from transfer_learning.machine.resources import usable_cores

if TYPE_CHECKING:
    from transfer_learning.models.classifier import Classifier

IMAGES_AT_A_TIME = 256  # decoded ones in memory
TABLE_SUFFIXES = (".csv", ".tsv", ".txt")


class Image(NamedTuple):
    """An image to predict."""

    name: str  # its path; inside an archive below the path of the archive
    source: Source


class FoundImages(NamedTuple):
    """Images, and the files beside them that are none, each with a reason."""

    images: list[Image]
    ignored: list[tuple[str, str]]  # (file, reason)

    def describe_ignored(self) -> str:
        """``3 other files ignored: 2 not named like an image (.txt), 1 hidden``; "" for none."""
        if not self.ignored:
            return ""
        reasons = Counter(reason for _, reason in self.ignored).most_common()
        files = "1 other file" if len(self.ignored) == 1 else f"{len(self.ignored):,} other files"
        return f"{files} ignored: {', '.join(f'{count:,} {reason}' for reason, count in reasons)}"


class FilePrediction(NamedTuple):
    """The prediction of one image, or why it could not be read."""

    name: str
    probabilities: np.ndarray | None  # float32 (classes,), or None for an unreadable image
    problem: str  # "" for a readable image
    kind: str  # of the problem, one of those in `datasets.dataset`


def predict_images(classifier: "Classifier", config: RunConfig, images: Sequence[Image]) -> Iterator[FilePrediction]:
    """Predicts images in their order; at most IMAGES_AT_A_TIME are in memory."""
    from transfer_learning.models.classifier import probabilities

    workers = DecodeWorkers(config.stored_size, config.resize)

    def decoded(image: Image) -> Decoded:
        if isinstance(image.source, np.ndarray):
            return decode(image.source, config.stored_size, config.resize)
        return workers.decode(image.source)[1]

    with workers, ThreadPoolExecutor(usable_cores()) as threads:
        for start in range(0, len(images), IMAGES_AT_A_TIME):
            chunk = images[start : start + IMAGES_AT_A_TIME]
            results = list(threads.map(decoded, chunk))
            readable = [result.pixels for result in results if result.pixels is not None]
            predicted: Iterator[np.ndarray] = iter(())
            if readable:
                pixels = np.stack(readable)
                predicted = iter(probabilities(classifier, pixels, np.arange(len(pixels))))
            for image, result in zip(chunk, results, strict=True):
                found = None if result.pixels is None else next(predicted)
                yield FilePrediction(image.name, found, result.problem, result.kind)


def find_images(places: Iterable[str | os.PathLike], data_dir: str | Path) -> FoundImages:
    """The images at one or more places, those of a folder sorted by name.

    Args:
        places: image files, folders that are searched for images at any depth, and everything that `run` takes:
            archives, tables, names of known datasets.
        data_dir: where archives are unpacked and known datasets are.

    Raises:
        UserError: there is nothing at a place, or no image.
    """
    images, ignored = [], []
    for place in places:
        found = _images_at(os.fspath(place), Path(data_dir))
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
        dataset = table.read(path)
    elif place in DATASETS or scheme_of(place)[0]:
        dataset = load_dataset(place, data_dir)
    else:
        raise UserError(
            f"There is no image and no folder {place}; give images, or folders, archives or tables of images."
        )
    images = [
        Image(str(example.source) if isinstance(example.source, Path) else example.id, example.source)
        for example in dataset.examples
    ]
    return FoundImages(images, list(dataset.ignored))


def _images_below(folder: Path, shown_as: Path) -> FoundImages:
    found = FoundImages([], [])
    for file in files_below(folder):
        name = str(shown_as / file.relative_to(folder))
        if reason := reason_to_ignore(file, folder):
            found.ignored.append((name, reason))
        else:
            found.images.append(Image(name, file))
    return found
