"""One update of a tiny network, against the same numbers computed another way."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from transfer_learning.training.update import make_update

NUM_CLASSES, WIDTH = 3, 4
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(10, WIDTH)).astype(np.float32)
LABELS = RNG.integers(0, NUM_CLASSES, 10).astype(np.int32)
SIGNATURE = (tf.TensorSpec((None, WIDTH), tf.float32), tf.TensorSpec((None,), tf.int32))
UNLIMITED = None


def linear_network():
    network = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(NUM_CLASSES)])
    network.layers[-1].kernel.assign(np.linspace(-1, 1, WIDTH * NUM_CLASSES).reshape(WIDTH, NUM_CLASSES))
    return network


def updated(inputs, labels, micro_batch_size=UNLIMITED, label_smoothing=0.0, class_weights=(1.0,) * NUM_CLASSES):
    """Kernel after one step of plain SGD with rate 1, loss and accuracy."""
    network, optimizer = linear_network(), keras.optimizers.SGD(1.0)
    optimizer.build(network.trainable_variables)
    metrics = keras.metrics.Mean(), keras.metrics.Mean()
    update = make_update(
        network, network.trainable_variables, optimizer, *metrics, label_smoothing, list(class_weights),
        micro_batch_size, SIGNATURE,
    )  # fmt: skip
    update(inputs, labels)
    return network.layers[-1].kernel.numpy(), *(float(metric.result()) for metric in metrics)


def expected_kernel(inputs, labels, label_smoothing, class_weights):
    kernel = linear_network().layers[-1].kernel.numpy().astype(np.float64)
    logits = inputs.astype(np.float64) @ kernel
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = np.eye(NUM_CLASSES)[labels] * (1 - label_smoothing) + label_smoothing / NUM_CLASSES
    errors = (probabilities - wanted) * np.asarray(class_weights)[labels][:, None]
    return kernel - inputs.T @ errors / len(labels)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.0)])
@pytest.mark.parametrize("micro_batch_size", [UNLIMITED, 1, 3, 5, 10, 64])
@pytest.mark.parametrize("num_examples", [10, 7, 1])
def test_an_update_is_a_step_down_the_mean_loss_whatever_the_parts(
    num_examples, micro_batch_size, class_weights, label_smoothing
):
    inputs, labels = INPUTS[:num_examples], LABELS[:num_examples]
    kernel, _, _ = updated(inputs, labels, micro_batch_size, label_smoothing, class_weights)
    assert kernel == pytest.approx(expected_kernel(inputs, labels, label_smoothing, class_weights), abs=1e-5)


@pytest.mark.parametrize("micro_batch_size", [UNLIMITED, 4])
def test_loss_and_accuracy_are_means_over_examples_before_the_update(micro_batch_size):
    _, loss, accuracy = updated(INPUTS, LABELS, micro_batch_size)
    logits = INPUTS @ linear_network().layers[-1].kernel.numpy()
    chosen = logits[np.arange(10), LABELS]
    assert loss == pytest.approx((np.log(np.exp(logits).sum(axis=1)) - chosen).mean(), abs=1e-5)
    assert accuracy == pytest.approx((logits.argmax(axis=1) == LABELS).mean())
