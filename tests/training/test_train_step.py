"""Train steps of a tiny network, against the same numbers computed with NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.logs import log_messages
from transfer_learning.training.train_step import EpochMetrics, StepSettings, make_train_step

NUM_CLASSES, WIDTH = 3, 4
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(10, WIDTH)).astype(np.float32)
LABELS = RNG.integers(0, NUM_CLASSES, 10).astype(np.int32)
SIGNATURE = (tf.TensorSpec((None, WIDTH), tf.float32), tf.TensorSpec((None,), tf.int32))


def linear_network():
    network = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(NUM_CLASSES)])
    network.layers[-1].kernel.assign(np.linspace(-1, 1, WIDTH * NUM_CLASSES).reshape(WIDTH, NUM_CLASSES))
    return network


def trained(
    inputs,
    labels,
    gradient_accumulation_steps=1,
    label_smoothing=0.0,
    class_weights=(1.0,) * NUM_CLASSES,
    batch_size=10,
    rates=(1.0,),
    at_once=None,
    momentum=0.0,
    jit_compile=False,
    network_fn=tf.identity,
):
    """Kernel after a step of SGD with each of the rates, loss, accuracy and finite steps; `at_once` steps per call."""
    network, optimizer = linear_network(), keras.optimizers.SGD(1.0, momentum=momentum)
    optimizer.build(network.trainable_variables)
    metrics = EpochMetrics()
    settings = StepSettings(
        batch_size, class_weights, gradient_accumulation_steps, label_smoothing, jit_compile=jit_compile
    )
    signature = SIGNATURE if labels.ndim == 1 else (SIGNATURE[0], tf.TensorSpec((None, 3), tf.float32))
    logits = lambda inputs: network(network_fn(inputs))  # noqa: E731
    train_steps = make_train_step(logits, network.trainable_variables, optimizer, metrics, settings, signature)
    at_once = at_once or len(rates)
    for first in range(0, len(rates), at_once):
        examples = slice(first * batch_size, (first + at_once) * batch_size)
        train_steps(inputs[examples], labels[examples], list(rates[first : first + at_once]))
    return network.layers[-1].kernel.numpy(), *metrics.result().values(), int(metrics.finite_steps)


def expected_kernel(inputs, labels, label_smoothing, class_weights):
    kernel = linear_network().layers[-1].kernel.numpy().astype(np.float64)
    logits = inputs.astype(np.float64) @ kernel
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    target = np.eye(NUM_CLASSES)[labels] * (1 - label_smoothing) + label_smoothing / NUM_CLASSES
    errors = (probabilities - target) * np.asarray(class_weights)[labels][:, None]
    return kernel - inputs.T @ errors / len(labels)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.0)])
@pytest.mark.parametrize(
    ("batch_size", "gradient_accumulation_steps"), [(10, 1), (10, 10), (12, 4), (10, 2), (64, 1), (64, 64)]
)
@pytest.mark.parametrize("num_examples", [10, 7, 1])
def test_a_step_descends_the_mean_loss_however_the_batch_is_split(
    num_examples, batch_size, gradient_accumulation_steps, class_weights, label_smoothing
):
    inputs, labels = INPUTS[:num_examples], LABELS[:num_examples]
    kernel, *_ = trained(inputs, labels, gradient_accumulation_steps, label_smoothing, class_weights, batch_size)
    assert kernel == pytest.approx(expected_kernel(inputs, labels, label_smoothing, class_weights), abs=1e-5)


@pytest.mark.parametrize("gradient_accumulation_steps", [1, 2])
@pytest.mark.parametrize("class_weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.0)])
def test_of_mixed_images_each_label_counts_by_its_share(class_weights, gradient_accumulation_steps):
    share, others = np.linspace(0, 1, 10, dtype=np.float32), np.roll(LABELS, -1)
    kernel, loss, *_ = trained(
        INPUTS, np.stack([LABELS, others, share], axis=1), gradient_accumulation_steps, 0.0, class_weights
    )
    twice, labels = np.concatenate([INPUTS, INPUTS]), np.concatenate([LABELS, others])
    shares = np.concatenate([share, 1 - share])[:, None]
    logits = twice @ linear_network().layers[-1].kernel.numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    weights = shares * np.asarray(class_weights)[labels][:, None]
    before = linear_network().layers[-1].kernel.numpy()
    expected = before - twice.T @ (weights * (probabilities - np.eye(NUM_CLASSES)[labels])) / 10
    assert kernel == pytest.approx(expected, abs=1e-5)
    losses = -np.log(probabilities[np.arange(20), labels])
    assert loss == pytest.approx((weights[:, 0] * losses).sum() / 10, abs=1e-5)


@pytest.mark.parametrize("gradient_accumulation_steps", [1, 2])
def test_loss_and_accuracy_are_means_over_examples_before_the_step(gradient_accumulation_steps):
    _, loss, accuracy, _ = trained(INPUTS, LABELS, gradient_accumulation_steps)
    logits = INPUTS @ linear_network().layers[-1].kernel.numpy()
    chosen = logits[np.arange(10), LABELS]
    assert loss == pytest.approx((np.log(np.exp(logits).sum(axis=1)) - chosen).mean(), abs=1e-5)
    assert accuracy == pytest.approx((logits.argmax(axis=1) == LABELS).mean())


@pytest.mark.parametrize("gradient_accumulation_steps", [1, 2])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_steps_give_the_same_bits_however_many_are_in_one_call(at_once, gradient_accumulation_steps):
    settings = {
        "batch_size": 4,
        "rates": (0.5, 0.25, 1.0),
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "momentum": 0.9,
    }
    kernel, *figures = trained(INPUTS, LABELS, **settings)  # batches of 4, 4 and 2
    again, *figures_again = trained(INPUTS, LABELS, at_once=at_once, **settings)
    assert np.array_equal(kernel, again) and figures == figures_again


@pytest.mark.parametrize("gradient_accumulation_steps", [1, 2])
def test_compiled_with_xla_it_is_the_same_step(gradient_accumulation_steps):
    settings = {"batch_size": 4, "rates": (0.5, 0.25, 1.0), "momentum": 0.9}
    settings["gradient_accumulation_steps"] = gradient_accumulation_steps
    messages = log_messages()
    compiled = trained(INPUTS, LABELS, jit_compile=True, **settings)
    for found, expected in zip(compiled, trained(INPUTS, LABELS, **settings), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not messages


def test_what_xla_cannot_compile_is_computed_without_it():
    def through_python(inputs):
        return tf.ensure_shape(tf.numpy_function(lambda array: array, [inputs], tf.float32), inputs.shape)

    messages = log_messages()
    kernel, *_ = trained(INPUTS, LABELS, jit_compile=True, network_fn=through_python)
    assert np.array_equal(kernel, trained(INPUTS, LABELS)[0])
    assert [message.startswith("--jit-compile is not possible") for message in messages] == [True]


def test_each_step_has_its_own_learning_rate_and_examples():
    first = expected_kernel(INPUTS[:6], LABELS[:6], 0.0, (1.0,) * NUM_CLASSES)
    alone, *_ = trained(INPUTS[:6], LABELS[:6], batch_size=6)
    assert alone == pytest.approx(first, abs=1e-5)
    still, *_ = trained(INPUTS, LABELS, batch_size=6, rates=(1.0, 0.0))
    assert still == pytest.approx(first, abs=1e-5)
    skipped, *_ = trained(INPUTS, LABELS, batch_size=6, rates=(0.0, 1.0))
    expected = expected_kernel(INPUTS[6:], LABELS[6:], 0.0, (1.0,) * NUM_CLASSES)
    assert skipped == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize(("bad", "finite"), [(None, 5), (0, 0), (5, 2), (9, 4)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_steps_are_counted_up_to_the_first_nan_or_infinite_loss(bad, finite, value, at_once):
    inputs = INPUTS.copy()
    if bad is not None:
        inputs[bad] = value
    *_, counted = trained(inputs, LABELS, batch_size=2, rates=(0.1,) * 5, at_once=at_once)
    assert counted == finite
