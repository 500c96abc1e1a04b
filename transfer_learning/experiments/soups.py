"""Several finished runs made into one: a network with the mean of their weights, in a directory like that of any run."""

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
from transfer_learning.experiments.evaluate import calibrate_and_evaluate, draw_figures
from transfer_learning.experiments.finished_run import FinishedRun, by_validation, check_same_images
from transfer_learning.machine.devices import git_commit, versions
from transfer_learning.models import soup
from transfer_learning.models.classifier import Classifier, probabilities
from transfer_learning.reports.run import write_report
from transfer_learning.storage.files import write_json, write_text
from transfer_learning.storage.run_directory import RunDir

logger = logging.getLogger(__name__)


@each_message_once()
def make_soup(members: Sequence[FinishedRun], run_dir: RunDir) -> dict[str, Any]:
    """Averages the best weights of runs into one network, whose directory is that of a finished run.

    The greedy soup of Wortsman et al., 2022: in the order of their accuracy on validation images, each member is stirred
    in unless that lowers the soup's accuracy there. The judged images have no say.

    Raises:
        UserError: the members differ in what their weights mean, or there are no validation images.
    """
    first, *others = members
    for other in others:
        fields = {name: pair for name, pair in difference(first.config, other.config).items() if name in soup.ALIKE}
        if fields:
            raise UserError(
                f"{other.name} is another kind of network than {first.name} ({named(fields)}), so their weights have no "
                "mean; leave it out, or evaluate them as an ensemble, without --soup."
            )
        if first.class_names != other.class_names:
            raise UserError(
                f"The outputs of {other.name} are the classes {', '.join(other.class_names[:3])}..., those of {first.name} "
                f"{', '.join(first.class_names[:3])}...; the same ones in the same order were expected, so leave it out."
            )
    judged = first.recorded["split"]
    check_same_images(members, ["val", judged])
    if any(member.val_accuracy is None for member in members):
        raise UserError(
            "A soup is chosen by validation images, and there are none; train the members with a --val-fraction above 0, "
            "or evaluate them as an ensemble, without --soup."
        )
    ordered = by_validation(members)
    best = ordered[0]
    data = best.data("val")
    weights, steps = soup.greedy_soup(*_tasted(ordered, data))
    rows = [
        {
            "run_dir": member.name,
            "weights_sha256": member.recorded["weights_sha256"],
            "val_accuracy": member.val_accuracy,
            "soup_val_accuracy": step.accuracy,
            "is_taken": step.is_taken,
        }
        for member, step in zip(ordered, steps, strict=True)
    ]
    classifier = best.network()
    classifier.model.set_weights(weights)

    # A directory like that of any finished run: the config last but the page, so that a half-made one is no run.
    run_dir.path.mkdir(parents=True, exist_ok=True)
    with run_dir.locked():
        classifier, results = calibrate_and_evaluate(classifier, data, run_dir)
        gain = ensemble.paired_difference(
            predictions.read(best.run_dir.predictions(judged)), predictions.read(run_dir.predictions(judged))
        )
        evaluation = results[judged] | {
            "weights_sha256": classifier.weights_digest(),
            "num_parameters": classifier.model.count_params(),
            "frozen": None,
            "fine_tune": None,
            "soup": {"members": rows, "gain": {"before": best.name, **gain}},
        }
        draw_figures(classifier, data, best.config.seed, [], evaluation, run_dir)
        write_json(run_dir.evaluation, evaluation)
        for row in rows:
            did = "stirred in" if row["is_taken"] else "left out"
            logger.info(
                f"{row['run_dir']}: validation accuracy {row['val_accuracy']:.2%}; {did}, with it the soup has "
                f"{row['soup_val_accuracy']:.2%}."
            )
        num_taken = sum(row["is_taken"] for row in rows)
        logger.info(f"The mean weights of {num_taken} of {len(rows)} runs: {metrics.describe(evaluation)}")
        told = f"Gain: {ensemble.describe(gain, f'{best.name} (the best on validation images)', 'the soup')}"
        logger.info(f"{told} It costs no more time than one network.")
        write_json(
            run_dir.notes,
            [
                f"Nothing was trained here: the weights are the mean of those of {num_taken} of {len(rows)} finished runs; "
                f"the config is that of {best.name}.",
                told,
            ],
        )
        kept = {name: best.environment[name] for name in ("device", "dataset")}
        write_json(run_dir.environment, {"versions": versions(), "git_commit": git_commit(), **kept})
        for source, copy in ((best.run_dir.manifest, run_dir.manifest), (best.run_dir.ignored, run_dir.ignored)):
            if source.exists():
                write_text(copy, source.read_text(encoding="utf-8"))
        write_text(run_dir.config, best.config.to_json())
        logger.info(f"Report: {write_report(run_dir)}")
    return evaluation


def _tasted(
    members: Sequence[FinishedRun], data: PreparedDataset
) -> tuple[Iterator[list[np.ndarray]], Callable[[list[np.ndarray]], float]]:
    """The weights of the members, one network in memory at a time, and the accuracy of such weights on validation."""
    examples = data.split("val")
    loaded: list[Classifier] = []

    def weights() -> Iterator[list[np.ndarray]]:
        for member in members:
            loaded.clear()
            loaded.append(member.network())
            yield loaded[0].model.get_weights()

    def accuracy_of(values: list[np.ndarray]) -> float:
        loaded[0].model.set_weights(values)
        predicted = probabilities(loaded[0], examples.inputs, examples.rows, count_progress("Tasting the soup:"))
        return float((predicted.argmax(axis=1) == examples.labels).mean())

    return weights(), accuracy_of
