"""A start from a finished run: the weights of its backbone, and the rows of its head for classes of the same name."""

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from transfer_learning.cli.formatting import counted, listed
from transfer_learning.config import NAMED_WEIGHTS, RunConfig
from transfer_learning.errors import UserError
from transfer_learning.storage.files import read_json
from transfer_learning.storage.run_directory import RunDir, evaluated_run_dir

if TYPE_CHECKING:
    from transfer_learning.models.classifier import Classifier

logger = logging.getLogger(__name__)


def names_run(weights: str) -> bool:
    """Whether a value of --weights is the directory of a run, and no file."""
    return weights not in NAMED_WEIGHTS and os.path.isdir(os.path.expanduser(weights))


def earlier_run(weights: str, backbone: str | None = None) -> tuple[RunDir, RunConfig]:
    """The run to start from, and its config.

    Args:
        backbone: the one that is asked for; None: any.

    Raises:
        UserError: the directory holds no finished run, or one with another backbone.
    """
    run_dir = evaluated_run_dir(weights)
    config = run_dir.read_config()
    if backbone not in (None, config.backbone):
        raise UserError(
            f"{weights} was trained with --backbone {config.backbone}, and --backbone {backbone} was given, for which it "
            "has no weights; leave --backbone out, or start without --from."
        )
    return run_dir, config


def load_earlier(run_dir: RunDir, config: RunConfig) -> "Classifier":
    """The classifier of the run to start from; UserError if it is not the one that the run evaluated."""
    from transfer_learning.models.classifier import load_model

    return load_model(config, run_dir.model, read_json(run_dir.evaluation, weights_sha256=str)["weights_sha256"])


def with_earlier_weights(classifier: "Classifier", config: RunConfig) -> "Classifier":
    """Gives a new classifier the weights of the run that ``config.weights`` names, as far as they fit.

    The backbone is copied. If both heads have the same layers, hidden ones are copied, and of the last one the rows of
    those classes that both have, if there are two or more; they are in `copied` of the result.

    Raises:
        UserError: as `earlier_run`, or for a layer that the earlier network lacks.
    """
    run_dir, old_config = earlier_run(config.weights, config.backbone)
    old = load_earlier(run_dir, old_config)
    if gone := [name for name in old.class_names if name not in classifier.class_names]:
        logger.info(
            f"The new run does not know {counted(len(gone), 'class')} of {config.weights}, without training images here: "
            f"{listed(gone)}."
        )
    layers = {layer.name: layer for layer in old.backbone.layers}
    for layer in classifier.backbone.layers:
        if layer.weights and layer.name not in layers:
            raise UserError(
                f"{run_dir.path} has no layer {layer.name}, because it was trained with --head-features "
                f"{old_config.head_features}; leave --head-features out."
            )
        if layer.weights:
            layer.set_weights(layers[layer.name].get_weights())
    has_same_head = (config.head, config.head_features) == (old_config.head, old_config.head_features)
    copied = [name for name in classifier.class_names if name in old.class_names] if has_same_head else []
    if len(copied) < 2:
        return classifier
    for layer in classifier.head.layers:
        if layer.weights and layer.name != "logits":
            layer.set_weights(old.head.get_layer(layer.name).get_weights())
    logits = classifier.head.get_layer("logits")
    (kernel, bias), (old_kernel, old_bias) = logits.get_weights(), old.head.get_layer("logits").get_weights()
    new_places = [classifier.class_names.index(name) for name in copied]
    old_places = [old.class_names.index(name) for name in copied]
    kernel[:, new_places], bias[new_places] = old_kernel[:, old_places], old_bias[old_places]
    logits.set_weights([kernel, bias])
    return replace(classifier, copied=tuple(copied))
