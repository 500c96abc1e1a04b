"""The classifier: backbone, pooling and head, and which of its layers train.

images uint8 or float (n, stored, stored, 3), 0..255
  -> extractor: resize -> preprocessing -> backbone -> pooling over the plane -> features (n, width)
  -> head: (Dense, ReLU, Dropout) for each width -> Dense -> logits float32 (n, classes)
"""

import io
import itertools
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from transfer_learning.cli.formatting import size
from transfer_learning.config import RunConfig
from transfer_learning.errors import UserError
from transfer_learning.machine.device_memory import results
from transfer_learning.machine.resources import available_bytes
from transfer_learning.models.backbones import build_backbone, find_backbone
from transfer_learning.models.earlier_run import names_run, with_earlier_weights
from transfer_learning.models.head_features import make_pooling, with_stage_outputs
from transfer_learning.models.inference_graph import InferenceFunction, inference_graph, trainable_inference_fn
from transfer_learning.models.weights import check_hdf5, hold_same_arrays, weights_digest
from transfer_learning.storage.files import renamed, written_atomically
from transfer_learning.storage.rows import Rows

BATCH = 32  # images per prediction; no option, because another number could change the last bits
SOFTMAX_ROWS = 4096  # per call of SciPy's softmax, which makes several copies
# Files in the .keras archive: two of ours, which Keras ignores, and the weights, which it reads.
CLASS_NAMES_MEMBER = "class_names.json"
CALIBRATION_MEMBER = "calibration.json"
WEIGHTS_MEMBER = "model.weights.h5"
WRITE_AGAIN = "delete report.html beside it and continue the run with --resume, which writes the model again"
CALIBRATION_DEFAULTS = {"temperature": 1.0, "rejection_threshold": 0.0}  # of models saved without that file


@dataclass(frozen=True)
class Classifier:
    """A network as a whole and in two parts, which share its weights."""

    class_names: tuple[str, ...]
    backbone: keras.Model  # images -> feature map, or several, the highest first; with the preprocessing inside
    extractor: keras.Model  # images -> features
    head: keras.Model  # features -> logits
    model: keras.Model  # images -> logits
    pretrained: bool
    folds_batch_norm: bool  # while it trains, see `training_fn`
    inference: InferenceFunction = field(repr=False, compare=False)  # of `model`; copies of the classifier share it
    temperature: float = 1.0  # logits are divided by it before the softmax
    rejection_threshold: float = 0.0  # images whose highest probability is below are rejected
    copied: tuple[str, ...] = ()  # classes whose rows of the head came from an earlier run, ahead of training

    def logits(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns logits float32 (n, classes) of images (n, stored, stored, 3).

        In training, dropout in the head is active, and BatchNorm in a pretrained backbone stays in inference mode: its
        statistics are those of a million images. A backbone from random weights learns them.
        """
        return self.head(self._extract(images, training), training=training)

    @cached_property
    def _extract(self) -> Callable[[tf.Tensor, bool], tf.Tensor]:
        return self.training_fn(self.extractor)

    def training_fn(self, network: keras.Model) -> Callable[[tf.Tensor, bool], tf.Tensor]:
        """Returns a part below the head as a function of its inputs and `training`, for train and eval steps."""
        if not self.pretrained:
            return lambda images, training: network(images, training=training)
        # By itself, because training=True of a functional model overrides the training=False of one nested in it.
        compute = trainable_inference_fn(network) if self.folds_batch_norm else partial(network, training=False)
        return lambda images, training: compute(images)

    def inference_fn(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns the function of float32 images (BATCH, stored, stored, 3) to float32 logits with present weights."""
        return self.inference.current()

    def weights_digest(self) -> str:
        """Returns the SHA-256 over all weights in order, without the states of random generators; reads all of them."""
        return weights_digest(self.model.weights)


def build_classifier(
    config: RunConfig,
    class_names: tuple[str, ...],
    initial_weights: str | None = None,
    max_head_weights: int | None = None,
) -> Classifier:
    """Builds the network of `config`; its initial values are a pure function of weights and seed.

    Args:
        initial_weights: instead of ``config.weights``; "none" if the weights of a trained model are loaded next.
        max_head_weights: the most that the head may have; None: as many as fit into memory.

    Raises:
        UserError: an unknown backbone, weights that cannot be loaded, or a head that does not fit into memory.
        ValueError: the head has more than `max_head_weights`.
    """
    # Each layer has a name and a seed of its own, so that two builds are equal.
    continues_run = initial_weights is None and names_run(config.weights)
    weights = initial_weights or ("none" if continues_run else config.weights)
    backbone = build_backbone(config.backbone, config.image_size, weights, config.seed)
    resizing = keras.layers.Resizing(config.image_size, config.image_size, dtype="float32", name="resize")
    if config.head_features != "last":
        backbone = with_stage_outputs(backbone, find_backbone(config.backbone), config.head_features)
    pooling = make_pooling(backbone, config.head_features)
    width = pooling.compute_output_shape(backbone.output_shape)[-1]
    _check_head((width, *config.head, len(class_names)), max_head_weights)
    head_layers = []
    for number, width in enumerate(config.head):
        head_layers.append(_dense(width, config.seed, number, activation="relu"))
        head_layers.append(keras.layers.Dropout(config.dropout, seed=config.seed + number, name=f"dropout_{number}"))
    if not config.head:
        head_layers.append(keras.layers.Dropout(config.dropout, seed=config.seed, name="dropout_0"))
    head_layers.append(_dense(len(class_names), config.seed, len(config.head), dtype="float32"))

    stored = config.stored_size
    images = keras.Input((stored, stored, 3), dtype="float32", name="images")
    resized = images if stored == config.image_size else resizing(images)
    extractor = keras.Model(images, pooling(backbone(resized)), name="extractor")
    features = keras.Input(extractor.output_shape[1:], dtype="float32", name="features")
    logits = features
    for layer in head_layers:
        logits = layer(logits)
    head = keras.Model(features, logits, name="head")
    model = keras.Model(images, head(extractor(images)), name="classifier")
    classifier = Classifier(
        class_names=class_names,
        backbone=backbone,
        extractor=extractor,
        head=head,
        model=model,
        pretrained=config.weights != "none",
        folds_batch_norm=config.fold_batch_norm,
        inference=InferenceFunction(model, BATCH),
    )
    return with_earlier_weights(classifier, config) if continues_run else classifier


def unfreeze_layers(classifier: Classifier, backbone_name: str, unfreeze: str) -> str:
    """Makes the head and the last layers of the backbone trainable, and nothing else.

    Args:
        unfreeze: "none", "all", a stage of the backbone (as "conv5": it and all later ones), or the fraction of the
            layers with weights that train (as "0.3": the last 30 %).

    Returns:
        A description of what trains, for messages.

    Raises:
        UserError: there is no such stage, or the fraction is not in (0, 1].
    """
    row = find_backbone(backbone_name)
    layers = classifier.backbone.layers  # a nested model, such as a ConvNeXt downsampling block, counts as one layer
    weighted = [layer for layer in layers if layer.weights]
    part = row.check_unfreeze(unfreeze)
    if part in ("none", "all"):
        first = 0 if part == "all" else len(layers)
    elif isinstance(part, float):
        first = layers.index(weighted[-max(1, round(part * len(weighted)))])
    else:
        first = next(index for index, layer in enumerate(layers) if row.stage_of(layer.name) == part)
    for index, layer in enumerate(layers):
        layer.trainable = index >= first
    head = f"the head ({classifier.head.count_params():,} weights)"
    if unfreeze == "none":
        return head
    num_weights = sum(layer.count_params() for layer in layers[first:])
    num_layers = sum(layer in weighted for layer in layers[first:])
    return f"{num_layers} of {len(weighted)} layers of {backbone_name} ({num_weights:,} weights) and {head}"


def leaf_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of a model in order, with the layers of nested models in place of these."""
    leaves = []
    for layer in model.layers:
        leaves += leaf_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return leaves


def predicted_logits(
    classifier: Classifier,
    images: Rows,
    rows: np.ndarray,
    after_batch: Callable[[int, int], None] | None = None,
    augment: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
) -> np.ndarray:
    """Returns logits float32 (len(rows), classes) of ``images[rows]``; arguments as for `outputs`."""
    return outputs(classifier.inference_fn(), len(classifier.class_names), images, rows, after_batch, augment)


def outputs(
    compute: Callable[[tf.Tensor], tf.Tensor],
    width: int,
    images: Rows,
    rows: np.ndarray,
    after_batch: Callable[[int, int], None] | None = None,
    augment: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
) -> np.ndarray:
    """Returns what an `inference_graph` computes, float32 (len(rows), width), of ``images[rows]``.

    Batches are always full, the last one padded with zeros, so the result for an image does not depend on the others.

    Args:
        images: the inputs of `compute`, of any number type: uint8 images (n, stored, stored, 3), or features (n, width).
        after_batch: called after each batch with the number of images done, and of all.
        augment: a float32 batch -> what the network sees, of the same shape.
    """

    def steps() -> Iterator[tuple[tf.Tensor]]:
        for start in range(0, len(rows), BATCH):
            pixels = images[rows[start : start + BATCH]]
            batch = np.zeros((BATCH, *pixels.shape[1:]), np.float32)
            batch[: len(pixels)] = pixels
            yield (compute(augment(tf.constant(batch)))[: len(pixels)],)
            if after_batch:
                after_batch(start + len(pixels), len(rows))

    return np.concatenate([np.empty((0, width), np.float32), *(found for (found,) in results(steps()))])


def logits_of_features(classifier: Classifier, features: Rows, rows: np.ndarray) -> np.ndarray:
    """Returns logits float32 (len(rows), classes) of ``features[rows]``, float32 (n, width), in batches as `outputs`."""
    return outputs(inference_graph(classifier.head, BATCH), len(classifier.class_names), features, rows)


def probabilities(
    classifier: Classifier,
    images: Rows,
    rows: np.ndarray,
    after_batch: Callable[[int, int], None] | None = None,
    augment: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
) -> np.ndarray:
    """Returns float32 (len(rows), classes) whose rows sum to 1; arguments as for `predicted_logits`."""
    return softmax(predicted_logits(classifier, images, rows, after_batch, augment), classifier.temperature)


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Returns probabilities float32 (n, classes) of float32 logits, as the saved model computes them."""
    import scipy.special

    found = np.empty_like(logits)
    for start in range(0, len(logits), SOFTMAX_ROWS):
        part = slice(start, start + SOFTMAX_ROWS)
        found[part] = scipy.special.softmax(logits[part] * np.float32(1 / temperature), axis=1)
    return found


def save_model(classifier: Classifier, path: Path) -> None:
    """Writes the model with its calibration inside; class names and calibration are also files in the archive.

    `keras.models.load_model` reads it without this package.
    """
    with written_atomically(path) as temporary:
        exported_model(classifier).save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(CLASS_NAMES_MEMBER, json.dumps(classifier.class_names))
            calibration = {name: getattr(classifier, name) for name in CALIBRATION_DEFAULTS}
            archive.writestr(CALIBRATION_MEMBER, json.dumps(calibration))


def read_back(classifier: Classifier, path: Path) -> None:
    """Gives the classifier the weights of a file of `save_model`, if they are not those that it has."""
    with zipfile.ZipFile(path) as archive:
        file = io.BytesIO(archive.read(WEIGHTS_MEMBER))
    if not hold_same_arrays(file, classifier.model.weights):
        exported_model(classifier).load_weights(path)  # shares its variables with the classifier


def exported_model(classifier: Classifier) -> keras.Model:
    """Returns the whole model: float32 images (n, stored, stored, 3) in 0..255 -> probabilities (n, classes)."""
    divided = keras.layers.Rescaling(1 / classifier.temperature, dtype="float32", name="temperature")
    softmax = keras.layers.Softmax(dtype="float32", name="probabilities")
    return keras.Model(classifier.model.input, softmax(divided(classifier.model.output)), name="classifier")


def load_model(config: RunConfig, path: Path, expected_digest: str | None = None) -> Classifier:
    """Builds the network of `config` and reads only arrays from a file of `save_model`: no code is loaded.

    The file may be a stranger's. Only class names, calibration and arrays are opened, and checked before Keras sees
    them and before a network of their size is built.

    Args:
        expected_digest: of the weights, as the evaluation of the run recorded it.

    Raises:
        UserError: the file is missing or damaged, or has other weights than were evaluated.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            has_calibration = CALIBRATION_MEMBER in archive.namelist()  # older models have none
            members = [CLASS_NAMES_MEMBER, WEIGHTS_MEMBER, *([CALIBRATION_MEMBER] if has_calibration else [])]
            for name in members:
                if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:  # so nothing is longer than the file
                    raise ValueError(f"its {name} is compressed")
            class_names = json.loads(archive.read(CLASS_NAMES_MEMBER))
            if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
                raise ValueError(f"its {CLASS_NAMES_MEMBER} is not a list of names")
            calibration = CALIBRATION_DEFAULTS
            if has_calibration:
                calibration = _checked_calibration(json.loads(archive.read(CALIBRATION_MEMBER)))
            with archive.open(WEIGHTS_MEMBER) as arrays:
                _, num_weights = check_hdf5(arrays, archive.getinfo(WEIGHTS_MEMBER).file_size)
        classifier = build_classifier(config, tuple(class_names), "none", max_head_weights=num_weights)
        classifier = replace(
            classifier, temperature=calibration["temperature"], rejection_threshold=calibration["rejection_threshold"]
        )
        classifier.model.load_weights(path)
    except (OSError, KeyError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"The model {path} cannot be read ({reason}); {WRITE_AGAIN}.") from None
    if expected_digest not in (None, classifier.weights_digest()):
        raise UserError(f"The model {path} has other weights than its run evaluated; {WRITE_AGAIN}.")
    return classifier


def _checked_calibration(found: Any) -> dict[str, float]:
    """Returns the calibration that `save_model` wrote; ValueError if it is something else."""
    if not isinstance(found, dict):
        raise ValueError(f"its {CALIBRATION_MEMBER} is not an object")
    found = renamed(found, {"unknown_below": "rejection_threshold"})
    calibration = CALIBRATION_DEFAULTS | {name: found[name] for name in CALIBRATION_DEFAULTS if name in found}
    if not (
        all(type(value) is float for value in calibration.values())
        and 0 < calibration["temperature"] < math.inf
        and 0 <= calibration["rejection_threshold"] <= 1
    ):
        raise ValueError(f"its {CALIBRATION_MEMBER} has no temperature above 0 or no rejection threshold in 0..1")
    return calibration


def _check_head(widths: Sequence[int], max_weights: int | None) -> None:
    """Raises the errors of `build_classifier` for a head of these widths, from features to classes."""
    num_weights = sum((before + 1) * after for before, after in itertools.pairwise(widths))
    if max_weights is not None and num_weights > max_weights:
        raise ValueError(f"its head would have {num_weights:,} weights, and the file holds {max_weights:,}")
    if 4 * num_weights > max(10**9, available := available_bytes()):
        raise UserError(
            f"A head of {', '.join(map(str, widths[1:]))} outputs has {num_weights:,} weights, which take "
            f"{size(4 * num_weights)}, and {size(available)} of memory are available; give a narrower --head."
        )


def _dense(width: int, seed: int, number: int, **options: Any) -> keras.layers.Dense:
    name = "logits" if options.get("dtype") == "float32" else f"dense_{number}"
    initializer = keras.initializers.GlorotUniform(seed=seed + number)
    return keras.layers.Dense(width, kernel_initializer=initializer, name=name, **options)
