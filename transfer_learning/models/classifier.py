"""The classifier: backbone, global average pooling and head, and which of its layers train.

    images uint8 or float (n, stored, stored, 3), 0..255
      -> extractor: resize -> preprocessing -> backbone -> mean over the plane -> features (n, width)
      -> head: (Dense, ReLU, Dropout) for each width -> Dense -> logits float32 (n, classes)
"""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from transfer_learning.config import RunConfig
from transfer_learning.errors import UserError
from transfer_learning.files import written_atomically
from transfer_learning.models.backbones import build_backbone, find_backbone
from transfer_learning.models.weights import weights_digest

BATCH = 32  # images predicted at a time; no option, because another number could change the last bits
CLASS_NAMES_MEMBER = "class_names.json"  # in the .keras archive, where Keras itself does not look


@dataclass(frozen=True)
class Classifier:
    """One network, seen as a whole and as its two parts, which share their weights with it."""

    class_names: tuple[str, ...]
    backbone: keras.Model  # preprocessed inside: images -> feature map
    extractor: keras.Model  # images -> features
    head: keras.Model  # features -> logits
    model: keras.Model  # images -> logits
    pretrained: bool

    def logits(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits; while training, dropout in the head works, and BatchNorm of a pretrained backbone does not.

        Its statistics were taken over a million images, and batches of ours would replace them by worse ones; from
        random weights it has to learn its own. The two parts are called one by one, because `training=True` given to a
        functional model overrides a `training=False` that was given to a part of it when it was built.
        """
        return self.head(self.extractor(images, training=training and not self.pretrained), training=training)

    @cached_property
    def compiled(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """float32 images (batch, stored, stored, 3) -> float32 probabilities, without dropout."""

        def compute(images):
            return tf.nn.softmax(tf.cast(self.model(images, training=False), tf.float32))

        return tf.function(compute, autograph=False)

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over all weights in their order; the states of random generators are not among them."""
        return weights_digest(self.model.weights)


def build_classifier(config: RunConfig, class_names: tuple[str, ...], weights: str | None = None) -> Classifier:
    """Builds the network that `config` describes; its initial values are a pure function of weights and seed.

    Args:
        weights: in place of ``config.weights``; "none" where a trained model's values are going to be loaded.

    Raises:
        UserError: an unknown backbone, or weights that cannot be had.
    """
    # Layers: each with a name and a seed of its own, so that two builds are alike in both.
    backbone = build_backbone(config.backbone, config.image_size, weights or config.weights, config.seed)
    resizing = keras.layers.Resizing(config.image_size, config.image_size, dtype="float32", name="resize")
    pooling = keras.layers.GlobalAveragePooling2D(name="pool")
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


def open_layers(classifier: Classifier, backbone_name: str, opened: str) -> str:
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
    part = row.opened_part(opened)
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


def probabilities(
    classifier: Classifier, images: np.ndarray, rows: np.ndarray, after_batch: Callable[[int, int], None] | None = None,
    view: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
) -> np.ndarray:  # fmt: skip
    """Returns float32 (len(rows), classes), rows that sum to 1, for uint8 ``images[rows]`` of the stored size.

    Batches are always full, the last one filled up, so that every image meets the same computation whatever stands
    beside it. `after_batch` is called with the images done and their number; `view` makes what the network shall see of
    a float32 batch, of the same shape.
    """
    results = np.empty((len(rows), len(classifier.class_names)), np.float32)
    for start in range(0, len(rows), BATCH):
        batch = images[rows[start : start + BATCH]]
        filled = np.zeros((BATCH, *batch.shape[1:]), np.float32)
        filled[: len(batch)] = batch
        results[start : start + len(batch)] = classifier.compiled(view(tf.constant(filled))).numpy()[: len(batch)]
        if after_batch:
            after_batch(start + len(batch), len(rows))
    return results


def save_model(classifier: Classifier, path: Path) -> None:
    """Writes the whole model, images in and probabilities out, with its class names inside the archive.

    `keras.models.load_model` reads it without this package.
    """
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(classifier.model.output)
    with written_atomically(path) as temporary:
        keras.Model(classifier.model.input, probabilities, name="classifier").save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(CLASS_NAMES_MEMBER, json.dumps(classifier.class_names))


def load_model(config: RunConfig, path: Path, weights_sha256: str | None = None) -> Classifier:
    """Builds the network anew from `config` and reads arrays alone from what `save_model` wrote: no code is loaded.

    Args:
        weights_sha256: what the weights have to be, as the run's evaluation recorded it.

    Raises:
        UserError: the file is missing or damaged, or holds other weights than were evaluated.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            class_names = tuple(json.loads(archive.read(CLASS_NAMES_MEMBER)))
        classifier = build_classifier(config, class_names, weights="none")
        classifier.model.load_weights(path)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"The model {path} cannot be read ({error}); if its run has a checkpoint, delete report.html beside it and "
            "continue the run with --resume, which writes the model again."
        ) from None
    if weights_sha256 not in (None, classifier.weights_sha256):
        raise UserError(
            f"The model {path} holds other weights than its run evaluated; delete report.html beside it and continue the "
            "run with --resume, which writes the model again."
        )
    return classifier


def _dense(width: int, seed: int, number: int, **options) -> keras.layers.Dense:
    name = "logits" if options.get("dtype") == "float32" else f"dense_{number}"
    start = keras.initializers.GlorotUniform(seed=seed + number)
    return keras.layers.Dense(width, kernel_initializer=start, name=name, **options)
