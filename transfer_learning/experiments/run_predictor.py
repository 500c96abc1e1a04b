"""The classifier of a finished run as what `serve` and `predict` use: batches of pixels in, probabilities out."""

import io
import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from transfer_learning.datasets.decoding.workers import DecodeWorkers
from transfer_learning.errors import UserError
from transfer_learning.evaluation import predictions
from transfer_learning.evaluation.grad_cam import grad_cam
from transfer_learning.models.classifier import probabilities, softmax
from transfer_learning.models.inference_graph import inference_graph

if TYPE_CHECKING:
    from transfer_learning.experiments.finished_run import FinishedRun

logger = logging.getLogger(__name__)

REFERENCE_IMAGES = 256  # validation images whose features are computed when a server starts


class RunPredictor:
    """Predicts with a finished run; the attributes and `probabilities` are those of an export's `Predictor`."""

    def __init__(self, run: "FinishedRun"):
        self._run, self._classifier = run, run.classifier()
        self.class_names = self._classifier.class_names
        self.image_size, self.resize = run.config.stored_size, run.config.resize
        self.rejection_threshold = self._classifier.rejection_threshold
        self.value_ranges = run.value_ranges  # of images with more than 8 bits

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns float32 (n, classes) of uint8 (n, size, size, 3), with the bits of ``predictions/test.csv``."""
        return probabilities(self._classifier, images, np.arange(len(images)))

    def probabilities_and_features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns float32 (n, classes) and (n, width) of uint8 (n, size, size, 3), whose last bits depend on n."""
        both = self._serving_graph(tf.constant(images, tf.float32)).numpy()
        num_classes = len(self.class_names)
        return softmax(both[:, :num_classes], self._classifier.temperature), both[:, num_classes:]

    def grad_cam(self, image: np.ndarray, class_index: int) -> bytes:
        """Returns a PNG of uint8 (size, size, 3) with the regions that support a class in colour."""
        import matplotlib

        (importance,) = grad_cam(self._classifier, image[None], np.array([class_index]))
        smooth = Image.fromarray(importance).resize(image.shape[1::-1], Image.Resampling.BILINEAR)
        colours = matplotlib.colormaps["inferno"](np.asarray(smooth))[:, :, :3] * 255
        stream = io.BytesIO()
        Image.fromarray((0.5 * image + 0.5 * colours).astype(np.uint8)).save(stream, "PNG")
        return stream.getvalue()

    def validation_probabilities(self) -> np.ndarray | None:
        """Returns float32 (m, classes) of the validation images, as recorded; None without any."""
        try:
            return predictions.probabilities(predictions.read(self._run.run_dir.predictions("val")))
        except UserError:
            return None

    def validation_features(self) -> np.ndarray | None:
        """Returns float32 (k, width) of REFERENCE_IMAGES validation images at most; None if their files have changed.

        Only the files themselves are read: to load their dataset might download it.
        """
        rows = self._run.examples("val", ["file", "sha256"])
        rows = rows.iloc[np.linspace(0, len(rows) - 1, min(REFERENCE_IMAGES, len(rows))).astype(int)]
        with DecodeWorkers(self.image_size, self.resize, ranges=self.value_ranges) as workers:
            decoded = workers.map(map(Path, rows["file"]))
        pixels = [image.pixels for _, image in decoded if not image.problem]
        if not pixels or len(pixels) < len(rows) or [digest for digest, _ in decoded] != list(rows["sha256"]):
            logger.info("Drift of the features is not measured, because the validation images are not in their place.")
            return None
        batches = np.array_split(np.stack(pixels), -(-len(pixels) // 32))
        return np.concatenate([self.probabilities_and_features(batch)[1] for batch in batches])

    @cached_property
    def _serving_graph(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """float32 images (n, size, size, 3) -> logits and features, side by side."""
        images = self._classifier.model.input
        features = self._classifier.extractor(images)
        both = keras.layers.Concatenate(dtype="float32")([self._classifier.head(features), features])
        return inference_graph(keras.Model(images, both), None)
