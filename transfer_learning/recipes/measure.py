"""Measured choices of the automatic recipe: size, backbone, resizing and head, by the leave-one-out loss of closed forms.

A head on cached features is solved in seconds, and its leave-one-out loss needs no validation images. Only training
images are used, of large datasets a part of them.
"""

import hashlib
import inspect
import itertools
import json
import logging
import time
from collections.abc import Collection
from dataclasses import replace
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from transfer_learning.cli.console import muted
from transfer_learning.cli.formatting import counted, duration
from transfer_learning.config import HEAD_FEATURES, RunConfig
from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.decoding.pixel_cache import cached_images
from transfer_learning.datasets.manifest import group_numbers
from transfer_learning.datasets.pipeline import Examples
from transfer_learning.datasets.prepared import PreparedDataset, prepare_dataset
from transfer_learning.evaluation.intervals import standard_error
from transfer_learning.machine.devices import set_up_devices
from transfer_learning.models.backbones import find_backbone, weights_identity
from transfer_learning.models.classifier import build_classifier, unfreeze_layers
from transfer_learning.models.features import NamedImages, cached_activations
from transfer_learning.models.freezing import find_cut
from transfer_learning.models.head_features import feature_blocks
from transfer_learning.recipes.auto import fine_tune_epochs_for
from transfer_learning.recipes.deadline import Deadline
from transfer_learning.recipes.presets import (
    PRESETS,
    USUAL_SIZE,
    WHY_ONE_EPOCH,
    backbones_to_compare,
    closed_form_only,
    sizes_to_compare,
)
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.measurements import Measurements
from transfer_learning.training import closed_form
from transfer_learning.training.estimate import rate_below
from transfer_learning.training.phase_inputs import frozen_part
from transfer_learning.training.phases import class_weights

logger = logging.getLogger(__name__)

MAX_IMAGES = 1000
MIN_PER_CLASS = 10  # of which a larger number of images is taken, where there are many classes
NOT_SQUARE = 1.15  # median ratio of the sides from which resizing matters
MIN_VAL = 6  # validation images below which nothing can be decided by them
MAX_FOLDS = 5  # of a head that trains without validation images
COMPARED = ("image_size", "backbone", "resize")  # one after the other, all heads with each
GAIN = 0.95  # a choice that costs time needs a loss of at most this times that of the cheaper one
# Of few images the time is small and the loss uncertain: up to the size that the backbones were trained with, the larger
# one stays unless its loss is clearly higher.
FEW_IMAGES, GAIN_OF_FEW = 1000, 1.1
MARGIN = 3.0  # standard errors by which another head has to beat PREFERRED
PREFERRED = ("all", "lda")  # the best head on average over five sets of 5 to 50 images per class


class Candidate(NamedTuple):
    """A head on the features of one preprocessing, and how it predicts images that it has not seen."""

    backbone: str
    image_size: int
    resize: str
    head_features: str
    head_init: str
    loss: float  # leave-one-out cross-entropy
    error: float  # leave-one-out error rate, 0..1
    seconds: float  # to measure it: the features, less those in the cache, and the head
    seconds_per_1000: float  # through the network, for 1,000 images on this machine
    gain: float = 0.0  # of the loss against that of PREFERRED on the same images; 0 where that was not measured
    standard_error: float = 0.0  # of the gain
    chosen: bool = False

    def describe(self) -> str:
        """``efficientnet_lite0, 224 px squash, lda on all: leave-one-out loss 0.123, error 3.4 %``."""
        return (
            f"{self.backbone}, {self.image_size} px {self.resize}, {self.head_init} on {self.head_features}: "
            f"leave-one-out loss {self.loss:.3f}, error {self.error:.1%}"
        )


def measured_choices(
    config: RunConfig, dataset: Dataset, given: Collection[str], deadline: Deadline
) -> tuple[dict[str, Any], dict[str, str], list[Candidate]]:
    """Chooses image size, backbone, resizing and head of a config of the automatic recipe, except for the `given` fields.

    Args:
        deadline: settings are left out that would take more than half of the time that is left.

    Returns:
        Values and reasons by the name of the field, and all candidates; nothing if no head of the config has a closed
        form.

    Raises:
        UserError: no classifier can be trained on the dataset.
    """
    if not config.starts_from_closed_form or config.weights == "none":
        return {}, {}, []
    data = prepare_dataset(dataset, config)
    train = np.flatnonzero(data.manifest["split"] == "train")
    num_chosen = min(len(train), max(MAX_IMAGES, MIN_PER_CLASS * len(data.class_names)))
    chosen = train[np.linspace(0, len(train) - 1, num_chosen).round().astype(int)]
    with muted():  # the run logs its device
        runtime = set_up_devices(config.precision, config.seed).fingerprint
    num_val = int((data.manifest["split"] == "val").sum())
    # Fine-tuning starts from the last feature map, see `PhaseBuilder.restart_head`.
    is_fine_tuned = num_val >= MIN_VAL and config.fine_tune.epochs > 0 and "head_features" not in given
    kinds = ("last", "all") if is_fine_tuned else HEAD_FEATURES
    candidates: list[Candidate] = []
    left_out: list[str] = []
    seconds_of: list[float] = []  # that each setting took
    are_known: list[bool] = []  # whether an earlier run had measured it
    earlier = Measurements(Cache.of(config).folder / "candidates.json")

    def best_with(**changes: Any) -> Candidate:
        """The best candidate of another image size, backbone or resizing."""
        started = time.monotonic()
        of_setting = replace(config, **changes)
        key = _key(of_setting, data, chosen, runtime, given)
        measured = _known(earlier.get(key)) if key else []
        are_known.append(bool(measured))
        if not measured:
            measured = _score(of_setting, dataset, data, chosen, runtime, given, config.resize)
            if key:
                earlier.add(key, [one._asdict() for one in measured])
        seconds_of.append(max(time.monotonic() - started, *(one.seconds for one in measured)))
        candidates.extend(measured)
        return _best([one for one in measured if one.head_features in kinds])

    def takes_too_long(setting: dict[str, Any]) -> bool:
        first = candidates[0]
        sizes = [find_backbone(name).million_parameters for name in (setting["backbone"], first.backbone)]
        times_slower = (setting["image_size"] / first.image_size) ** 2 * sizes[0] / sizes[1]
        in_run = 2 * len(data.manifest) * first.seconds_per_1000 / 1000  # for features and for predictions
        return (seconds_of[0] + in_run) * times_slower > deadline.left / 2

    def compared(best: Candidate, name: str, others: list, gain: float = GAIN) -> Candidate:
        """`best`, or what has another value of one field and a loss below `gain` times its loss."""
        for other in others:
            setting = {field: getattr(best, field) for field in COMPARED} | {name: other}
            if takes_too_long(setting):
                left_out.append(f"{name.replace('_', ' ')} {other}")
            elif (found := best_with(**setting)).loss < gain * best.loss:
                best = found
        return best

    sizes = [config.image_size] if {"image_size", "input_size"} & set(given) else sizes_to_compare(config)
    best = best_with(image_size=sizes[0])
    small = [size for size in sizes[1:] if size <= USUAL_SIZE]
    best = compared(best, "image_size", small, GAIN_OF_FEW if len(train) <= FEW_IMAGES else GAIN)
    best = compared(best, "image_size", sizes[1 + len(small) :])
    best = compared(best, "backbone", [] if "backbone" in given else backbones_to_compare(config))
    sides = data.manifest[["width", "height"]].iloc[chosen].to_numpy(float)
    if "resize" not in given and np.median(sides.max(axis=1) / np.maximum(1, sides.min(axis=1))) > NOT_SQUARE:
        best = compared(best, "resize", ["crop", "pad"], gain=1.0)
    candidates = [one._replace(chosen=one is best) for one in candidates]
    for candidate in candidates:
        logger.debug(candidate.describe())
    values, reasons = _as_choice(best, candidates, len(chosen))
    part = data.manifest.iloc[chosen]
    if not closed_form.has_others(part["label"].factorize()[0], group_numbers(part)).any():
        candidates = []  # their losses are of images that the heads know
        reasons["head_features"] = (
            f"Head: {best.head_init} on {best.head_features}, not compared with others: no class has a second training image "
            "(or group) that could be left out."
        )
    elif all(are_known):
        reasons["head_features"] = reasons["head_features"].removesuffix(".") + ", by an earlier run."
    if left_out:
        reasons["time_limit"] = f"Not compared, because of --time-limit {deadline.text}: {', '.join(left_out)}."
    if not num_val:
        values["monitor"] = "loss"
    values["refit"] = True
    if num_val < MIN_VAL and not any(name.startswith("fine_tune.") for name in given):
        values |= closed_form_only(given)
        # Not of one of its fields: those of a phase without epochs are left out.
        reasons["fine_tune"] = f"No fine-tuning: {num_val} validation images are too few to show whether it helps."
        reasons["frozen.epochs"] = WHY_ONE_EPOCH
        is_drawn = not {"val_fraction", "monitor"} & set(given) and all(one.split != "val" for one in dataset.examples)
        if is_drawn and (folds := _num_folds(data)):
            values |= {"folds": folds, "monitor": "loss"}
    elif best.image_size != config.image_size and config.fine_tune.epochs:
        usual = fine_tune_epochs_for(num_val + len(train), best.image_size)
        epochs = values["fine_tune.epochs"] = PRESETS[config.preset].epochs * usual
        reasons["fine_tune.epochs"] = f"Fine-tuning: {epochs} epochs, a low learning rate that falls to 0."
    return {name: value for name, value in values.items() if name not in given}, reasons, candidates


def _num_folds(data: PreparedDataset) -> int:
    """As many folds as the smallest class has images (those of one group count once), at most MAX_FOLDS; 0: one image."""
    part = data.manifest[data.manifest["split"].isin(("train", "val"))]
    groups = part["sha256"].where(part["group"] == "", "group " + part["group"])
    smallest = int(groups.groupby(part["label"]).nunique().min())
    return min(MAX_FOLDS, smallest) if smallest > 1 else 0


def _best(candidates: list[Candidate]) -> Candidate:
    """The least loss of PREFERRED and the heads that beat it by MARGIN standard errors; of all where it is not among them."""
    usual = [one for one in candidates if (one.head_features, one.head_init) == PREFERRED]
    better = [one for one in candidates if one.gain > MARGIN * one.standard_error]
    return min([*usual, *better] if usual else candidates, key=lambda candidate: candidate.loss)


def _key(
    config: RunConfig, data: PreparedDataset, chosen: np.ndarray, runtime: dict[str, str], given: Collection[str]
) -> str | None:
    """A digest of all that `_score` depends on; None if the weights are not known without loading them."""
    weights = weights_identity(config.backbone, config.weights)
    if weights is None:
        return None
    part = data.manifest.iloc[chosen][["sha256", "label", "group"]].to_csv(index=False)
    methods = [inspect.getsource(closed_form), inspect.getsource(_score), version("numpy"), version("scipy")]
    fields = {
        name: getattr(config, name) for name in ("backbone", "image_size", "stored_size", "resize", "class_weights")
    }
    heads = [getattr(config, name) if name in given else "" for name in ("head_features", "head_init")]
    pixels = data.images.pixel_key
    everything = [weights, part, data.class_names, methods, fields, heads, pixels, runtime]
    return hashlib.sha256(json.dumps(everything).encode("utf-8", "surrogateescape")).hexdigest()


def _known(rows: Any) -> list[Candidate]:
    """The candidates of an earlier call; none if the file is damaged or of another version."""
    try:
        candidates = [Candidate(**row) for row in rows or []]
        assert all(one.loss >= 0 and one.seconds >= 0 and one.seconds_per_1000 > 0 for one in candidates)
    except (TypeError, AssertionError):
        return []
    return candidates


def _score(
    config: RunConfig,
    dataset: Dataset,
    data: PreparedDataset,
    chosen: np.ndarray,
    runtime: dict[str, str],
    given: Collection[str],
    decoded_resize: str,
) -> list[Candidate]:
    """The candidates of one image size, backbone and resizing, on the `chosen` rows of the manifest of `data`."""
    started = time.monotonic()
    widest = config.head_features if "head_features" in given else "all"
    if len(find_backbone(config.backbone).stages) < 2:
        widest = "last"
    classifier = build_classifier(replace(config, head_features=widest), data.class_names)
    unfreeze_layers(classifier, config.backbone, "none")
    cut = find_cut(classifier)
    assert cut is not None  # the backbone is pretrained and frozen
    part = data.manifest.iloc[chosen]
    if (config.stored_size, config.resize) == (data.images.pixels.shape[1], decoded_resize):
        images, rows = data.images, data.images.rows[chosen]
    else:
        wanted = set(part["id"])
        some = replace(dataset, examples=tuple(example for example in dataset.examples if example.id in wanted))
        images = cached_images(
            some, config.stored_size, config.resize, Cache.of(config), config.decoded_gb, data.images.ranges
        )
        rows = images.rows
    frozen = frozen_part(cut, config, images.pixel_key, runtime)
    named = NamedImages(images.pixels, rows, part["sha256"].tolist())
    cached, positions = cached_activations(frozen, named, Cache.of(config))
    features = np.asarray(cached[positions])
    seconds = time.monotonic() - started
    rate = rate_below(cut, frozen.entry.name, Cache.of(config), anew=False)
    blocks = feature_blocks(classifier.backbone, widest)
    parts = {widest: slice(None)}
    if widest == "all":
        parts |= {"last": slice(0, blocks[0]), "stages": slice(blocks[0], None)}
    number = {name: index for index, name in enumerate(data.class_names)}
    labels = part["label"].map(number).to_numpy(np.int32)
    groups, weights = group_numbers(part), class_weights(config.class_weights, labels, len(data.class_names))
    results = []
    heads: dict[str, closed_form.LinearHead] = {}
    left_out: dict[tuple[str, str], np.ndarray] = {}  # losses (n,), NaN for images that were not left out
    inits = [config.head_init] if "head_init" in given else ["ridge", "lda"]
    for kind, init in itertools.product([kind for kind in HEAD_FEATURES if kind in parts], inits):
        began = time.monotonic()
        examples = Examples(features[:, parts[kind]], np.arange(len(labels)), labels, part["id"].to_numpy(object))
        of_kind = {"last": (), "stages": blocks[1:] if widest == "all" else blocks, "all": blocks}[kind]
        known = heads.get(kind)
        head = closed_form.closed_form_head(examples, len(weights), weights, init, of_kind, groups, known and known.fit)
        heads[kind] = head
        assert head.left_out is not None
        without, log_probabilities = head.left_out
        error = float((log_probabilities.argmax(axis=1) != labels[without]).mean())
        of_class = np.asarray(weights)[labels[without]]
        losses = -log_probabilities[np.arange(len(without)), labels[without]] * of_class / of_class.mean()
        spent = seconds + time.monotonic() - began
        results.append(
            Candidate(
                backbone=config.backbone,
                image_size=config.image_size,
                resize=config.resize,
                head_features=kind,
                head_init=init,
                loss=head.loss,
                error=error,
                seconds=round(spent, 2),
                seconds_per_1000=round(1000 / rate, 2),
            )
        )
        left_out[kind, init] = np.full(len(labels), np.nan)
        left_out[kind, init][without] = losses
    if PREFERRED in left_out:
        for place, gains in enumerate(left_out[PREFERRED] - losses for losses in left_out.values()):
            both = np.isfinite(gains)  # left out for both
            error = standard_error(gains[both], None if groups is None else groups[both])
            results[place] = results[place]._replace(gain=float(gains[both].mean()), standard_error=error)
    return results


def _as_choice(best: Candidate, candidates: list[Candidate], num_images: int) -> tuple[dict[str, Any], dict[str, str]]:
    values = {name: getattr(best, name) for name in (*COMPARED, "head_features", "head_init")}
    seconds = sum({(one.backbone, one.image_size, one.resize): one.seconds for one in candidates}.values())
    usual = next((one for one in candidates if (one.head_features, one.head_init) == ("last", "ridge")), best)
    reasons = {
        "head_features": f"Head: {best.head_init} on {best.head_features}, leave-one-out loss {best.loss:.3f} (error "
        f"{best.error:.1%}) on {counted(num_images, 'training image')}; ridge on last: {usual.loss:.3f} ({usual.error:.1%}). "
        f"Measured in {duration(seconds)}."
    }
    for place, name in enumerate(COMPARED):
        # What was compared before has its best value, and what was compared later its first one.
        wanted = {other: getattr(best, other) for other in COMPARED[:place]}
        wanted |= {other: getattr(candidates[0], other) for other in COMPARED[place + 1 :]}
        alike = [one for one in candidates if all(getattr(one, other) == wanted[other] for other in wanted)]
        settings = list(dict.fromkeys(getattr(one, name) for one in alike))
        if len(settings) > 1:
            losses = ", ".join(
                f"{setting} {_best([one for one in alike if getattr(one, name) == setting]).loss:.3f}"
                for setting in settings
            )
            title = name.replace("_", " ").capitalize()
            reasons[name] = f"{title} {values[name]}: leave-one-out loss by {name.replace('_', ' ')}: {losses}."
    return values, reasons
