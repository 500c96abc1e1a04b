"""The cut between what a phase leaves frozen and what it trains: one tensor, through which everything passes.

What lies below the cut makes the same of an image in every epoch, so it is computed once (`features.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import keras
import tensorflow as tf

from transfer_learning.models.classifier import Classifier, leaf_layers
from transfer_learning.models.features import BATCH
from transfer_learning.models.inference_graph import inference_graph


@dataclass(frozen=True)
class Cut:
    """The two sides of the cut; they share their weights with the classifier."""

    lower: keras.Model  # images -> activations; no layer of it trains
    layers: list[keras.layers.Layer]  # those above, from the lowest to the head's last
    logits: Callable[..., tf.Tensor]  # activations, training=False -> float32 logits (n, classes)

    @cached_property
    def compute(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """`lower` as one graph of constants, see `inference_graph`."""
        return inference_graph(self.lower, BATCH)


def find_cut(classifier: Classifier) -> Cut | None:
    """Cuts as high as no trainable layer is below, and one tensor alone crosses.

    With a frozen backbone that is behind the pooling: the activations are the features, and the head is above. In a
    residual network a cut lies between blocks, because inside of one the shortcut crosses too.

    Returns:
        None where nothing below the trainable layers has weights, or BatchNorm takes its statistics from the batches.
    """
    if not classifier.pretrained:
        return None
    if not classifier.extractor.trainable_variables:
        return Cut(classifier.extractor, leaf_layers(classifier.head), classifier.head)
    tensor = _highest_crossing(classifier.backbone)
    if tensor is None:
        return None
    images = activations = keras.Input(classifier.extractor.input_shape[1:], dtype="float32", name="images")
    for layer in classifier.extractor.layers[1:]:  # resizing, if any, then the backbone, then the pooling
        if layer is classifier.backbone:
            activations = keras.Model(layer.input, tensor, name="lower_backbone")(activations)
            break
        activations = layer(activations)
    lower = keras.Model(images, activations, name="lower")
    if not lower.weights:
        return None
    upper_backbone = keras.Model(tensor, classifier.backbone.output, name="upper_backbone")
    pooling, head = classifier.extractor.layers[-1], classifier.head

    def logits(activations: tf.Tensor, training: bool = False) -> tf.Tensor:
        return head(pooling(upper_backbone(activations, training=False)), training=training)

    return Cut(lower, [*leaf_layers(upper_backbone), *leaf_layers(head)], logits)


def _highest_crossing(backbone: keras.Model) -> keras.KerasTensor | None:
    """The last tensor that all paths from the images to the trainable layers share, or None."""
    operations = _in_order(backbone)
    first = next(index for index, (operation, _, _) in enumerate(operations) if _trains(operation))
    # The tensors that are made before a point in the order and used behind it: a lone one is a cut.
    last_use = {id(source): index for index, (_, sources, _) in enumerate(operations) for source in sources}
    crossing, best = set(), None
    for index, (_, sources, results) in enumerate(operations[:first]):
        crossing |= {id(result) for result in results}
        crossing -= {id(source) for source in sources if last_use[id(source)] == index}
        if len(crossing) == 1:
            best = next((result for result in results if id(result) in crossing), best)
    return best


def _in_order(backbone: keras.Model) -> list[tuple[keras.Operation, list, list]]:
    """Every operation behind what it needs, with its input and output tensors."""
    seen, order = set(), []
    waiting = [(backbone.output, False)]
    while waiting:
        tensor, is_ready = waiting.pop()
        operation, node_index, _ = tensor._keras_history
        if (id(operation), node_index) in seen:
            continue
        node = operation._inbound_nodes[node_index]
        if is_ready:
            seen.add((id(operation), node_index))
            order.append((operation, list(node.input_tensors), list(node.output_tensors)))
        else:
            waiting.append((tensor, True))
            waiting += [(source, False) for source in node.input_tensors]
    return order


def _trains(operation: keras.Operation) -> bool:
    return isinstance(operation, keras.Layer) and bool(operation.trainable_variables)
