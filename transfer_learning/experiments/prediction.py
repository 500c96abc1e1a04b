"""Predicting image files with the classifier of a finished run."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from transfer_learning.config import RunConfig
from transfer_learning.datasets.decoding.workers import DecodeWorkers
from transfer_learning.datasets.sources.folder import files_below, reason_to_ignore
from transfer_learning.errors import UserError
from transfer_learning.machine.resources import usable_cores

if TYPE_CHECKING:
    from transfer_learning.models.classifier import Classifier

IMAGES_AT_A_TIME = 256  # decoded ones in memory


class FilePrediction(NamedTuple):
    """The prediction of one file, or why it could not be read."""

    file: Path
    probabilities: np.ndarray | None  # float32 (classes,), or None for an unreadable file
    problem: str  # "" for a readable file


def predict_files(classifier: "Classifier", config: RunConfig, files: Sequence[Path]) -> Iterator[FilePrediction]:
    """Predicts images in the order of `files`; at most IMAGES_AT_A_TIME are in memory."""
    from transfer_learning.models.classifier import probabilities

    workers = DecodeWorkers(config.stored_size, config.resize)
    with workers, ThreadPoolExecutor(usable_cores()) as threads:
        for start in range(0, len(files), IMAGES_AT_A_TIME):
            chunk = files[start : start + IMAGES_AT_A_TIME]
            images = [image for _, image in threads.map(workers.decode, chunk)]
            readable = [image.pixels for image in images if image.pixels is not None]
            predicted: Iterator[np.ndarray] = iter(())
            if readable:
                pixels = np.stack(readable)
                predicted = iter(probabilities(classifier, pixels, np.arange(len(pixels))))
            for file, image in zip(chunk, images, strict=True):
                yield FilePrediction(file, None if image.pixels is None else next(predicted), image.problem)


def image_files(path: Path) -> list[Path]:
    """The file itself, or the images in a folder and below it, sorted by name.

    Raises:
        UserError: there is nothing at `path`, or a folder without images.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"There is no image and no folder {path}; give paths of images, or of folders that hold some.")
    files = [file for file in files_below(path) if not reason_to_ignore(file, path)]
    if not files:
        raise UserError(f"{path} holds no images; give paths of images, or of folders that hold some.")
    return files
