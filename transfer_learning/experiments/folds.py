"""Cross-validation of the head, `--folds K`: each image is predicted by a head that was not trained on it.

The training and validation images are divided into K folds; images of one group, and equal files, share a fold. For each
fold a head is trained on the features of the others, as the frozen phase of the run trains its own, or is their closed
form if the run ends with that. The backbone is that of ImageNet (or of the weights file), frozen: the folds of a run that
fine-tunes say what a head on frozen features gives. A stopped run computes them again, to the same bits.
"""

import logging
import tempfile
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from transfer_learning.cli.console import muted
from transfer_learning.cli.formatting import counted
from transfer_learning.config import RunConfig
from transfer_learning.datasets.audit.label_issues import confident_learning
from transfer_learning.datasets.corrections import COLUMNS
from transfer_learning.datasets.prepared import PreparedDataset
from transfer_learning.errors import MissingExtra, UserError
from transfer_learning.evaluation import metrics, predictions
from transfer_learning.models.classifier import build_classifier, logits_of_features, softmax
from transfer_learning.models.earlier_run import names_run
from transfer_learning.models.standardization import standardized
from transfer_learning.storage.files import write_text
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training.identity import Identity
from transfer_learning.training.loop import Trainer
from transfer_learning.training.phase_builder import PhaseBuilder, find_cuts
from transfer_learning.training.state import TrainingState
from transfer_learning.training.stopping import StopRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutOfFold:
    """The predictions of n images, each by a head that was not trained on it."""

    rows: np.ndarray  # int64 (n,), of the manifest
    labels: np.ndarray  # int (n,)
    logits: np.ndarray  # float32 (n, classes)
    folds: np.ndarray  # int (n,), from 0 on


def check_start(config: RunConfig) -> None:
    """Raises UserError if the backbone may have seen the images of all folds."""
    if config.folds and names_run(config.weights):
        raise UserError(
            f"--folds {config.folds} with --from {config.weights} would predict images that those weights were trained "
            "on; leave one of them out."
        )


def divide(config: RunConfig, data: PreparedDataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the manifest that are trained on or validated with, int64 (n,), and the fold of each.

    Raises:
        UserError: a class has fewer images (those of one group count once) than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    rows = np.flatnonzero(data.manifest["split"].isin(("train", "val")))
    part = data.manifest.iloc[rows]
    groups = pd.factorize(part["sha256"].where(part["group"] == "", "group " + part["group"]))[0]
    counts = pd.Series(groups).groupby(part["label"].to_numpy()).nunique().sort_values(kind="stable")
    if counts.iloc[0] < config.folds:
        advice = f"give --folds {counts.iloc[0]}, or " if counts.iloc[0] > 1 else ""
        raise UserError(
            f"--folds {config.folds} needs {config.folds} images (or groups) of each class for training and validation, "
            f"and {counts.index[0]} has {counts.iloc[0]}; {advice}add images."
        )
    splitter = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed)
    folds = np.zeros(len(rows), int)
    for number, (_, left_out) in enumerate(splitter.split(rows, part["label"], groups)):
        folds[left_out] = number
    return rows, folds


def predict_folds(
    config: RunConfig, data: PreparedDataset, runtime: dict[str, str], stop: StopRequest, is_closed_form: bool = False
) -> OutOfFold:
    """Trains one head per fold on the cached features of the others, and predicts the images of the fold.

    Args:
        runtime: see `PhaseBuilder`.
        stop: see `Trainer`.
        is_closed_form: the run ends with the closed form, whatever it has trained, and so do the folds.
    """
    rows, folds = divide(config, data)
    fine_tune, monitor = replace(config.fine_tune, epochs=0), config.monitor.removeprefix("val_")
    own = replace(config, fine_tune=fine_tune, monitor=monitor)  # no epoch is chosen by the fold
    classifier = build_classifier(config, data.class_names)
    if config.head_features != "last":
        classifier = standardized(classifier)
    if config.frozen.augmentation != "none" and not config.frozen.copies:
        own = replace(own, frozen=replace(config.frozen, augmentation="none"))  # new copies have no cached features
    cuts = find_cuts(own, classifier)
    initial = [np.array(variable) for variable in classifier.head.variables]
    logits = np.zeros((len(rows), len(data.class_names)), np.float32)
    labels = np.zeros(len(rows), np.int32)
    for fold in range(config.folds):
        for variable, array in zip(classifier.head.variables, initial, strict=True):
            variable.assign(array)
        manifest = data.manifest.copy()
        manifest["split"] = ""
        manifest.iloc[rows, manifest.columns.get_loc("split")] = np.where(folds == fold, "val", "train")
        of_fold = replace(data, manifest=manifest)
        with muted(), muted("tensorflow", logging.ERROR), tempfile.TemporaryDirectory() as folder:
            builder = PhaseBuilder(own, classifier, of_fold, cuts=cuts, runtime=runtime)
            if is_closed_form:
                builder.build("frozen")
            else:
                identity = Identity(own, of_fold.fingerprint, "", runtime)
                Trainer(identity, builder, RunDir(folder), stop).train(TrainingState())
            _, left_out = builder.frozen_inputs
        logits[folds == fold] = logits_of_features(classifier, left_out.inputs, left_out.rows)
        labels[folds == fold] = left_out.labels
        logger.info(f"Fold {fold + 1} of {config.folds}: {counted(len(left_out), 'image')} predicted.")
    return OutOfFold(rows, labels, logits, folds)


def evaluate_folds(found: OutOfFold, config: RunConfig, data: PreparedDataset, run_dir: RunDir) -> dict[str, Any]:
    """Writes ``predictions/folds.csv`` and ``label_issues.csv``, and returns plain numbers, ready for JSON.

    Returns:
        ``num_folds``, ``num_examples``, ``is_shipped_head`` (false if the run went on to fine-tune), ``accuracy``,
        ``accuracy_interval``, ``macro_f1`` and ``log_loss`` of all out-of-fold predictions (not calibrated),
        ``accuracy_spread`` and ``log_loss_spread`` (standard deviations over the folds), ``per_fold`` with
        ``num_examples``, ``accuracy`` and ``log_loss``, and ``num_label_issues``, None without the package cleanlab.
    """
    probabilities = softmax(found.logits, 1.0)
    ids = data.manifest["id"].iloc[found.rows].to_numpy(object)
    table = predictions.table(ids, found.labels, probabilities, data.class_names)
    predictions.write(table, run_dir.predictions("folds"))
    whole, per_fold = metrics.evaluate(table), []
    for fold in range(config.folds):
        own = metrics.evaluate(table[found.folds == fold])
        per_fold.append({name: own[name] for name in ("num_examples", "accuracy", "log_loss")})
    result = {
        "num_folds": config.folds,
        "is_shipped_head": config.fine_tune.epochs == 0,
        **{name: whole[name] for name in ("num_examples", "accuracy", "accuracy_interval", "macro_f1", "log_loss")},
        **{
            f"{name}_spread": float(np.std([row[name] for row in per_fold], ddof=1))
            for name in ("accuracy", "log_loss")
        },
        "per_fold": per_fold,
        "num_label_issues": None,
    }
    try:
        issues = confident_learning(found.labels, probabilities)
    except MissingExtra as error:
        logger.info(f"Label issues were not searched for: {error}")
    else:
        result["num_label_issues"] = int(issues.is_issue.sum())
        write_text(run_dir.label_issues, _corrections(table, data.manifest, issues.is_issue, issues.quality))
    logger.info(describe(result))
    return result


def describe(result: dict[str, Any]) -> str:
    """The result of `evaluate_folds` in a sentence or two."""
    what = "" if result["is_shipped_head"] else " (head on frozen features, before fine-tuning)"
    sentence = (
        f"{result['num_folds']} folds{what}: out-of-fold accuracy {result['accuracy']:.2%} (spread over folds "
        f"{100 * result['accuracy_spread']:.2f} points), log loss {result['log_loss']:.3f} (spread "
        f"{result['log_loss_spread']:.3f}), n = {result['num_examples']:,}."
    )
    if result["num_label_issues"]:
        sentence += f" {result['num_label_issues']:,} labels are probably wrong: review label_issues.csv."
    return sentence


def _corrections(table: pd.DataFrame, manifest: pd.DataFrame, is_issue: np.ndarray, quality: np.ndarray) -> str:
    """A table for `--corrections`, the least probable labels first; nothing is changed until a person edits it."""
    order = [place for place in np.argsort(quality, kind="stable") if is_issue[place]]
    issues = table.iloc[order]
    contents = dict(zip(manifest["id"], manifest["sha256"], strict=True))
    rows = pd.DataFrame(
        {
            "id": issues["id"],
            "label": issues["label"],
            "suggestion": issues["predicted"],
            "probability": issues["confidence"],
            "why": "label issue (out-of-fold prediction)",
            "action": "keep",
            "sha256": issues["id"].map(contents),
        }
    )
    return rows[list(COLUMNS)].to_csv(index=False, lineterminator="\n", float_format="%.3f")
