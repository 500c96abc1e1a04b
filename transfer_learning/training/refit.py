"""The closed-form head of training and validation images, in a run that ends with a closed form.

Validation images choose between the frozen phase and fine-tuning; then the closed form can be that of these images, too.
On the backbone of the start it is calibrated by leave-one-out predictions: they are more than the validation images, and
of a head that lacks one image instead of all of those.
"""

import logging

import numpy as np

from transfer_learning.cli.formatting import counted
from transfer_learning.evaluation.intervals import standard_error
from transfer_learning.machine.strategy import ALONE
from transfer_learning.models.classifier import logits_of_features, predicted_logits
from transfer_learning.training.final_weights import FEW, calibrated_losses, keeps_backbone, scale_logits
from transfer_learning.training.phase_builder import LeftOut, PhaseBuilder, left_out_of, set_closed_form
from transfer_learning.training.state import TrainingState

logger = logging.getLogger(__name__)

LEAST_GAIN = 1e-3  # of the loss, by training: less is worth less than the validation images


def refit_head(phases: PhaseBuilder, state: TrainingState) -> tuple[np.ndarray | None, LeftOut | None]:
    """Gives the trained network the closed-form head of training and validation images, on the backbone that it ended with.

    It is left as it is without `RunConfig.refit`, if the run is evaluated on the validation images, if fine-tuning ended
    with another head than a closed form, or if the epochs of the frozen phase have improved the closed form of the training
    images by more than a standard error, and a thousandth, of the calibrated loss. Fewer than FEW validation images cannot
    show that: they also chose the epoch.

    Returns:
        Logits of the validation images by a head without them, float32 (n, classes), None if there are none; and what
        `left_out_of` returns, which calibrates the classifier; None after fine-tuning, where the backbone knows the
        training images and those logits calibrate. None for both if the head is left as it is.
    """
    config, classifier, cut = phases.config, phases.classifier, phases.cuts.get("frozen")
    if not config.refits_closed_form or cut is None or classifier.copied or phases.data.eval_split == "val":
        return None, None
    if any(row["chosen"] and row.get("is_solved") for row in state.final_weights):
        images = phases.data.split("val")
        val_logits = predicted_logits(classifier, images.inputs, images.rows)
        before = phases.train_logits()
        layer = phases.solve_head(["train", "val"], ALONE)
        scale_logits(layer, before, phases.train_logits())
        _log_refit(len(images))
        return val_logits, None
    if not keeps_backbone(config, state.final_weights):
        return None, None
    train, val = phases.frozen_inputs
    train, trained_head = train.in_copy(0), classifier.head.get_weights()
    of_trained = logits_of_features(classifier, val.inputs, val.rows)
    if phases.start_head:
        classifier.head.set_weights(phases.start_head)
    else:  # in a resumed run
        set_closed_form(config, classifier, train, phases.data.groups("train"), phases.heads.solve)
    val_logits = logits_of_features(classifier, val.inputs, val.rows)
    if len(val) >= FEW:
        found = val.labels, phases.data.groups("val")
        of_start = calibrated_losses(val_logits, *found)
        gains = of_start - calibrated_losses(of_trained, *found)
        if gains.mean() > max(standard_error(gains, found[1]), LEAST_GAIN * of_start.mean()):
            classifier.head.set_weights(trained_head)
            return None, None
    both, groups = train.joined(val), phases.data.groups("train", "val")
    left_out = left_out_of(set_closed_form(config, classifier, both, groups, phases.heads.solve), both, groups)
    if len(val):
        _log_refit(len(val))
    elif any(
        np.abs(new - old).max() > 1e-5 for new, old in zip(classifier.head.get_weights(), trained_head, strict=True)
    ):
        logger.info(
            "The head is the closed form again: without validation images, nothing shows that training has improved it."
        )
    return val_logits if len(val) else None, left_out


def _log_refit(num_images: int) -> None:
    logger.info(
        f"The head is fitted again, also on {counted(num_images, 'validation image')}; validation results are of the head "
        "without them."
    )
