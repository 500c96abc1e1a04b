"""A soup: finished runs averaged into one network, the mean of their weights, with a directory like that of any run."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from transfer_learning.cli.console import each_message_once
from transfer_learning.cli.progress import count_progress
from transfer_learning.config import difference, named
from transfer_learning.datasets.prepared import PreparedDataset
from transfer_learning.errors import UserError
from transfer_learning.evaluation import ensemble, metrics, predictions
from transfer_learning.experiments.ensembles import by_validation, check_same_images
from transfer_learning.experiments.evaluate import calibrate_and_evaluate, draw_figures
from transfer_learning.experiments.export import add_inference_file
from transfer_learning.experiments.finished_run import FinishedRun
from transfer_learning.machine.devices import git_commit, versions
from transfer_learning.models import soup
from transfer_learning.models.classifier import Classifier, probabilities
from transfer_learning.reports.run import write_report
from transfer_learning.storage.files import write_json, write_text
from transfer_learning.storage.run_directory import RunDir

logger = logging.getLogger(__name__)


@each_message_once()
def make_soup(runs: Sequence[FinishedRun], run_dir: RunDir) -> dict[str, Any]:
    """Averages the weights of runs into one network, and writes the directory of a finished run.

    The greedy soup of Wortsman et al., 2022, arXiv:2203.05482: in the order of their validation accuracy, each run is
    added unless it lowers the validation accuracy of the soup. The evaluation split takes no part in that.

    Returns:
        The content of ``evaluation.json``.

    Raises:
        UserError: the runs differ in their architecture, classes or images, there are no validation images, or a run
            was fitted on them.
    """
    _check_alike(runs)
    split = runs[0].evaluation["split"]
    check_same_images(runs, ["val", split])
    if any(run.val_accuracy is None for run in runs):
        raise UserError(
            "A soup is chosen on validation images, and there are none; train the runs with a --val-fraction above 0, "
            "or evaluate them as an ensemble, without --soup."
        )
    if known := [run.name for run in runs if run.evaluation.get("is_refitted")]:
        raise UserError(
            f"A soup is chosen and calibrated on validation images, but the head of {known[0]} was also fitted on them; "
            "train the runs with --no-refit, or evaluate them as an ensemble, without --soup."
        )
    ordered = by_validation(runs)
    best = ordered[0]
    data = best.data("val")
    weights, steps = soup.greedy_soup(*_candidates(ordered, data))
    classifier = best.classifier()
    classifier.model.set_weights(weights)
    members = []
    for run, step in zip(ordered, steps, strict=True):
        member = {"run_dir": run.name, "weights_sha256": run.evaluation["weights_sha256"]}
        member |= {"val_accuracy": run.val_accuracy, "soup_val_accuracy": step.accuracy, "is_taken": step.is_taken}
        members.append(member)

    with run_dir.locked():
        classifier, results = calibrate_and_evaluate(classifier, data, run_dir)
        before, after = (predictions.read(directory.predictions(split)) for directory in (best.run_dir, run_dir))
        gain = ensemble.paired_difference(before, after)
        evaluation = results[split] | {
            "weights_sha256": classifier.weights_digest(),
            "num_parameters": classifier.model.count_params(),
            "frozen": None,
            "fine_tune": None,
            "soup": {"members": members, "gain": {"before": best.name, **gain}},
        }
        draw_figures(classifier, data, best.config.seed, [], evaluation, run_dir)
        if best.config.inference_file:
            add_inference_file(classifier, data, best.config, run_dir)
        write_json(run_dir.evaluation, evaluation)
        num_taken = sum(member["is_taken"] for member in members)
        logger.info(f"Soup of {num_taken} of {len(runs)} runs: {metrics.describe(evaluation)}")
        sentence = ensemble.describe(gain, f"{best.name} (best validation accuracy)", "The soup")
        logger.info(sentence)
        notes = [
            f"The weights are the mean of those of {num_taken} of {len(runs)} finished runs; nothing was trained here, "
            f"and the config is that of {best.name}.",
            sentence,
        ]
        write_json(run_dir.notes, [{"level": "info", "text": note} for note in notes])
        same = {name: best.environment[name] for name in ("device", "dataset")}
        write_json(run_dir.environment, {"versions": versions(), "git_commit": git_commit(), **same})
        for source, copy in ((best.run_dir.manifest, run_dir.manifest), (best.run_dir.ignored, run_dir.ignored)):
            if source.exists():
                write_text(copy, source.read_text(encoding="utf-8"))
        write_text(run_dir.config, best.config.to_json())  # the last but the report: a half-written soup is no run
        logger.info(f"Report: {write_report(run_dir)}")
    return evaluation


def _check_alike(runs: Sequence[FinishedRun]) -> None:
    """Raises UserError for the first run whose weights or classes do not correspond to those of the first run."""
    first, *others = runs
    for other in others:
        fields = {name: pair for name, pair in difference(first.config, other.config).items() if name in soup.ALIKE}
        if fields:
            raise UserError(
                f"{other.name} has another architecture than {first.name} ({named(fields)}), so their weights cannot "
                "be averaged; leave it out, or evaluate them as an ensemble, without --soup."
            )
        if first.class_names != other.class_names:
            raise UserError(
                f"The classes of {other.name} are {', '.join(other.class_names[:3])}..., those of {first.name} "
                f"{', '.join(first.class_names[:3])}...; the same classes in the same order were expected, so leave it "
                "out."
            )


def _candidates(
    runs: Sequence[FinishedRun], data: PreparedDataset
) -> tuple[Iterator[list[np.ndarray]], Callable[[list[np.ndarray]], float]]:
    """Returns the weights of each run, one model in memory at a time, and the validation accuracy of given weights."""
    examples = data.split("val")
    loaded: list[Classifier] = []

    def weights() -> Iterator[list[np.ndarray]]:
        for run in runs:
            loaded.clear()
            loaded.append(run.classifier())
            yield loaded[0].model.get_weights()

    def accuracy_of(values: list[np.ndarray]) -> float:
        loaded[0].model.set_weights(values)
        predicted = probabilities(loaded[0], examples.inputs, examples.rows, count_progress("Evaluating the soup"))
        return float((predicted.argmax(axis=1) == examples.labels).mean())

    return weights(), accuracy_of
