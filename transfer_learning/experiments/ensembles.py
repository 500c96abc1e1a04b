"""Finished runs evaluated again: one, with test-time augmentation, several as an ensemble, two against each other.

Results of one run are written into its directory, those of several into a new one.
"""

import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import pandas as pd

from transfer_learning.cli.console import each_message_once
from transfer_learning.cli.formatting import duration
from transfer_learning.cli.progress import count_progress
from transfer_learning.errors import UserError
from transfer_learning.evaluation import ensemble, metrics, predictions
from transfer_learning.evaluation.tta import Transform
from transfer_learning.experiments.evaluate import evaluate_split
from transfer_learning.experiments.exported_file import ExportedFile
from transfer_learning.experiments.finished_run import FinishedRun
from transfer_learning.models.classifier import probabilities
from transfer_learning.reports.paired import write_paired
from transfer_learning.storage.files import write_json
from transfer_learning.storage.run_directory import RunDir

logger = logging.getLogger(__name__)


def evaluate_again(run: FinishedRun, split: str) -> dict[str, Any]:
    """Predicts a split again and writes the results into the directory of the run; returns them.

    Raises:
        UserError: the run was fitted on the images of the split; soups and ensembles read its accuracy on others.
    """
    if split == "val" and run.evaluation.get("is_refitted"):
        raise UserError(
            f"The head of {run.name} was also fitted on the validation images, so results on them would be too good; "
            f"use those of the head without them in {run.run_dir.predictions(split)}, or give --split test."
        )
    run_dir, classifier, data = run.run_dir, run.classifier(), run.data(split)
    with run_dir.locked():
        evaluation = evaluate_split(classifier, data, split, run_dir)
        write_json(run_dir.evaluation_of(split), evaluation | {"weights_sha256": classifier.weights_digest()})
    logger.info(metrics.describe(evaluation))
    logger.info(f"Results: {run_dir.evaluation_of(split)} and {run_dir.predictions(split)}")
    return evaluation


def evaluate_tta(run: FinishedRun, split: str, transforms: Sequence[Transform]) -> dict[str, Any]:
    """Averages over transforms of each image, compared with the plain image; writes into the directory of the run."""
    warn_of_mirrors([run], transforms)
    with run.run_dir.locked():
        tables, seconds = predict_transforms(run, split, transforms)
        table = ensemble.average(tables)
        gain = ensemble.paired_difference(tables["plain"], table)
        evaluation = {
            "split": split,
            **metrics.evaluate(table),
            "weights_sha256": run.evaluation["weights_sha256"],
            "views": list(tables),
            "gain": {"before": "plain", **gain},
            "seconds": {"before": seconds["plain"], "after": sum(seconds.values())},
        }
        logger.info(f"With test-time augmentation: {metrics.describe(evaluation)}")
        logger.info(ensemble.describe(gain, "the plain image", f"The average of {len(transforms)} transforms"))
        _log_cost(evaluation, len(transforms), "the plain image")
        _write(evaluation, table, run.run_dir, tta=True)
    return evaluation


@each_message_once()
def evaluate_ensemble(
    runs: Sequence[FinishedRun], split: str, transforms: Sequence[Transform], run_dir: RunDir
) -> dict[str, Any]:
    """Averages the probabilities of several runs, compared with the run that is best on validation images; one of
    `transforms` is the plain image, and `run_dir` a new directory for the results.
    """
    check_same_images(runs, [split])
    warn_of_mirrors(runs, transforms)
    best = by_validation(runs)[0]
    tables, plain, seconds = {}, {}, {}
    for run in runs:  # one model in memory at a time
        of_transforms, seconds[run] = predict_transforms(run, split, transforms)
        plain[run], tables[run] = of_transforms["plain"], ensemble.average(of_transforms)
    table = ensemble.average({run.name: tables[run] for run in runs})
    gain = ensemble.paired_difference(plain[best], table)
    members = []
    for run in runs:
        accuracy = float(ensemble.is_correct(tables[run]).mean())
        member = {"run_dir": run.name, "weights_sha256": run.evaluation["weights_sha256"], "accuracy": accuracy}
        members.append(member | {"val_accuracy": run.val_accuracy, "seconds": sum(seconds[run].values())})
    evaluation = {
        "split": split,
        **metrics.evaluate(table),
        "members": members,
        "views": [transform.name for transform in transforms],
        "gain": {"before": best.name, **gain},
        "seconds": {"before": seconds[best]["plain"], "after": sum(member["seconds"] for member in members)},
    }
    logger.info(f"Ensemble of {len(runs)} runs: {metrics.describe(evaluation)}")
    why = "the first given" if best.val_accuracy is None else "best validation accuracy"
    logger.info(ensemble.describe(gain, f"{best.name} ({why})", "The ensemble"))
    _log_cost(evaluation, len(runs) * len(transforms), f"{best.name} alone")
    with run_dir.locked():
        _write(evaluation, table, run_dir)
    return evaluation


@each_message_once()
def compare_pair(
    runs: Sequence[FinishedRun | ExportedFile],
    split: str,
    transforms: Sequence[Transform],
    run_dir: RunDir,
    limit: float | None = None,
) -> dict[str, Any]:
    """Compares two runs, or a run and an exported file, image by image; writes results and report into a new directory.

    Args:
        limit: the loss of accuracy of the first against the second, 0..1, above which it is worse; None: no limit.

    Returns:
        The content of ``comparison_SPLIT.json``; with a limit it has ``limit`` and ``is_worse``.
    """
    check_same_images(runs, [split])
    warn_of_mirrors([run for run in runs if isinstance(run, FinishedRun)], transforms)
    tables, seconds = {}, {}
    for run in runs:
        if isinstance(run, FinishedRun):
            of_transforms, seconds_of = predict_transforms(run, split, transforms)
        else:
            of_transforms, seconds_of = run.predictions(split)
        tables[run], seconds[run] = ensemble.average(of_transforms), sum(seconds_of.values())
    (first, first_table), (second, second_table) = tables.items()
    difference = ensemble.paired_difference(first_table, second_table)
    comparison = {
        "split": split,
        "views": [transform.name for transform in transforms],
        "before": first.name,
        "after": second.name,
        **difference,
        "seconds": {"before": seconds[first], "after": seconds[second]},
        "only_before_right_ids": ensemble.only_correct(first_table, second_table),
        "only_after_right_ids": ensemble.only_correct(second_table, first_table),
    }
    logger.info(f"A: {first.name}\nB: {second.name}")
    logger.info(ensemble.describe(difference, "A", "B"))
    if limit is not None:
        is_worse = ensemble.loses_more_than(limit, -difference["difference"])
        comparison |= {"limit": limit, "is_worse": is_worse}
        if is_worse:
            logger.error(
                f"A is {100 * difference['difference']:.2f} points worse than B; the limit is {100 * limit:g}."
            )
        else:
            logger.info(f"A is not more than {100 * limit:g} points worse than B.")
    with run_dir.locked():
        write_json(run_dir.comparison_of(split), comparison)
        write_paired(comparison, run_dir.comparison_of(split), run_dir.comparison_page_of(split))
    logger.info(f"Results: {run_dir.comparison_of(split)}; report: {run_dir.comparison_page_of(split)}")
    return comparison


def predict_transforms(
    run: FinishedRun, split: str, transforms: Sequence[Transform]
) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """Returns the predictions of a split by the name of each transform, and the seconds that each took.

    The seconds exclude loading and compilation. The model is dropped on return.
    """
    classifier, data = run.classifier(), run.data(split)
    examples = data.split(split)
    probabilities(classifier, examples.inputs, examples.rows[:1])  # compiles
    tables, seconds = {}, {}
    for transform in transforms:
        progress = count_progress(f"{run.name}, {transform.name} {split} images")
        started = perf_counter()
        predicted = probabilities(classifier, examples.inputs, examples.rows, progress, transform)
        seconds[transform.name] = perf_counter() - started
        tables[transform.name] = predictions.table(examples.ids, examples.labels, predicted, data.class_names)
    return tables, seconds


def warn_of_mirrors(runs: Sequence[FinishedRun], transforms: Sequence[Transform]) -> None:
    """Warns if images are mirrored for runs that were trained without mirrored images."""
    unflipped = [run.name for run in runs if not run.config.flip]
    if unflipped and any(transform.mirrored for transform in transforms):
        logger.warning(f"--tta flip may lower the accuracy: {', '.join(unflipped)} trained with --no-flip.")


def check_same_images(runs: Sequence[FinishedRun | ExportedFile], splits: Sequence[str]) -> None:
    """Raises UserError if images, labels, splits or classes of the runs differ, before anything is computed."""
    class_names = {run.name: run.class_names for run in runs}
    for split in splits:
        ensemble.check_same_examples({run.name: run.examples(split) for run in runs}, class_names)


def by_validation(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Sorts runs by validation accuracy, best first; keeps the order given if one has no validation images."""
    if any(run.val_accuracy is None for run in runs):
        return list(runs)
    return sorted(runs, key=lambda run: -(run.val_accuracy or 0.0))


def _log_cost(evaluation: dict[str, Any], num_passes: int, before: str) -> None:
    """``Cost: 12 forward passes per image took 36 s for 246 images, 11.8 times as long as the plain image (3.1 s).``"""
    seconds = evaluation["seconds"]
    logger.info(
        f"Cost: {num_passes} forward passes per image took {duration(seconds['after'])} for "
        f"{evaluation['num_examples']:,} images, {seconds['after'] / seconds['before']:.1f} times as long as {before} "
        f"({duration(seconds['before'])})."
    )


def _write(evaluation: dict[str, Any], table: pd.DataFrame, run_dir: RunDir, tta: bool = False) -> None:
    split = evaluation["split"]
    predictions.write(table, run_dir.predictions(split, tta))
    write_json(run_dir.evaluation_of(split, tta), evaluation)
    logger.info(f"Results: {run_dir.evaluation_of(split, tta)} and {run_dir.predictions(split, tta)}")
