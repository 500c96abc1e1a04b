"""The classifier: backbone, global average pooling and head, and which of its layers train.

images uint8 or float (n, stored, stored, 3), 0..255
  -> extractor: resize -> preprocessing -> backbone -> mean over the plane -> features (n, width)
  -> head: (Dense, ReLU, Dropout) for each width -> Dense -> logits float32 (n, classes)
"""

import itertools
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import scipy.special
import tensorflow as tf

from transfer_learning.cli.formatting import size
from transfer_learning.config import RunConfig
from transfer_learning.errors import UserError
from transfer_learning.models.backbones import build_backbone, find_backbone
from transfer_learning.models.inference_graph import inference_graph
from transfer_learning.models.weights import check_hdf5, weights_digest
from transfer_learning.storage.files import renamed, written_atomically

BATCH = 32  # images predicted at a time; no option, because another number could change the last bits
ROWS_AT_ONCE = 4096  # of logits, while they become probabilities
# In the .keras archive: two that are ours, where Keras itself does not look, and the arrays, where it does
CLASS_NAMES_MEMBER = "class_names.json"
CALIBRATION_MEMBER = "calibration.json"
RULES = {"temperature": 1.0, "rejection_threshold": 0.0}  # that are in it, and what they are where it is missing
WEIGHTS_MEMBER = "model.weights.h5"


@dataclass(frozen=True)
class Classifier:
    """One network, seen as a whole and as its two parts, which share their weights with it."""

    class_names: tuple[str, ...]
    backbone: keras.Model  # preprocessed inside: images -> feature map
    extractor: keras.Model  # images -> features
    head: keras.Model  # features -> logits
    model: keras.Model  # images -> logits
    pretrained: bool
    temperature: float = 1.0  # by which logits are divided for the probabilities
    rejection_threshold: float = 0.0  # the confidence below which a prediction is called unknown
    _graphs: dict[str, Callable] = field(default_factory=dict, repr=False, compare=False)  # one, by its weights' hash

    def logits(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits; while training, dropout in the head works, and BatchNorm of a pretrained backbone does not.

        Its statistics were taken over a million images, and batches of ours would replace them by worse ones; from
        random weights it has to learn its own. The two parts are called one by one, because `training=True` given to a
        functional model overrides a `training=False` that was given to a part of it when it was built.
        """
        return self.head(self.extractor(images, training=training and not self.pretrained), training=training)

    @property
    def frozen(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """float32 images (BATCH, stored, stored, 3) -> float32 logits, by the present weights, without dropout."""
        weights = self.weights_sha256
        if weights not in self._graphs:
            self._graphs.clear()
            self._graphs[weights] = inference_graph(self.model, BATCH)
        return self._graphs[weights]

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over all weights in their order; the states of random generators are not among them."""
        return weights_digest(self.model.weights)


def build_classifier(
    config: RunConfig, class_names: tuple[str, ...], weights: str | None = None, most_weights: int | None = None
) -> Classifier:
    """Builds the network that `config` describes; its initial values are a pure function of weights and seed.

    Args:
        weights: in place of ``config.weights``; "none" where a trained model's values are going to be loaded.
        most_weights: how many the head may have; None: as many as the memory has room for.

    Raises:
        UserError: an unknown backbone, weights that cannot be had, or a head that does not fit into the memory.
        ValueError: the head has more than `most_weights`.
    """
    # Layers: each with a name and a seed of its own, so that two builds are alike in both.
    backbone = build_backbone(config.backbone, config.image_size, weights or config.weights, config.seed)
    resizing = keras.layers.Resizing(config.image_size, config.image_size, dtype="float32", name="resize")
    pooling = keras.layers.GlobalAveragePooling2D(name="pool")
    _check_head((backbone.output_shape[-1], *config.head, len(class_names)), most_weights)
    head_layers = []
    for number, width in enumerate(config.head):
        head_layers.append(_dense(width, config.seed, number, activation="relu"))
        head_layers.append(keras.layers.Dropout(config.dropout, seed=config.seed + number, name=f"dropout_{number}"))
    if not config.head:
        head_layers.append(keras.layers.Dropout(config.dropout, seed=config.seed, name="dropout_0"))
    head_layers.append(_dense(len(class_names), config.seed, len(config.head), dtype="float32"))

    # Functional models.
    stored = config.stored_size
    images = keras.Input((stored, stored, 3), dtype="float32", name="images")
    seen = images if stored == config.image_size else resizing(images)
    extractor = keras.Model(images, pooling(backbone(seen)), name="extractor")
    features = keras.Input(extractor.output_shape[1:], dtype="float32", name="features")
    logits = features
    for layer in head_layers:
        logits = layer(logits)
    head = keras.Model(features, logits, name="head")
    model = keras.Model(images, head(extractor(images)), name="classifier")
    return Classifier(class_names, backbone, extractor, head, model, pretrained=config.weights != "none")


def unfreeze_layers(classifier: Classifier, backbone_name: str, opened: str) -> str:
    """Makes the head and the upper layers of the backbone trainable, and nothing else.

    Args:
        opened: "none", "all", a stage of the backbone (as "conv5", with all above it), or a fraction such as "0.3" of
            the layers with weights, counted from the top.

    Returns:
        what was opened, in words.

    Raises:
        UserError: no stage is called so, or the fraction is not between 0 and 1.
    """
    row = find_backbone(backbone_name)
    layers = classifier.backbone.layers  # a model inside, such as ConvNeXt's way down, is opened as a whole
    weighted = [layer for layer in layers if layer.weights]
    part = row.check_unfreeze(opened)
    if part in ("none", "all"):
        first = 0 if part == "all" else len(layers)
    elif isinstance(part, float):
        first = layers.index(weighted[-max(1, round(part * len(weighted)))])
    else:
        first = next(index for index, layer in enumerate(layers) if row.stage_of(layer.name) == part)
    for index, layer in enumerate(layers):
        layer.trainable = index >= first
    head = f"the head ({classifier.head.count_params():,} weights)"
    if opened == "none":
        return head
    opened_weights = sum(layer.count_params() for layer in layers[first:])
    num_opened = sum(layer in weighted for layer in layers[first:])
    return f"{num_opened} of {len(weighted)} layers of {backbone_name} ({opened_weights:,} weights) and {head}"


def leaf_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model in their order, those of nested models in their place."""
    leaves = []
    for layer in model.layers:
        leaves += leaf_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return leaves


def predicted_logits(
    classifier: Classifier,
    images: np.ndarray,
    rows: np.ndarray,
    after_batch: Callable[[int, int], None] | None = None,
    view: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
) -> np.ndarray:
    """Returns float32 (len(rows), classes) for uint8 ``images[rows]`` of the stored size.

    Batches are always full, the last one filled up, so that every image meets the same computation whatever stands
    beside it. `after_batch` is called with the images done and their number; `view` makes what the network shall see of
    a float32 batch, of the same shape.
    """
    results, compute = np.empty((len(rows), len(classifier.class_names)), np.float32), classifier.frozen
    for start in range(0, len(rows), BATCH):
        batch = images[rows[start : start + BATCH]]
        filled = np.zeros((BATCH, *batch.shape[1:]), np.float32)
        filled[: len(batch)] = batch
        results[start : start + len(batch)] = compute(view(tf.constant(filled))).numpy()[: len(batch)]
        if after_batch:
            after_batch(start + len(batch), len(rows))
    return results


def probabilities(classifier: Classifier, images: np.ndarray, rows: np.ndarray, *options, **more_options) -> np.ndarray:
    """Returns float32 (len(rows), classes), rows that sum to 1; arguments as `predicted_logits`."""
    logits = predicted_logits(classifier, images, rows, *options, **more_options)
    return softmax(logits, classifier.temperature)


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities float32 (n, classes) of float32 logits, as the saved model computes them."""
    results = np.empty_like(logits)
    for start in range(0, len(logits), ROWS_AT_ONCE):  # SciPy makes several arrays of that size
        part = slice(start, start + ROWS_AT_ONCE)
        results[part] = scipy.special.softmax(logits[part] * np.float32(1 / temperature), axis=1)
    return results


def save_model(classifier: Classifier, path: Path) -> None:
    """Writes the model that is shipped, with its class names and what validation images told inside the archive.

    `keras.models.load_model` reads it without this package.
    """
    with written_atomically(path) as temporary:
        shipped_model(classifier).save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(CLASS_NAMES_MEMBER, json.dumps(classifier.class_names))
            rules = {name: getattr(classifier, name) for name in RULES}
            archive.writestr(CALIBRATION_MEMBER, json.dumps(rules))


def shipped_model(classifier: Classifier) -> keras.Model:
    """The whole model: images float32 (n, stored, stored, 3), 0..255, in, and the probabilities of `probabilities` out."""
    divided = keras.layers.Rescaling(1 / classifier.temperature, dtype="float32", name="temperature")
    softmax = keras.layers.Softmax(dtype="float32", name="probabilities")
    return keras.Model(classifier.model.input, softmax(divided(classifier.model.output)), name="classifier")


def load_model(config: RunConfig, path: Path, weights_sha256: str | None = None) -> Classifier:
    """Builds the network anew from `config` and reads arrays alone from what `save_model` wrote: no code is loaded.

    The file may be a stranger's. Of its members only the names of the classes, the rules and the arrays are opened,
    and these are checked before Keras sees them, and before a network of their size is made.

    Args:
        weights_sha256: what the weights have to be, as the run's evaluation recorded it.

    Raises:
        UserError: the file is missing or damaged, or holds other weights than were evaluated.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            has_calibration = CALIBRATION_MEMBER in archive.namelist()  # of before there were temperatures: none
            for name in (CLASS_NAMES_MEMBER, WEIGHTS_MEMBER, *[CALIBRATION_MEMBER] * has_calibration):
                if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:  # so nothing is longer than the file
                    raise ValueError(f"its {name} is compressed")
            class_names = json.loads(archive.read(CLASS_NAMES_MEMBER))
            if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
                raise ValueError(f"its {CLASS_NAMES_MEMBER} is no list of names")
            rules = _checked_rules(json.loads(archive.read(CALIBRATION_MEMBER))) if has_calibration else RULES
            with archive.open(WEIGHTS_MEMBER) as arrays:
                _, num_weights = check_hdf5(arrays, archive.getinfo(WEIGHTS_MEMBER).file_size)
        classifier = build_classifier(config, tuple(class_names), weights="none", most_weights=num_weights)
        classifier = replace(classifier, **rules)
        classifier.model.load_weights(path)
    except (OSError, KeyError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"The model {path} cannot be read ({reason}); if its run has a checkpoint, delete report.html beside it and "
            "continue the run with --resume, which writes the model again."
        ) from None
    if weights_sha256 not in (None, classifier.weights_sha256):
        raise UserError(
            f"The model {path} holds other weights than its run evaluated; delete report.html beside it and continue the "
            "run with --resume, which writes the model again."
        )
    return classifier


def _checked_rules(found: Any) -> dict[str, float]:
    """What `save_model` wrote beside the weights; ValueError where it is something else."""
    found = renamed(found, {"unknown_below": "rejection_threshold"}) if isinstance(found, dict) else found
    rules = RULES | {name: found[name] for name in RULES if name in found} if isinstance(found, dict) else {}
    if not (
        rules
        and all(type(value) is float for value in rules.values())
        and 0 < rules["temperature"] < math.inf
        and 0 <= rules["rejection_threshold"] <= 1
    ):
        raise ValueError(f"its {CALIBRATION_MEMBER} holds no temperature and no confidence")
    return rules


def _check_head(widths: Sequence[int], most_weights: int | None) -> None:
    """Raises what `build_classifier` does for a head of these widths, from its features to its classes."""
    num_weights = sum((before + 1) * after for before, after in itertools.pairwise(widths))
    if most_weights is not None and num_weights > most_weights:
        raise ValueError(f"its head would have {num_weights:,} weights, and the file holds {most_weights:,}")
    if 4 * num_weights > max(10**9, available := psutil.virtual_memory().available):
        raise UserError(
            f"A head of {', '.join(map(str, widths[1:]))} outputs has {num_weights:,} weights, which take "
            f"{size(4 * num_weights)}, and {size(available)} of memory are available; give a narrower --head."
        )


def _dense(width: int, seed: int, number: int, **options) -> keras.layers.Dense:
    name = "logits" if options.get("dtype") == "float32" else f"dense_{number}"
    start = keras.initializers.GlorotUniform(seed=seed + number)
    return keras.layers.Dense(width, kernel_initializer=start, name=name, **options)
