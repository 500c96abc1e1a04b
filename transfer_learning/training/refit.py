"""The closed-form head of training and validation images, in a run that ends with the backbone that it began with.

Validation images choose between the frozen phase and fine-tuning. Where the frozen phase wins, its head can train on
them, too. It is calibrated by leave-one-out predictions: they are more than the validation images, and of a head that
lacks one image instead of all of those.
"""

import logging
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from transfer_learning.models.classifier import Classifier, logits_of_features
from transfer_learning.training.final_weights import calibrated_losses, keeps_backbone
from transfer_learning.training.phase_builder import PhaseBuilder, group_numbers, initialize_head
from transfer_learning.training.state import TrainingState

logger = logging.getLogger(__name__)


class RefittedHead(NamedTuple):
    """What is known of the classifier whose head `refit_head` has replaced."""

    val_logits: (
        np.ndarray
    )  # float32 (n, classes), of the validation images by a head without them; () if there are none
    left_out: tuple[np.ndarray, np.ndarray] | None  # see `initialize_head`; calibrates the classifier


def refit_head(phases: PhaseBuilder, state: TrainingState) -> RefittedHead | None:
    """Gives the trained network the closed-form head of training and validation images.

    It is left as it is without `RunConfig.refit`, if the backbone was fine-tuned, or if the epochs of the frozen phase
    have improved the closed form of the training images by more than a standard error of the calibrated loss.

    Returns:
        None if the head is left as it is.
    """
    config, classifier, cut = phases.config, phases.classifier, phases.cuts.get("frozen")
    if phases.data.eval_split == "val":  # the run is evaluated on them
        return None
    if not config.refit or not config.starts_from_closed_form or cut is None or classifier.copied:
        return None
    if not keeps_backbone(config, state.final_weights):
        return None
    train, val = phases.frozen_inputs
    train, trained_head = train.in_copy(0), [np.array(variable) for variable in classifier.head.weights]
    manifest, of_trained = phases.data.manifest, logits_of_features(classifier, val.inputs, val.rows)
    parts = [manifest[manifest["split"] == split] for split in ("train", "val")]
    if phases.start_head:
        _assign(classifier, phases.start_head)
    else:  # in a resumed run
        initialize_head(config, classifier, train, group_numbers(parts[0]), solve=phases.heads.solve)
    val_logits = logits_of_features(classifier, val.inputs, val.rows)
    if len(val):
        gains = calibrated_losses(val_logits, val.labels) - calibrated_losses(of_trained, val.labels)
        if gains.mean() > gains.std() / len(gains) ** 0.5:
            _assign(classifier, trained_head)
            return None
    both = replace(
        train,
        rows=np.concatenate([train.rows, val.rows]),
        labels=np.concatenate([train.labels, val.labels]),
        ids=np.concatenate([train.ids, val.ids]),
    )
    left_out = initialize_head(config, classifier, both, group_numbers(pd.concat(parts)), solve=phases.heads.solve)
    if len(val):
        logger.info(
            f"The head is fitted again, on the {len(val):,} validation images, too; their own results below are those of "
            "the head without them."
        )
    return RefittedHead(val_logits, left_out)


def _assign(classifier: Classifier, head: list[np.ndarray]) -> None:
    for variable, array in zip(classifier.head.weights, head, strict=True):
        variable.assign(array)
