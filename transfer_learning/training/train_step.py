"""The compiled train and eval steps; a train step sums the gradients of several parts of a batch if asked to."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf

from transfer_learning.machine.strategy import ALONE, Workers

logger = logging.getLogger(__name__)

# Of inputs (None, ...) and labels int32 (None,), or those of mixed images, see `mixed_labels`.
Signature = tuple[tf.TensorSpec, tf.TensorSpec]


@dataclass(frozen=True)
class StepSettings:
    """What a train step computes on one batch."""

    batch_size: int
    class_weights: Sequence[float]  # one per class
    gradient_accumulation_steps: int = 1  # parts of a batch, which are in memory one after the other
    label_smoothing: float = 0.0
    statistics: Sequence[keras.Variable] = ()  # of BatchNorm in training mode, which the workers average
    seeds: Sequence[keras.Variable] = ()  # of Dropout, (seed, counter), whose counters stay equal in all workers
    jit_compile: bool = False  # the forward and the backward pass with XLA, where it can

    @property
    def num_classes(self) -> int:
        return len(self.class_weights)


class EpochMetrics:
    """Running metrics of one epoch, updated inside the train step."""

    def __init__(self):
        self.loss, self.accuracy = keras.metrics.Mean("loss"), keras.metrics.Mean("accuracy")
        # Train steps up to the first with a NaN or infinite loss.
        self.finite_steps = keras.Variable(0, dtype="int64", trainable=False, name="finite_steps")

    @property
    def variables(self) -> list[keras.Variable]:
        return [*self.loss.variables, *self.accuracy.variables, self.finite_steps]

    def reset(self) -> None:
        self.loss.reset_state()
        self.accuracy.reset_state()
        self.finite_steps.assign(0)

    def result(self) -> dict[str, float]:
        """Mean loss and accuracy of the epoch so far; waits for the device."""
        return {"loss": float(self.loss.result()), "accuracy": float(self.accuracy.result())}


def make_train_step(
    training_logits: Callable[[tf.Tensor], tf.Tensor],
    variables: list[keras.Variable],
    optimizer: keras.optimizers.Optimizer,
    metrics: EpochMetrics,
    settings: StepSettings,
    signature: Signature,
    workers: Workers = ALONE,
) -> Callable[[tf.Tensor, tf.Tensor, Sequence[float]], None]:
    """Returns a compiled function of (inputs, labels, learning rates) that trains `variables` for one or more steps.

    It cuts its examples into batches, the last of which may be shorter, and makes one train step on each, with the
    learning rate at the same position. Several steps per call give the same bits as one; they only save Python's time.

    The loss of a step is the sum of weight x cross-entropy over the batch, divided by the size of the batch, whatever
    the number of accumulation steps. The metrics take every example before the weights change; of mixed images the
    accuracy counts the label of the first.

    Args:
        training_logits: float32 inputs -> float32 logits (batch, classes), with dropout. A BatchNorm in training mode
            takes its statistics from each part of the batch.
        signature: leaves the number of examples open, so that a short last batch does not compile again.
        workers: the function takes this worker's part of each batch, and the step is that of all parts together. A
            BatchNorm in training mode then takes its statistics from each device's part.
    """
    num_parts = settings.gradient_accumulation_steps * workers.count * workers.num_devices
    part_size = math.ceil(settings.batch_size / num_parts)
    local_batch = workers.part(settings.batch_size)
    local_batch_size = local_batch.stop - local_batch.start
    is_shared = workers.strategy is not None

    def weighted_losses(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        weights = tf.gather(tf.constant(settings.class_weights, tf.float32), labels)
        return weights * cross_entropy(labels, logits, settings.num_classes, settings.label_smoothing)

    def gradients(inputs: tf.Tensor, labels: tf.Tensor, num_examples: tf.Tensor) -> list[tf.Tensor]:
        """Of the loss; if the batch is shared, also the sums of losses, of correct and of all examples."""
        with tf.GradientTape() as tape:
            logits = training_logits(tf.cast(inputs, tf.float32))
            if labels.shape.rank == 2:  # mixed images
                share = labels[:, 2]
                labels, others = (tf.cast(labels[:, i], tf.int32) for i in (0, 1))
                losses = share * weighted_losses(labels, logits) + (1 - share) * weighted_losses(others, logits)
            else:
                losses = weighted_losses(labels, logits)
            loss = optimizer.scale_loss(tf.reduce_sum(losses) / tf.cast(num_examples, tf.float32))
        if is_shared:
            sums = [tf.reduce_sum(values) for values in (losses, is_correct(labels, logits), tf.ones_like(losses))]
            return [*tape.gradient(loss, variables), *sums]
        metrics.loss.update_state(losses)
        metrics.accuracy.update_state(is_correct(labels, logits))
        return tape.gradient(loss, variables)

    if settings.jit_compile:
        gradients = _jit_compiled(gradients, signature, part_size, is_shared)

    def accumulated_gradients(inputs: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        num_examples = tf.shape(labels)[0]
        divisor = tf.constant(settings.batch_size) if is_shared else num_examples
        if settings.gradient_accumulation_steps == 1 and not is_shared:
            return gradients(inputs, labels, divisor)

        def add_part(start, total):
            part = slice(start, start + part_size)
            new = gradients(inputs[part], labels[part], divisor)
            return start + part_size, [known + more for known, more in zip(total, new, strict=True)]

        zeros = [*map(tf.zeros_like, variables), *([tf.zeros(())] * 3 if is_shared else [])]
        _, total = tf.while_loop(lambda start, _: start < num_examples, add_part, (0, zeros), parallel_iterations=1)
        return total

    def shared_gradients(inputs: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        """Of the mean loss over the parts of all workers' devices; a short last batch has no examples for some of them."""
        *total, losses, correct, count = workers.summed(accumulated_gradients, inputs, labels)
        for metric, sum_of_values in ((metrics.loss, losses), (metrics.accuracy, correct)):
            metric.total.assign_add(sum_of_values)
            metric.count.assign_add(count)
        return [settings.batch_size / count * gradient for gradient in total]

    # Without AutoGraph, which fails on some versions of Python.
    @tf.function(input_signature=(*signature, tf.TensorSpec((None,), tf.float32)), autograph=False)
    def train_steps(inputs, labels, learning_rates):
        def train_step(number):
            batch = slice(number * local_batch_size, (number + 1) * local_batch_size)
            optimizer.learning_rate.assign(learning_rates[number])
            compute = shared_gradients if is_shared else accumulated_gradients
            # A worker draws masks once per part, and not all have as many parts; none has more than the batch has images.
            next_seeds = [seed + tf.constant([0, settings.batch_size], seed.dtype) for seed in settings.seeds]
            optimizer.apply(compute(inputs[batch], labels[batch]), variables)
            for seed, value in zip(settings.seeds, next_seeds, strict=True):
                seed.assign(value)
            for variable, total in zip(settings.statistics, workers.sum_tensors(settings.statistics), strict=True):
                variable.assign(total / workers.count)
            # Once the sum is NaN or infinite it stays so: the counter stops at the first bad step.
            metrics.finite_steps.assign_add(tf.cast(tf.math.is_finite(metrics.loss.total), tf.int64))
            return (number + 1,)

        tf.while_loop(lambda number: number < tf.size(learning_rates), train_step, (0,), parallel_iterations=1)

    return train_steps


def _jit_compiled(gradients: Callable, signature: Signature, size: int, is_shared: bool) -> Callable:
    """`gradients` compiled with XLA, or as it is, with a warning, if several devices share them or XLA lacks an operation."""
    compiled = tf.function(gradients, autograph=False, jit_compile=True)
    arguments = [tf.TensorSpec((size, *spec.shape[1:]), spec.dtype) for spec in signature]
    try:
        if is_shared:
            raise ValueError("several devices share a batch")
        compiled.experimental_get_compiler_ir(*arguments, tf.TensorSpec((), tf.int32))(stage="hlo")
    except (ValueError, TypeError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())[:200]
        logger.warning(f"--jit-compile is not possible, so train steps are computed without XLA: {reason}.")
        return gradients
    return compiled


def make_eval_step(
    logits: Callable[..., tf.Tensor], settings: StepSettings, signature: Signature
) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """Returns a compiled function of (inputs, labels) -> (cross-entropy (batch,), correct (batch,), logits (batch,
    classes)), all float32.
    """

    @tf.function(input_signature=signature, autograph=False)
    def eval_step(inputs, labels):
        predicted = logits(tf.cast(inputs, tf.float32), training=False)
        losses = cross_entropy(labels, predicted, settings.num_classes, settings.label_smoothing)
        return losses, is_correct(labels, predicted), predicted

    return eval_step


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, num_classes: int, label_smoothing: float) -> tf.Tensor:
    """Returns float32 (batch,), from labels int32 (batch,) and logits (batch, classes)."""
    one_hot = tf.one_hot(labels, num_classes)
    return keras.losses.categorical_crossentropy(one_hot, logits, from_logits=True, label_smoothing=label_smoothing)


def is_correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns float32 (batch,): 1 where the largest logit is the label's, else 0."""
    return tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == labels, tf.float32)
