"""An exported file that is compared with a run, on the images of the run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter

import numpy as np
import pandas as pd

from transfer_learning.cli.progress import count_progress
from transfer_learning.datasets.prepared import decoded_otherwise
from transfer_learning.evaluation import predictions
from transfer_learning.experiments.finished_run import FinishedRun
from transfer_learning.exports.predictor import BATCH, Predictor


@dataclass(frozen=True)
class ExportedFile:
    """A file of any run that knows the same classes."""

    name: str  # its path
    run: FinishedRun  # the one that has the images

    @cached_property
    def predictor(self) -> Predictor:
        """Opens the file; the errors are those of `Predictor`."""
        return Predictor(self.name)

    @property
    def class_names(self) -> Sequence[str]:
        """The classes by position."""
        return self.predictor.class_names

    def examples(self, split: str) -> pd.DataFrame:
        """The images of the run, see `FinishedRun.examples`."""
        return self.run.examples(split)

    def predictions(self, split: str) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
        """Predicts a split of the run, its images decoded as the file asks for.

        Returns:
            The predictions and the seconds that they took, as `ensembles.predict_transforms`: of the plain image.
        """
        data, config, predictor = self.run.data(split), self.run.config, self.predictor
        config = replace(config, dataset=self.run.dataset or config.dataset)
        looks = predictor.image_size, predictor.resize, predictor.value_ranges
        pixels, rows = decoded_otherwise(config, data.hashes(split), *looks)
        progress, started = count_progress(f"{self.name}, {split} images"), perf_counter()
        found = np.empty((len(rows), len(self.class_names)), np.float32)
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            found[part] = predictor.probabilities(pixels[rows[part]])
            progress(min(start + BATCH, len(rows)), len(rows))
        examples = data.split(split)
        places = [self.class_names.index(name) for name in data.class_names]
        table = predictions.table(examples.ids, examples.labels, found[:, places], data.class_names)
        return {"plain": table}, {"plain": perf_counter() - started}
