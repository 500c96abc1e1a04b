"""Updates: each the gradients of K micro-batches summed and one step of the optimizer; several in one call."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf


def make_train_step(
    training_logits: Callable[[tf.Tensor], tf.Tensor],
    variables: list[keras.Variable],
    optimizer: keras.optimizers.Optimizer,
    loss_metric: keras.metrics.Mean,
    accuracy_metric: keras.metrics.Mean,
    finite_steps: keras.Variable,
    label_smoothing: float,
    class_weights: list[float],
    batch_size: int,
    gradient_accumulation_steps: int,
    signature: tuple[tf.TensorSpec, tf.TensorSpec],
) -> Callable[[tf.Tensor, tf.Tensor, Sequence[float]], None]:
    """Returns a compiled function of (inputs, labels int32 (n,), rates float32 (updates,)) that trains `variables`.

    It cuts its examples into batches of `batch_size`, the last of which may be shorter, and makes an update with each, at
    its rate. How many come in one call does not change a bit of the result; it only saves Python's time between them.

    The loss of an update is the sum over the batch of weight x cross-entropy, divided by the size of the batch, whatever
    the number of micro-batches. The metrics take every example before the update.

    Args:
        finite_steps: int64, counts the updates up to the first whose loss is no finite number.
        training_logits: float32 inputs -> float32 logits (batch, classes), with dropout; a BatchNorm that learns takes
            its statistics from micro-batches.
        class_weights: one weight a class.
        gradient_accumulation_steps: parts of a batch that are in memory one after the other.
        signature: of inputs and labels, the number of examples open, so that a short batch compiles nothing anew.
    """
    num_classes = len(class_weights)
    micro_batch_size = batch_size // gradient_accumulation_steps

    def gradients(inputs: tf.Tensor, labels: tf.Tensor, num_examples: tf.Tensor) -> list[tf.Tensor]:
        weights = tf.gather(tf.constant(class_weights, tf.float32), labels)
        with tf.GradientTape() as tape:
            logits = training_logits(tf.cast(inputs, tf.float32))
            losses = weights * cross_entropy(labels, logits, num_classes, label_smoothing)
            loss = optimizer.scale_loss(tf.reduce_sum(losses) / tf.cast(num_examples, tf.float32))
        loss_metric.update_state(losses)
        accuracy_metric.update_state(is_correct(labels, logits))
        return tape.gradient(loss, variables)

    def sum_over_parts(inputs: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        num_examples = tf.shape(labels)[0]
        if gradient_accumulation_steps == 1:
            return gradients(inputs, labels, num_examples)

        def add_part(start, total):
            part = slice(start, start + micro_batch_size)
            new = gradients(inputs[part], labels[part], num_examples)
            return start + micro_batch_size, [known + more for known, more in zip(total, new, strict=True)]

        nothing = [tf.zeros_like(variable) for variable in variables]
        return tf.while_loop(lambda start, total: start < num_examples, add_part, (0, nothing), parallel_iterations=1)[
            1
        ]

    @tf.function(input_signature=(*signature, tf.TensorSpec((None,), tf.float32)), autograph=False)
    def train_steps(inputs, labels, rates):  # without AutoGraph, which fails on some versions of Python
        def update(number):
            batch = slice(number * batch_size, (number + 1) * batch_size)
            optimizer.learning_rate.assign(rates[number])
            optimizer.apply(sum_over_parts(inputs[batch], labels[batch]), variables)
            finite_steps.assign_add(tf.cast(tf.math.is_finite(loss_metric.total), tf.int64))  # once not, never again
            return (number + 1,)

        tf.while_loop(lambda number: number < tf.size(rates), update, (0,), parallel_iterations=1)

    return train_steps


def make_eval_step(
    logits: Callable[..., tf.Tensor],
    num_classes: int,
    label_smoothing: float,
    signature: tuple[tf.TensorSpec, tf.TensorSpec],
) -> Callable:
    """Returns a compiled function of (inputs, labels) -> (cross-entropy (batch,), correct (batch,)), both float32."""

    @tf.function(input_signature=signature, autograph=False)
    def measure(inputs, labels):
        predicted = logits(tf.cast(inputs, tf.float32), training=False)
        return cross_entropy(labels, predicted, num_classes, label_smoothing), is_correct(labels, predicted)

    return measure


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, num_classes: int, label_smoothing: float) -> tf.Tensor:
    """Returns float32 (batch,), from labels int32 (batch,) and logits (batch, classes)."""
    wanted = tf.one_hot(labels, num_classes)
    return keras.losses.categorical_crossentropy(wanted, logits, from_logits=True, label_smoothing=label_smoothing)


def is_correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns float32 (batch,): 1 where the largest logit is the label's, else 0."""
    return tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == labels, tf.float32)
