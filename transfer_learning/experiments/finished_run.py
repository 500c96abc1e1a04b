"""A finished run, opened from its directory: the one way to its classifier, its data and its predictions."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from transfer_learning.cli.console import muted
from transfer_learning.cli.parser import quiet_start
from transfer_learning.config import RunConfig
from transfer_learning.datasets.decoding import value_range
from transfer_learning.datasets.moved import read_manifest, with_recorded_ids
from transfer_learning.datasets.prepared import PreparedDataset, load_prepared
from transfer_learning.datasets.sources.table import Columns
from transfer_learning.errors import UserError
from transfer_learning.evaluation import ensemble, predictions
from transfer_learning.experiments.prediction import find_images, predict_images
from transfer_learning.exports.predictor import COLUMNS, ImagePredictor, predictor_of_run
from transfer_learning.storage.files import read_json
from transfer_learning.storage.run_directory import RunDir, check_place

if TYPE_CHECKING:  # they import TensorFlow, as `classifier` does when it is first called
    from transfer_learning.experiments.run_predictor import RunPredictor
    from transfer_learning.models.classifier import Classifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """A run that has been evaluated; `storage.run_directory.evaluated_run_dir` checks that."""

    run_dir: RunDir
    dataset: str = ""  # where the images are, if not where they were
    columns: Columns | None = None  # of `dataset`, if it is a table; None: as in the config

    @property
    def name(self) -> str:
        """The path of its directory."""
        return str(self.run_dir.path)

    @cached_property
    def config(self) -> RunConfig:
        """The config that it was trained with."""
        return self.run_dir.read_config()

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The content of ``environment.json``."""
        return read_json(self.run_dir.environment, device=dict, dataset=dict)

    @property
    def value_ranges(self) -> value_range.Ranges:
        """The value ranges of images with more than 8 bits that it was trained with."""
        return value_range.recorded(self.environment)

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """The results on the evaluation split, as in ``evaluation.json``."""
        return read_json(self.run_dir.evaluation, weights_sha256=str, class_names=list)

    @property
    def report(self) -> Path:
        """The report as a web page."""
        return self.run_dir.report

    @property
    def class_names(self) -> list[str]:
        """The classes by position."""
        return self.evaluation["class_names"]

    @cached_property
    def val_accuracy(self) -> float | None:
        """Accuracy on its validation images, 0..1; None without validation images."""
        if not self.run_dir.predictions("val").exists():
            return None
        return float(ensemble.is_correct(predictions.read(self.run_dir.predictions("val"))).mean())

    def examples(self, split: str, columns: Sequence[str] = ("id", "label", "sha256")) -> pd.DataFrame:
        """Returns columns of the manifest for the images of a split.

        Raises:
            UserError: the manifest is missing or damaged.
        """
        manifest = read_manifest(self.run_dir.manifest)
        if manifest is None or not set(columns) <= set(manifest):
            raise UserError(f"{self.run_dir.manifest} cannot be read; restore it, or leave the run out.")
        return manifest.loc[manifest["split"] == split, list(columns)]

    def classifier(self) -> "Classifier":
        """Loads its classifier, with the precision and determinism of the run.

        Raises:
            UserError: the model is missing, damaged, or not the one that was evaluated.
        """
        with quiet_start():
            from transfer_learning.machine.devices import set_up_devices
            from transfer_learning.models.classifier import load_model

        gc.collect()  # layers and variables refer to each other, so an earlier model may still be in memory
        with muted():
            set_up_devices(self.config.precision, self.config.seed, begun_with=self.environment["device"])
        return load_model(self.config, self.run_dir.model, self.evaluation["weights_sha256"])

    def data(self, split: str) -> PreparedDataset:
        """Loads the dataset that it was trained on.

        Raises:
            UserError: images, labels, splits or classes have changed since, or `split` has no images.
        """
        place, fingerprint = self.dataset or self.config.dataset, self.environment["dataset"]["fingerprint"]
        check_place(place, "--dataset")
        config = replace(self.config, dataset=place)
        if self.columns:
            config = replace(config, path_column=self.columns.path, label_column=self.columns.label)
        data = with_recorded_ids(load_prepared(config, self.value_ranges), self.run_dir.manifest, fingerprint)
        if data.fingerprint != fingerprint:
            raise UserError(
                f"The images, labels, splits or order of classes of {place} are not those that {self.name} was trained "
                "on; restore them, or evaluate one run on the new ones with --dataset."
            )
        if not len(data.split(split)):
            others = [f"--split {other}" for other in ("val", "test") if len(data.split(other))]
            raise UserError(f"{place} has no {split} images; give {(others or ['--dataset with other images'])[0]}.")
        if split == "val" and self.evaluation.get("is_refitted"):
            logger.warning(
                f"The head of {self.name} was also fitted on the validation images, so results on them are better "
                "than on new images."
            )
        return data

    def predictor(self) -> "RunPredictor":
        """Loads its classifier for images from anywhere; the errors are those of `classifier`."""
        with quiet_start():
            from transfer_learning.experiments.run_predictor import RunPredictor

        return RunPredictor(self)

    def predict(self, images: Any, skip_unreadable: bool = False, exact: bool = False) -> pd.DataFrame:
        """Predicts images, one or several, with the inference file and without TensorFlow if the run has one.

        Args:
            images: paths of images, of folders that are searched for them, and everything that `train` takes: archives,
                tables, names of known datasets; and the other images that `each_image` takes.
            skip_unreadable: leave out what cannot be decoded, and log it.
            exact: use the saved model: the bits of ``predictions/``, which are otherwise the same to 1e-4.

        Returns:
            One row per image: ``file`` ("" for bytes and pixels), ``class``, ``confidence``, ``rejected``, whether the
            confidence is below the threshold that was chosen on validation images, and ``problem``, why an image cannot
            be decoded; its ``class`` is then "" and its ``confidence`` NaN.

        Raises:
            UserError: a path is missing, or has no images.
        """
        found = find_images(images, self.config.data_dir)
        if found.ignored:
            logger.info(f"{found.describe_ignored()}.")
        predictor: ImagePredictor = (None if exact else predictor_of_run(self.run_dir)) or self.predictor()
        rows = []
        for prediction in predict_images(predictor, found.images):
            if prediction.problem and skip_unreadable:
                logger.warning(f"Skipped {prediction.name}: {prediction.problem}.")
            else:
                rows.append(prediction.row(predictor.class_names, predictor.rejection_threshold))
        return pd.DataFrame(rows, columns=COLUMNS)
