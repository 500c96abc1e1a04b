"""Finished runs evaluated again: one, in several views, several as an ensemble, two against each other.

A run is read, and written into, as its directory. What several runs make together goes into a directory of its own.
"""

import gc
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd

from transfer_learning.cli.console import each_message_once, muted
from transfer_learning.cli.formatting import duration
from transfer_learning.cli.progress import count_progress
from transfer_learning.config import RunConfig
from transfer_learning.datasets.prepared import PreparedDataset, load_prepared
from transfer_learning.errors import UserError
from transfer_learning.evaluation import ensemble, metrics, predictions
from transfer_learning.evaluation.tta import View
from transfer_learning.experiments.evaluate import evaluate_split
from transfer_learning.experiments.prediction import image_files, predict_files
from transfer_learning.machine.devices import set_up_devices
from transfer_learning.models.classifier import Classifier, load_model, probabilities
from transfer_learning.reports.paired import write_paired
from transfer_learning.storage.files import read_json, write_json
from transfer_learning.storage.run_directory import RunDir

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, as its directory tells it."""

    run_dir: RunDir

    @property
    def name(self) -> str:
        return str(self.run_dir.path)

    @cached_property
    def config(self) -> RunConfig:
        return self.run_dir.read_config()

    @cached_property
    def environment(self) -> dict[str, Any]:
        return read_json(self.run_dir.environment, device=dict, dataset=dict)

    @cached_property
    def recorded(self) -> dict[str, Any]:
        """The evaluation of its run."""
        return read_json(self.run_dir.evaluation, weights_sha256=str, class_names=list)

    @property
    def evaluation(self) -> dict[str, Any]:
        """The results on the evaluation split, as in ``evaluation.json``."""
        return self.recorded

    @property
    def report(self) -> Path:
        """The report as a web page."""
        return self.run_dir.report

    def predict(
        self, paths: str | os.PathLike | Iterable[str | os.PathLike], skip_unreadable: bool = False
    ) -> pd.DataFrame:
        """Predicts image files.

        Args:
            paths: images, or folders that are searched for images; one or several.
            skip_unreadable: log and skip what cannot be read.

        Returns:
            One row per image: file, class, confidence, and rejected, whether the confidence is below the threshold that
            was chosen on validation images.

        Raises:
            UserError: a path is missing, a folder has no images, or an image cannot be read.
        """
        paths = [paths] if isinstance(paths, str | os.PathLike) else paths
        files = [file for path in paths for file in image_files(Path(path))]
        classifier, rows = self.network(), []
        for file, predicted, problem in predict_files(classifier, self.config, files):
            if predicted is not None:
                confidence = float(predicted.max())
                name = classifier.class_names[predicted.argmax()]
                rows.append((str(file), name, confidence, confidence < classifier.rejection_threshold))
            elif skip_unreadable:
                logger.warning(f"Skipped {file}: {problem}.")
            else:
                raise UserError(f"{file} cannot be predicted: {problem}; leave it out, or pass skip_unreadable=True.")
        return pd.DataFrame(rows, columns=["file", "class", "confidence", "rejected"])

    @property
    def class_names(self) -> list[str]:
        return self.recorded["class_names"]

    @cached_property
    def val_accuracy(self) -> float | None:
        """On its validation images, as its run predicted them; None where there are none."""
        if not self.run_dir.predictions("val").exists():
            return None
        return float(ensemble.right(predictions.read(self.run_dir.predictions("val"))).mean())

    def examples(self, split: str) -> pd.DataFrame:
        """id, label and sha256 of the images of a split."""
        try:
            manifest = pd.read_csv(self.run_dir.manifest, dtype=str, na_filter=False, encoding="utf-8")
            return manifest.loc[manifest["split"] == split, ["id", "label", "sha256"]]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.run_dir.manifest} cannot be read ({error}); restore it, or leave the run out."
            ) from None

    def network(self) -> Classifier:
        """Its network, computing as when the run was begun."""
        gc.collect()  # layers and variables refer to each other, so the network of another member may still lie about
        device = self.environment["device"]
        with muted():
            set_up_devices(self.config.precision, self.config.seed, begun_with=device)
        return load_model(self.config, self.run_dir.model, self.recorded["weights_sha256"])

    def data(self, split: str) -> PreparedDataset:
        """The images that it was trained on and judged by.

        Raises:
            UserError: they have changed since, or the split has none.
        """
        data = load_prepared(self.config)
        if data.fingerprint != self.environment["dataset"]["fingerprint"]:
            raise UserError(
                f"The images, labels, splits or order of classes of {self.config.dataset} are not those that {self.name} was "
                "trained on; restore them, or use predict on the new ones."
            )
        if not len(data.split(split)):
            others = [other for other in ("val", "test") if len(data.split(other))]
            raise UserError(f"{self.config.dataset} has no {split} images; give --split {others[0]}.")
        return data


def evaluate_again(member: FinishedRun, split: str) -> dict[str, Any]:
    """Predicts a split once more, into the run's directory."""
    run_dir, classifier, data = member.run_dir, member.network(), member.data(split)
    with run_dir.locked():
        evaluation = evaluate_split(classifier, data, split, run_dir)
        write_json(run_dir.evaluation_of(split), evaluation | {"weights_sha256": classifier.weights_digest()})
    logger.info(
        f"{metrics.describe(evaluation)}\nResults: {run_dir.evaluation_of(split)} and {run_dir.predictions(split)}"
    )
    return evaluation


def evaluate_views(member: FinishedRun, split: str, views: Sequence[View]) -> dict[str, Any]:
    """The average over views of each image against the plain one, into the run's directory."""
    warn_of_mirrors([member], views)
    with member.run_dir.locked():
        tables, seconds = predict_in_views(member, split, views)
        table = ensemble.average(tables)
        gain = ensemble.paired_difference(tables["plain"], table)
        evaluation = {
            "split": split,
            **metrics.evaluate(table, predictions.class_names(table)),
            "weights_sha256": member.recorded["weights_sha256"],
            "views": list(tables),
            "gain": {"before": "plain", **gain},
            "seconds": {"before": seconds["plain"], "after": sum(seconds.values())},
        }
        logger.info(f"In {len(views)} views: {metrics.describe(evaluation)}")
        logger.info(f"Gain: {ensemble.describe(gain, 'the plain image', f'the average of {len(views)} views')}")
        logger.info(cost_in_words(evaluation, len(views), "the plain image"))
        _write(evaluation, table, member.run_dir, in_views=True)
    return evaluation


@each_message_once()
def evaluate_ensemble(
    members: Sequence[FinishedRun], split: str, views: Sequence[View], run_dir: RunDir
) -> dict[str, Any]:
    """The average over members, each of it over views, against the member that validation images tell to be the best."""
    check_same_images(members, [split])
    warn_of_mirrors(members, views)
    best = by_validation(members)[0]
    tables, plain, seconds = {}, {}, {}
    for member in members:  # one network in memory at a time
        of_views, seconds_of_views = predict_in_views(member, split, views)
        plain[member], tables[member] = of_views["plain"], ensemble.average(of_views)
        seconds[member] = seconds_of_views
    table = ensemble.average({member.name: tables[member] for member in members})
    gain = ensemble.paired_difference(plain[best], table)
    rows = [
        {
            "run_dir": member.name,
            "weights_sha256": member.recorded["weights_sha256"],
            "accuracy": float(ensemble.right(tables[member]).mean()),
            "val_accuracy": member.val_accuracy,
            "seconds": sum(seconds[member].values()),
        }
        for member in members
    ]
    evaluation = {
        "split": split,
        **metrics.evaluate(table, predictions.class_names(table)),
        "members": rows,
        "views": [view.name for view in views],
        "gain": {"before": best.name, **gain},
        "seconds": {"before": seconds[best]["plain"], "after": sum(row["seconds"] for row in rows)},
    }
    for row in rows:
        logger.info(
            f"{row['run_dir']}: {split} accuracy {row['accuracy']:.2%}{_validation_in_words(row['val_accuracy'])}"
        )
    logger.info(f"The average of {len(members)} members: {metrics.describe(evaluation)}")
    in_views = f" in {len(views)} views" if len(views) > 1 else ""
    why = "the first given" if best.val_accuracy is None else "the best on validation images"
    logger.info(
        f"Gain: {ensemble.describe(gain, f'{best.name} ({why}) alone', f'the average of {len(members)} members{in_views}')}"
    )
    logger.info(cost_in_words(evaluation, len(members) * len(views), f"{best.name} alone"))
    run_dir.path.mkdir(parents=True, exist_ok=True)
    with run_dir.locked():
        _write(evaluation, table, run_dir)
    return evaluation


@each_message_once()
def compare_pair(members: Sequence[FinishedRun], split: str, views: Sequence[View], run_dir: RunDir) -> dict[str, Any]:
    """Two runs on the same images, judged image by image; nothing is averaged over the two."""
    check_same_images(members, [split])
    warn_of_mirrors(members, views)
    tables, seconds = {}, {}
    for member in members:
        of_views, seconds_of_views = predict_in_views(member, split, views)
        tables[member], seconds[member] = ensemble.average(of_views), sum(seconds_of_views.values())
    (first, first_table), (second, second_table) = tables.items()
    difference = ensemble.paired_difference(first_table, second_table)
    comparison = {
        "split": split,
        "views": [view.name for view in views],
        "before": first.name,
        "after": second.name,
        **difference,
        "seconds": {"before": seconds[first], "after": seconds[second]},
        "only_before_right_ids": ensemble.only_right(first_table, second_table),
        "only_after_right_ids": ensemble.only_right(second_table, first_table),
    }
    logger.info(f"Difference: {ensemble.describe(difference, first.name, second.name)}")
    logger.info(ensemble.table_in_words(difference, first.name, second.name))
    run_dir.path.mkdir(parents=True, exist_ok=True)
    with run_dir.locked():
        write_json(run_dir.comparison_of(split), comparison)
        write_paired(comparison, run_dir.comparison_of(split), run_dir.comparison_page_of(split))
    logger.info(f"Results: {run_dir.comparison_of(split)}\nPage: {run_dir.comparison_page_of(split)}")
    return comparison


def predict_in_views(
    member: FinishedRun, split: str, views: Sequence[View]
) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """The predictions of a split by the name of each view, and the seconds that each took, without loading and compiling.

    The network is dropped on return.
    """
    classifier, data = member.network(), member.data(split)
    examples = data.split(split)
    probabilities(classifier, examples.inputs, examples.rows[:1])  # compiles
    tables, seconds = {}, {}
    for view in views:
        progress = count_progress(f"{member.name}, {view.name} {split} images:")
        started = perf_counter()
        predicted = probabilities(classifier, examples.inputs, examples.rows, progress, view)
        seconds[view.name] = perf_counter() - started
        tables[view.name] = predictions.table(examples.ids, examples.labels, predicted, data.class_names)
    return tables, seconds


def warn_of_mirrors(members: Sequence[FinishedRun], views: Sequence[View]) -> None:
    unflipped = [member.name for member in members if not member.config.flip]
    if unflipped and any(view.mirrored for view in views):
        logger.info(
            f"Careful: {', '.join(unflipped)} {'was' if len(unflipped) == 1 else 'were'} trained with --no-flip, as if a "
            "mirrored image meant something else; --tta flip may lower the accuracy."
        )


def check_same_images(members: Sequence[FinishedRun], splits: Sequence[str]) -> None:
    """Raises UserError where the runs' images, labels, splits or classes differ, before anything is computed."""
    class_names = {member.name: member.class_names for member in members}
    for split in splits:
        ensemble.check_same_examples({member.name: member.examples(split) for member in members}, class_names)


def by_validation(members: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The members with the highest accuracy on validation images first; as they are where one of them has none."""
    if any(member.val_accuracy is None for member in members):
        return list(members)
    return sorted(members, key=lambda member: -member.val_accuracy)


def cost_in_words(evaluation: dict[str, Any], num_passes: int, before: str) -> str:
    """``Cost: 12 forward passes an image took 36 s for 246 images, 11.8 times as long as the plain image (3.1 s).``"""
    seconds = evaluation["seconds"]
    return (
        f"Cost: {num_passes} forward passes an image took {duration(seconds['after'])} for "
        f"{evaluation['num_examples']:,} images, {seconds['after'] / seconds['before']:.1f} times as long as {before} "
        f"({duration(seconds['before'])})."
    )


def _write(evaluation: dict, table: pd.DataFrame, run_dir: RunDir, in_views: bool = False) -> None:
    split = evaluation["split"]
    predictions.write(table, run_dir.predictions(split, in_views))
    write_json(run_dir.evaluation_of(split, in_views), evaluation)
    logger.info(f"Results: {run_dir.evaluation_of(split, in_views)} and {run_dir.predictions(split, in_views)}")


def _validation_in_words(accuracy: float | None) -> str:
    return "" if accuracy is None else f" (validation {accuracy:.2%})"
