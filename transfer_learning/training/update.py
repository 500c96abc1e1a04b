"""One update: the gradients of K micro-batches summed, one step of the optimizer."""

from collections.abc import Callable

import keras
import tensorflow as tf


def make_update(
    training_logits: Callable[[tf.Tensor], tf.Tensor],
    variables: list[keras.Variable],
    optimizer: keras.optimizers.Optimizer,
    loss_metric: keras.metrics.Mean,
    accuracy_metric: keras.metrics.Mean,
    label_smoothing: float,
    class_weights: list[float],
    micro_batch_size: int | None,
    signature: tuple[tf.TensorSpec, tf.TensorSpec],
) -> Callable[[tf.Tensor, tf.Tensor], None]:
    """Returns a compiled function of (inputs, labels int32 (batch,)) that trains `variables` by one update.

    The loss is the sum over the batch of weight x cross-entropy, divided by the size of the batch, whatever the number
    of micro-batches; a batch may be shorter than usual. The metrics take every example before the update.

    Args:
        training_logits: float32 inputs -> float32 logits (batch, classes), with dropout; a BatchNorm that learns takes
            its statistics from micro-batches.
        class_weights: one weight a class.
        micro_batch_size: most images in memory at once; None: the whole batch.
        signature: of inputs and labels, the number of examples open, so that a short batch compiles nothing anew.
    """
    num_classes = len(class_weights)

    def gradients(inputs: tf.Tensor, labels: tf.Tensor, batch_size: tf.Tensor) -> list[tf.Tensor]:
        weights = tf.gather(tf.constant(class_weights, tf.float32), labels)
        with tf.GradientTape() as tape:
            logits = training_logits(tf.cast(inputs, tf.float32))
            losses = weights * cross_entropy(labels, logits, num_classes, label_smoothing)
            loss = optimizer.scale_loss(tf.reduce_sum(losses) / tf.cast(batch_size, tf.float32))
        loss_metric.update_state(losses)
        accuracy_metric.update_state(is_correct(labels, logits))
        return tape.gradient(loss, variables)

    def sum_over_parts(inputs: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        batch_size = tf.shape(labels)[0]

        def add_part(start, total):
            part = slice(start, start + micro_batch_size)
            new = gradients(inputs[part], labels[part], batch_size)
            return start + micro_batch_size, [known + more for known, more in zip(total, new, strict=True)]

        nothing = [tf.zeros_like(variable) for variable in variables]
        return tf.while_loop(lambda start, total: start < batch_size, add_part, (0, nothing), parallel_iterations=1)[1]

    @tf.function(input_signature=signature, autograph=False)  # AutoGraph fails on some versions of Python
    def update(inputs, labels):
        if micro_batch_size is None:
            summed = gradients(inputs, labels, tf.shape(labels)[0])
        else:
            summed = sum_over_parts(inputs, labels)
        optimizer.apply(summed, variables)

    return update


def make_measure(
    network: keras.Model, num_classes: int, label_smoothing: float, signature: tuple[tf.TensorSpec, tf.TensorSpec]
) -> Callable:
    """Returns a compiled function of (inputs, labels) -> (cross-entropy (batch,), correct (batch,)), both float32."""

    @tf.function(input_signature=signature, autograph=False)
    def measure(inputs, labels):
        logits = network(tf.cast(inputs, tf.float32), training=False)
        return cross_entropy(labels, logits, num_classes, label_smoothing), is_correct(labels, logits)

    return measure


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, num_classes: int, label_smoothing: float) -> tf.Tensor:
    """Returns float32 (batch,), from labels int32 (batch,) and logits (batch, classes)."""
    wanted = tf.one_hot(labels, num_classes)
    return keras.losses.categorical_crossentropy(wanted, logits, from_logits=True, label_smoothing=label_smoothing)


def is_correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns float32 (batch,): 1 where the largest logit is the label's, else 0."""
    return tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == labels, tf.float32)
