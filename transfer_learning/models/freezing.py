"""The cut between the layers that a phase leaves frozen and those that it trains: one tensor, which every path crosses.

The layers below the cut give the same output for an image in every epoch, so it is computed once (`features.py`).
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
    """The networks below and above the cut; they share their weights with the classifier."""

    below: keras.Model  # float32 images (n, stored, stored, 3) -> activations (n, ...); none of its layers trains
    above: Callable[..., tf.Tensor]  # activations, training=False -> float32 logits (n, classes)
    layers_above: list[keras.layers.Layer]  # from the cut to the logits

    @cached_property
    def below_fn(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """`below` as a function of exactly BATCH images, see `inference_graph`; built at the first access."""
        return inference_graph(self.below, BATCH)


def find_cut(classifier: Classifier) -> Cut | None:
    """Returns the highest cut with no trainable layer below it; None if no layer there has weights, or BatchNorm learns
    its statistics.

    With a frozen backbone it is after the pooling: the activations are the features, and the head is above. In a
    residual network it is between two blocks, because a shortcut bypasses any tensor inside a block.
    """
    if not classifier.pretrained:
        return None
    if not classifier.extractor.trainable_variables:
        return Cut(classifier.extractor, classifier.head, leaf_layers(classifier.head))
    tensor = _highest_crossing(classifier.backbone)
    if tensor is None:
        return None
    images = activations = keras.Input(classifier.extractor.input_shape[1:], dtype="float32", name="images")
    for layer in classifier.extractor.layers[1:]:  # resizing, if any, then the backbone, then the pooling
        if layer is classifier.backbone:
            activations = keras.Model(layer.input, tensor, name="backbone_below")(activations)
            break
        activations = layer(activations)
    below = keras.Model(images, activations, name="below")
    if not below.weights:
        return None
    backbone_above = keras.Model(tensor, classifier.backbone.output, name="backbone_above")
    pooling, head = classifier.extractor.layers[-1], classifier.head
    extract = classifier.training_fn(backbone_above)

    def above(activations: tf.Tensor, training: bool = False) -> tf.Tensor:
        return head(pooling(extract(activations, training)), training=training)

    return Cut(below, above, [*leaf_layers(backbone_above), *leaf_layers(head)])


def _highest_crossing(backbone: keras.Model) -> keras.KerasTensor | None:
    """Returns the last tensor that all paths from the images to the trainable layers and the head cross, or None."""
    # Keras numbers depths from the outputs: an operation is deeper than what takes its results.
    nodes = [node for _, nodes in sorted(backbone._nodes_by_depth.items(), reverse=True) for node in nodes]
    first = next(index for index, node in enumerate(nodes) if _trains(node.operation))
    # Tensors made before an operation and used after it: a single one is a cut.
    last_use = {id(source): index for index, node in enumerate(nodes) for source in node.input_tensors}
    outputs = {id(output): len(nodes) for output in backbone.outputs}
    last_use |= outputs  # by the head
    crossing: set[int] = set()
    best = None
    for index, node in enumerate(nodes[:first]):
        crossing |= {id(result) for result in node.output_tensors}
        crossing -= {id(source) for source in node.input_tensors if last_use[id(source)] == index}
        if len(crossing) == 1 and not crossing & outputs.keys():  # Keras builds no network whose input is an output
            best = next((result for result in node.output_tensors if id(result) in crossing), best)
    return best


def _trains(operation: keras.Operation) -> bool:
    return isinstance(operation, keras.Layer) and bool(operation.trainable_variables)
