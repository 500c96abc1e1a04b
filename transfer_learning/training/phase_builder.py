"""Builds the phases of a run: unfreezes layers, makes their inputs (images or activations), initializes the head."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

import keras
import numpy as np

from transfer_learning.config import PHASES, RunConfig, flag_name
from transfer_learning.datasets.augmentation import AUGMENTATIONS
from transfer_learning.datasets.pipeline import Examples
from transfer_learning.datasets.prepared import PreparedDataset
from transfer_learning.errors import UserError
from transfer_learning.machine.strategy import ALONE, PREPARING_SECONDS, Workers
from transfer_learning.models.classifier import BATCH, Classifier, logits_of_features, outputs, unfreeze_layers
from transfer_learning.models.features import FrozenPart, NamedImages, cached_activations
from transfer_learning.models.freezing import Cut, find_cut
from transfer_learning.models.head_features import feature_blocks
from transfer_learning.models.inference_graph import inference_graph
from transfer_learning.models.standardization import NAME as STANDARDIZE
from transfer_learning.models.weights import weights_digest
from transfer_learning.storage.cache import Cache, NoSpace
from transfer_learning.storage.rows import Rows
from transfer_learning.training.closed_form import LinearHead, closed_form_head, has_others, standardization
from transfer_learning.training.copied_head import complete_head
from transfer_learning.training.phase_inputs import frozen_part, make_phase_inputs
from transfer_learning.training.phases import ActivePhase, class_weights, start_phase
from transfer_learning.training.solved_heads import SolvedHeads

logger = logging.getLogger(__name__)

LeftOut = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # see `left_out_of`
MAX_FEATURE_BYTES = 5e8  # of the training images' features by one backbone, for a closed-form head after fine-tuning
IMAGES_PER_SUM = 4096  # whose features workers exchange at a time


def find_cuts(config: RunConfig, classifier: Classifier) -> dict[str, Cut | None]:
    """Returns the cut of each phase with epochs, see `cut_of_phase`; UserError if augmented copies are asked for in a
    phase without frozen layers below the trained ones.
    """
    cuts = {name: cut_of_phase(name, config, classifier) for name in config.phases}
    # Cached activations are named after the network in this state, whatever the phases train.
    unfreeze_layers(classifier, config.backbone, "none")
    for name, cut in cuts.items():
        settings, flag = config.phase(name), f"--{flag_name(name)}"
        if settings.copies and AUGMENTATIONS[settings.augmentation].share:
            raise UserError(
                f"{flag}.copies {settings.copies} caches features of single images, and {flag}.augmentation "
                f"{settings.augmentation} mixes images; pass {flag}.copies 0 or another augmentation."
            )
        if cut is None and settings.copies:
            raise UserError(
                f"{flag}.copies {settings.copies} caches activations of frozen layers, and {flag}.unfreeze "
                f"{settings.unfreeze} leaves none frozen below the trained ones; name a stage, or pass {flag}.copies 0."
            )
    return cuts


def cut_of_phase(name: str, config: RunConfig, classifier: Classifier) -> Cut | None:
    """Returns the cut below which a phase computes the same activations in every epoch, or None if there is none."""
    settings = config.phase(name)
    unfreeze_layers(classifier, config.backbone, settings.unfreeze)
    sees_same_pixels = settings.augmentation == "none" or settings.copies > 0
    return find_cut(classifier) if sees_same_pixels else None


@dataclass
class PhaseBuilder:
    """What the phases of a run are built from."""

    config: RunConfig
    classifier: Classifier
    data: PreparedDataset
    cuts: Mapping[str, Cut | None]  # by phase, see `find_cuts`
    runtime: dict[str, str]  # versions, device and flags, which the last bits of activations depend on
    cached: Collection[str] = PHASES  # phases whose activations are computed once; others compute them in every epoch
    workers: Workers = ALONE  # the first of them initializes the head
    start_head: list[np.ndarray] = field(default_factory=list)  # weights that training began with; [] in a resumed run
    _known: dict[tuple[str, str], np.ndarray] = field(init=False, default_factory=dict)  # see `_present_features`

    def build(
        self, name: str, gradient_accumulation_steps: int = 0, is_resumed: bool = False, is_over: bool = False
    ) -> ActivePhase:
        """Builds a phase on the present weights of the classifier.

        Args:
            gradient_accumulation_steps: parts of a batch; 0: as in the config.
            is_resumed: the weights will come from a checkpoint.
            is_over: nothing is left to train, so no activations are computed.
        """
        config, classifier, cut = self.config, self.classifier, self.cuts[name]
        if gradient_accumulation_steps:
            config = replace(config, gradient_accumulation_steps=gradient_accumulation_steps)
        settings = config.phase(name)
        unfrozen = unfreeze_layers(classifier, config.backbone, settings.unfreeze)
        logger.info(f"Phase {name} trains {unfrozen}.")
        if name == "frozen" and not config.head and not config.starts_from_closed_form and not classifier.copied:
            reason = "--head-init random" if config.head_init == "random" else "a closed form needs cached features"
            logger.info(f"The head starts from random weights: {reason}.")
        if cut is None:
            train, val = self.data.split("train"), self.data.split("val")
            return start_phase(name, config, classifier, train, val, workers=self.workers)
        is_cached = name in self.cached and not is_over
        if name == "frozen" and is_cached and self.workers.count == 1:
            train, val = self.frozen_inputs
        else:
            train, val = make_phase_inputs(cut, settings, is_cached, config, self.data, self.runtime, self.workers)
        if name == "frozen" and not is_resumed and self.workers.is_chief:
            groups = self.data.groups("train")
            initialize_head(config, classifier, train.in_copy(0), groups, val, self.heads.solve)
            self.start_head = classifier.head.get_weights()
        return start_phase(name, config, classifier, train, val, cut, self.workers)

    @cached_property
    def frozen_inputs(self) -> tuple[Examples, Examples]:
        """Training and validation examples of the frozen phase, see `make_phase_inputs`, by this worker alone."""
        cut, is_cached = self.cuts["frozen"], "frozen" in self.cached
        assert cut is not None
        return make_phase_inputs(cut, self.config.frozen, is_cached, self.config, self.data, self.runtime)

    def features(self, images: NamedImages) -> tuple[Rows, np.ndarray] | None:
        """Returns what `cached_activations` returns for the frozen backbone, features float32 (records, width) and rows.

        None if the config has no frozen phase, or if there is no room. Call it when the run has ended with the backbone
        that it began with, and has no phase to train any more.
        """
        if self.cuts.get("frozen") is None:
            return None
        try:
            return cached_activations(self._frozen_backbone, images, Cache.of(self.config))
        except NoSpace:
            return None

    @cached_property
    def _frozen_backbone(self) -> FrozenPart:
        cut = self.cuts["frozen"]
        assert cut is not None
        return frozen_part(cut, self.config, self.data.images.pixel_key, self.runtime)

    @property
    def heads(self) -> SolvedHeads:
        """The closed-form heads in the cache."""
        return SolvedHeads(Cache.of(self.config), self.runtime)

    @property
    def may_keep_start(self) -> bool:
        """Whether the weights that the first phase starts from may be better than any epoch after it."""
        config = self.config
        return bool(self.classifier.copied) or (config.head_init == "lda" and config.starts_from_closed_form)

    def solve_head(self, splits: Sequence[str] = ("train",), workers: Workers | None = None) -> keras.layers.Layer:
        """Sets the head to the closed form of the images of these splits on the present backbone.

        Args:
            workers: each computes a part of the features, and all call this; None: those of the run.

        Returns:
            The layer that computes the logits. A fine-tuned backbone knows the training images, so their leave-one-out
            predictions give it too large a scale: see `scale_logits`.
        """
        config, classifier, workers = self.config, self.classifier, workers or self.workers
        images = reduce(Examples.joined, map(self.data.split, splits))
        features = np.concatenate([self._present_features(split, workers) for split in splits])
        examples = replace(images, inputs=features, rows=np.arange(len(images)))
        set_closed_form(config, classifier, examples, self.data.groups(*splits))
        return classifier.head.get_layer("logits")

    def train_logits(self) -> np.ndarray:
        """Logits of the training images by the present backbone and head, float32 (n, classes), by this worker alone."""
        features = self._present_features("train", ALONE)
        return logits_of_features(self.classifier, features, np.arange(len(features)))

    def _present_features(self, split: str, workers: Workers) -> np.ndarray:
        """Features of the images of a split by the present backbone, float32 (n, width); the same arrays the next time."""
        extractor, images = self.classifier.extractor, self.data.split(split)
        key = split, weights_digest(extractor.weights)
        if key in self._known:
            return self._known[key]
        compute, width = inference_graph(extractor, BATCH), extractor.output_shape[-1]
        features = np.zeros((len(images), width), np.float32)
        for start in range(0, len(images), IMAGES_PER_SUM):
            rows = images.rows[start : start + IMAGES_PER_SUM]
            own, part = workers.part(len(rows)), features[start : start + len(rows)]
            part[own] = outputs(compute, width, images.inputs, rows[own])
            if workers.count > 1:
                part[...] = workers.sum(part, PREPARING_SECONDS)
        self._known[key] = features
        return features

    @property
    def may_solve_head(self) -> bool:
        """Whether the closed form on a fine-tuned backbone is a candidate for the head."""
        config, num_values = self.config, len(self.data.split("train")) * self.classifier.extractor.output_shape[-1]
        is_small = 4 * num_values <= MAX_FEATURE_BYTES
        return config.refits_closed_form and not self.classifier.copied and is_small

    def restart_head(self) -> None:
        """Gives fine-tuning a head that it can start from: ridge regression on the last feature map alone.

        Discriminant analysis weighs directions in which features hardly vary, so the first steps of the layers below
        ruin it: the loss rises tenfold. The other features get the scale 0.
        """
        config, cut = self.config, self.cuts.get("frozen")
        is_robust = config.head_init == "ridge" and config.head_features == "last"
        is_kept = is_robust or config.head_features == "stages" or bool(self.classifier.copied)
        if is_kept or not config.starts_from_closed_form or cut is None or not self.workers.is_chief:
            return
        features = self.frozen_inputs[0].in_copy(0)
        width = feature_blocks(self.classifier.backbone, config.head_features)[0]
        last = replace(features, inputs=features.inputs[features.rows][:, :width], rows=np.arange(len(features)))
        weights = class_weights(config.class_weights, features.labels, len(self.classifier.class_names))
        head = self.heads.solve(last, len(weights), weights)
        logits, total = self.classifier.head.get_layer("logits"), features.inputs.shape[1]
        logits.set_weights([np.pad(head.kernel, ((0, total - width), (0, 0))), head.bias])
        if config.head_features == "all":
            scale = np.arange(total) < width
            self.classifier.head.get_layer(STANDARDIZE).set_weights([np.zeros(total), scale.astype(np.float32)])
        logger.info(f"Fine-tuning starts from ridge regression on the last map (leave-one-out loss {head.loss:.3f}).")


def initialize_head(
    config: RunConfig,
    classifier: Classifier,
    features: Examples,
    groups: np.ndarray | None = None,
    val: Examples | None = None,
    solve: Callable[..., LinearHead] = closed_form_head,
) -> None:
    """Standardizes the features of several maps, and sets a linear head to its closed-form solution.

    Args:
        features: of the training images, float32 (n, width).
        groups: see `closed_form_head`.
        val: features of the validation images, which decide between an earlier run's head and the closed form.
        solve: `closed_form_head`, or `SolvedHeads.solve`.
    """
    if classifier.copied:
        weights = class_weights(config.class_weights, features.labels, len(classifier.class_names))
        complete_head(config, classifier, features, features.at(np.arange(0)) if val is None else val, weights, groups)
    elif config.starts_from_closed_form:
        head = set_closed_form(config, classifier, features, groups, solve)
        method = {"ridge": "ridge regression", "lda": "linear discriminant analysis with shrinkage"}[config.head_init]
        can_leave_out = has_others(features.labels, groups).any()
        loss = (
            f"leave-one-out loss {head.loss:.3f}"
            if can_leave_out
            else "no class has a second image that could be left out"
        )
        logger.info(f"The head starts from {method} on the features ({loss}).")
    elif config.head_features != "last":
        blocks = feature_blocks(classifier.backbone, config.head_features)
        classifier.head.get_layer(STANDARDIZE).set_weights(standardization(features, blocks))


def set_closed_form(
    config: RunConfig,
    classifier: Classifier,
    features: Examples,
    groups: np.ndarray | None,
    solve: Callable[..., LinearHead] = closed_form_head,
) -> LinearHead:
    """Sets a linear head, and the standardization before it, to the closed form that the config names, and returns it;
    arguments as for `initialize_head`.
    """
    blocks = feature_blocks(classifier.backbone, config.head_features) if config.head_features != "last" else ()
    weights = class_weights(config.class_weights, features.labels, len(classifier.class_names))
    head = solve(features, len(weights), weights, config.head_init, blocks, groups)
    classifier.head.get_layer("logits").set_weights([head.kernel, head.bias])
    if blocks:
        classifier.head.get_layer(STANDARDIZE).set_weights([head.mean, head.scale])
    return head


def left_out_of(head: LinearHead, features: Examples, groups: np.ndarray | None) -> LeftOut | None:
    """Returns how heads without each example predict it; arguments as for the `closed_form_head` that returned `head`.

    Returns:
        Logits float32 (k, classes) of up to 1,024 examples or whole groups, their labels, int (k,), and their groups, int
        (k,) or None. None if there are none whose class has others.
    """
    places, logits = head.left_out or (np.zeros(0, int), np.zeros((0, len(head.bias))))
    known = has_others(features.labels, groups)[places]
    if not known.any():
        return None
    places, logits = places[known], logits[known].astype(np.float32)
    return logits, features.labels[places], None if groups is None else groups[places]
