"""The closed-form head of training and validation images, in a run that ends with the backbone that it began with.

Validation images choose between the frozen phase and fine-tuning. Where the frozen phase wins, its head can train on
them, too. It is calibrated by leave-one-out predictions: they are more than the validation images, and of a head that
lacks one image instead of all of those.
"""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd

from transfer_learning.models.classifier import logits_of_features
from transfer_learning.training.final_weights import calibrated_losses, keeps_backbone
from transfer_learning.training.phase_builder import PhaseBuilder, group_numbers, initialize_head
from transfer_learning.training.state import TrainingState

logger = logging.getLogger(__name__)


def refit_head(
    phases: PhaseBuilder, state: TrainingState
) -> tuple[np.ndarray | None, tuple[np.ndarray, np.ndarray] | None]:
    """Gives the trained network the closed-form head of training and validation images.

    It is left as it is without `RunConfig.refit`, if the run is evaluated on the validation images, if the backbone was
    fine-tuned, or if the epochs of the frozen phase have improved the closed form of the training images by more than a
    standard error of the calibrated loss.

    Returns:
        Logits of the validation images by a head without them, float32 (n, classes), None if there are none; and what
        `initialize_head` returns, which calibrates the classifier. None for both if the head is left as it is.
    """
    config, classifier, cut = phases.config, phases.classifier, phases.cuts.get("frozen")
    if not config.refits_closed_form or cut is None or classifier.copied:
        return None, None
    if phases.data.eval_split == "val" or not keeps_backbone(config, state.final_weights):
        return None, None
    train, val = phases.frozen_inputs
    train, trained_head = train.in_copy(0), classifier.head.get_weights()
    manifest, of_trained = phases.data.manifest, logits_of_features(classifier, val.inputs, val.rows)
    parts = [manifest[manifest["split"] == split] for split in ("train", "val")]
    if phases.start_head:
        classifier.head.set_weights(phases.start_head)
    else:  # in a resumed run
        initialize_head(config, classifier, train, group_numbers(parts[0]), solve=phases.heads.solve)
    val_logits = logits_of_features(classifier, val.inputs, val.rows)
    if len(val):
        gains = calibrated_losses(val_logits, val.labels) - calibrated_losses(of_trained, val.labels)
        if gains.mean() > gains.std() / len(gains) ** 0.5:
            classifier.head.set_weights(trained_head)
            return None, None
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
    return val_logits if len(val) else None, left_out
