"""Predictions with an exported file, without TensorFlow: Pillow, NumPy and the runtime of the file."""

import itertools
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from transfer_learning.cli.parser import quiet_start
from transfer_learning.datasets.decoding.decode import Decoded, decode
from transfer_learning.datasets.decoding.given import GivenImage, each_image
from transfer_learning.datasets.decoding.value_range import Ranges
from transfer_learning.datasets.sources.folder import files_below, reason_to_ignore
from transfer_learning.errors import UserError
from transfer_learning.exports.formats import FORMATS, format_of
from transfer_learning.machine.resources import usable_cores
from transfer_learning.storage.files import read_json
from transfer_learning.storage.run_directory import RunDir

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

BATCH = 32  # images per call of the runtime
COLUMNS = ["file", "class", "confidence", "rejected", "problem"]  # of a table of predictions
FASTEST = ("litert", "onnx", "openvino")  # formats without TensorFlow, by the time until the first prediction


class ImagePredictor(Protocol):
    """What predicts images, for `predict` and `serve` the same: a `Predictor`, or a `RunPredictor`, which also has
    ``grad_cam`` and ``probabilities_and_features``.
    """

    image_size: int
    resize: str
    rejection_threshold: float
    value_ranges: Ranges  # of images with more than 8 bits

    @property
    def class_names(self) -> Sequence[str]:
        """The classes by position."""

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns float32 (n, classes) of uint8 (n, size, size, 3)."""


class FilePrediction(NamedTuple):
    """The prediction of one image, or why it could not be read."""

    name: str
    probabilities: np.ndarray | None  # float32 (classes,), or None for an unreadable image
    problem: str  # "" for a readable image
    kind: str  # of the problem, one of those in `datasets.dataset`

    def row(self, class_names: Sequence[str], rejection_threshold: float, top_k: int = 1) -> tuple[Any, ...]:
        """Returns the values of `columns`; of an unreadable image the name and the problem."""
        if self.probabilities is None:
            return self.name, "", math.nan, False, self.problem, *(("", math.nan) * (top_k - 1))
        order = np.argsort(-self.probabilities, kind="stable")[:top_k]
        (best, *others) = [(class_names[position], float(self.probabilities[position])) for position in order]
        return self.name, *best, best[1] < rejection_threshold, "", *itertools.chain(*others)


class Predictor:
    """A classifier in an exported file: ``Predictor("model.onnx").predict("photos/")``.

    Images are decoded and resized exactly as in training, so an image of the test split gets the probabilities in the
    run's ``predictions/test.csv``, to 1e-4 for float formats. Thread-safe.

    Args:
        path: a file of `export`: ``model.onnx``, ``model.tflite``, ``openvino/model.xml``, ``saved_model/`` or
            ``model.keras``; the last two import TensorFlow.
        threads: that the runtime uses; by default as many as there are usable cores.

    Attributes:
        class_names: the classes by position.
        image_size: side of the network's input in pixels.
        resize: how images become square: "squash", "crop" or "pad".
        rejection_threshold: images whose highest probability is below are rejected; 0: none is.
        value_ranges: of images with more than 8 bits, as `decode` takes them.

    Raises:
        UserError: there is no such file, it is damaged or was not made by `export`; `MissingExtra` if its runtime is
            not installed.
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None):
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise UserError(
                f"threads={threads!r} is not a number of threads; give 1 or more, or None for all usable cores."
            )
        self.path, self._threads = Path(path), threads
        format = format_of(self.path)
        if not self.path.exists():
            raise UserError(f"There is no file {path}; make one with transfer-learning export RUN_DIR.")
        try:
            with quiet_start():
                self.metadata, self._run = format.load(self.path, threads or usable_cores())
        except ValueError as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{path} cannot be used as {format.name} ({reason}); write it again with transfer-learning export."
            ) from None
        self.class_names = self.metadata.class_names
        self.image_size = self.metadata.image_size
        self.resize = self.metadata.resize
        self.rejection_threshold = self.metadata.rejection_threshold
        self.value_ranges = self.metadata.value_ranges

    def __reduce__(self) -> tuple[type["Predictor"], tuple[Path, int | None]]:
        """For other processes: they open the file again."""
        return type(self), (self.path.absolute(), self._threads)

    def open_image(self, image: Any) -> np.ndarray:
        """Decodes, rotates by EXIF, makes square and resizes one image, as the run did.

        Args:
            image: what `each_image` takes.

        Returns:
            The pixels that the network sees, uint8 (image_size, image_size, 3).

        Raises:
            UserError: it cannot be decoded; the message says why.
        """
        images = list(each_image(image))
        if len(images) != 1:
            raise UserError(f"open_image takes one image, and {len(images)} were given; call it for each of them.")
        decoded = self._decoded(image := images[0])
        if decoded.problem:
            name = "The image" if isinstance(image, bytes | np.ndarray) else f"The image {os.fspath(image)}"
            raise UserError(f"{name} cannot be used: {decoded.problem}; leave it out, or repair it.")
        return decoded.pixels

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns probabilities, float32 (n, classes), of images as `open_image` returns them, uint8 (n, size, size, 3).

        Raises:
            ValueError: another shape or dtype.
        """
        expected = (self.image_size, self.image_size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"Expected uint8 images of shape (n, *{expected}); got {images.dtype} {images.shape}.")
        results = np.empty((len(images), len(self.class_names)), np.float32)
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            results[part] = self._run(np.ascontiguousarray(images[part]))
        return results

    def predict(self, images: Any) -> "pd.DataFrame":
        """Predicts images.

        Args:
            images: paths of files, or of folders that are searched for images; and the other images that `each_image`
                takes.

        Returns:
            One row per image, in order: ``file`` (the path, "" for bytes and arrays), ``class``, ``confidence``,
            ``rejected`` (whether the confidence is below the threshold), ``problem`` ("", or why the image cannot be
            decoded; then ``class`` is "" and ``confidence`` NaN).

        Raises:
            UserError: a path does not exist, or a folder has no images.
        """
        import pandas as pd

        rows, sources = [], list(_sources(each_image(images)))
        with ThreadPoolExecutor(usable_cores()) as threads:
            for start in range(0, len(sources), BATCH):  # a batch in memory at a time
                part = sources[start : start + BATCH]
                decoded = list(threads.map(self._decoded, part))
                readable = [image.pixels for image in decoded if not image.problem]
                found = iter(self.probabilities(np.stack(readable)) if readable else ())
                for source, image in zip(part, decoded, strict=True):
                    name = "" if isinstance(source, bytes | np.ndarray) else os.fspath(source)
                    probabilities = None if image.problem else next(found)
                    prediction = FilePrediction(name, probabilities, image.problem, image.kind)
                    rows.append(prediction.row(self.class_names, self.rejection_threshold))
        return pd.DataFrame(rows, columns=COLUMNS)

    def _decoded(self, image: GivenImage) -> Decoded:
        source = Path(image) if isinstance(image, str | os.PathLike) else image
        return decode(source, self.image_size, self.resize, self.value_ranges)


def _sources(images: Iterable[GivenImage]) -> Iterator[GivenImage]:
    """The images, with those of a folder in its place."""
    for image in images:
        if not isinstance(image, str | os.PathLike) or Path(image).is_file():
            yield image
            continue
        folder = Path(image)
        files = [file for file in files_below(folder) if not reason_to_ignore(file, folder)] if folder.is_dir() else []
        if not files:
            raise UserError(f"There is no image at {os.fspath(image)}; give paths of images, or of folders of images.")
        yield from files


def predictor_of_run(run_dir: RunDir) -> Predictor | None:
    """Opens the inference file of a run, or else the fastest file in its ``export/`` that passed the gate.

    Returns:
        The predictor, which starts without TensorFlow; None if there is no such file with the weights of the run, it is
        damaged, or its runtime is not installed.

    Raises:
        UserError: the evaluation, or the table of the export, is damaged.
    """
    weights = read_json(run_dir.evaluation, weights_sha256=str)["weights_sha256"]
    passed: set[str] = set()
    if run_dir.export_table.exists():
        rows = read_json(run_dir.export_table, formats=list)["formats"]
        passed = {row["format"] for row in rows if not row["problem"] and row["weights_sha256"] == weights}
    for path in (run_dir.inference, *(run_dir.export / FORMATS[name].path for name in FASTEST if name in passed)):
        if path.exists():
            try:
                predictor = Predictor(path)
            except UserError as error:
                logger.warning(f"{path} is not used: {error}")
                continue
            if predictor.metadata.weights_sha256 == weights:
                return predictor
    return None
