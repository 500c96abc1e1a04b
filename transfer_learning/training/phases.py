"""A phase made ready: what trains, on which inputs, with which optimizer; and its arrays for the checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from transfer_learning.config import Phase, RunConfig
from transfer_learning.datasets.pipeline import Examples, batches_in_order
from transfer_learning.errors import UserError
from transfer_learning.models.classifier import Classifier, leaf_layers
from transfer_learning.models.freezing import Cut
from transfer_learning.training.checkpoint import Arrays
from transfer_learning.training.optimizers import make_optimizer
from transfer_learning.training.train_step import make_eval_step, make_train_step

BYTES_AT_ONCE = 16e6  # of features that one call trains on


@dataclass
class ActivePhase:
    """One phase while it trains."""

    name: str
    settings: Phase
    train: Examples
    val: Examples
    optimizer: keras.optimizers.Optimizer
    metrics: tuple[keras.metrics.Mean, keras.metrics.Mean]  # loss and accuracy over the epoch so far
    finite_steps: keras.Variable  # of the epoch so far, up to the first whose loss is no finite number
    weights: list[keras.Variable]  # all that the phase may change
    seeds: list[keras.Variable]  # states of Dropout and its like, which no weights file holds
    augmentation: str  # that is made anew in every epoch
    train_steps: Callable  # see make_train_step
    steps_per_execution: int
    measure: Callable  # see make_eval_step
    eval_batch_size: int  # examples in a call of it, no more than training has in memory at once
    steps_per_epoch: int
    best: list[np.ndarray] = field(default_factory=list)  # `weights` of the best epoch so far

    def keep_best(self) -> None:
        self.best = [np.array(variable) for variable in self.weights]

    def restore_best(self) -> None:
        for variable, array in zip(self.weights, self.best, strict=True):
            variable.assign(array)

    def arrays(self) -> Arrays:
        """A copy of every array that the next update, or the end of the phase, depends on."""
        copies = {group: [np.array(variable) for variable in variables] for group, variables in self._groups().items()}
        return copies | {"best": self.best}  # which is replaced as a whole, and so needs none

    def assign(self, arrays: Arrays) -> None:
        """Takes the arrays back.

        Raises:
            UserError: their number, shapes or number formats are not those of this phase.
        """
        for group, variables in self._groups().items():
            expected = [(tuple(variable.shape), np.dtype(variable.numpy().dtype)) for variable in variables]
            found = [(array.shape, array.dtype) for array in arrays.get(group, [])]
            if found != expected:
                raise UserError(
                    f"The checkpoint's {group} are not those of phase {self.name} ({len(found)} arrays, {len(expected)} "
                    "expected, or other shapes); this version builds another network, so start a new run."
                )
            for variable, array in zip(variables, arrays[group], strict=True):
                variable.assign(array)
        self.best = arrays["best"]

    def _groups(self) -> dict[str, list]:
        metrics = [*(variable for metric in self.metrics for variable in metric.variables), self.finite_steps]
        return {"weights": self.weights, "seeds": self.seeds, "optimizer": self.optimizer.variables, "metrics": metrics}

    def start_epoch(self) -> None:
        for metric in self.metrics:
            metric.reset_state()
        self.finite_steps.assign(0)


def start_phase(
    name: str, config: RunConfig, classifier: Classifier, train: Examples, val: Examples, cut: Cut | None = None
) -> ActivePhase:
    """Makes a phase ready to train the layers of `classifier` that are open, with a new optimizer.

    Args:
        cut: where `train` and `val` hold what the lower side of the cut makes of the images; None: they hold images.
    """
    settings = config.phase(name)
    layers, logits = (cut.layers_above, cut.above) if cut else (leaf_layers(classifier.model), classifier.logits)
    changing = [layer for layer in layers if layer.trainable]
    variables = [variable for layer in changing for variable in layer.trainable_variables]
    weights = [variable for layer in changing for variable in layer.weights]
    known = {id(variable) for variable in weights}
    seeds = [variable for layer in changing for variable in layer.variables if id(variable) not in known]
    optimizer = make_optimizer(settings)
    optimizer.build(variables)
    metrics = (keras.metrics.Mean("loss"), keras.metrics.Mean("accuracy"))
    finite_steps = keras.Variable(0, dtype="int64", trainable=False, name="finite_steps")
    num_classes = len(classifier.class_names)
    augmentation = "none" if cut else settings.augmentation
    stored = tf.TensorSpec((None, *train.inputs.shape[1:]), train.inputs.dtype)
    changed = tf.TensorSpec(stored.shape, tf.float32)  # augmentation leaves no whole numbers
    labels = tf.TensorSpec((None,), tf.int32)
    # An update of the head alone takes no longer than Python's turn between two; one of a backbone takes much longer.
    batch_bytes = config.batch_size * int(np.prod(stored.shape[1:])) * stored.dtype.size
    steps_per_execution = max(1, int(BYTES_AT_ONCE // batch_bytes)) if len(stored.shape) == 2 else 1
    return ActivePhase(
        name,
        settings,
        train,
        val,
        optimizer,
        metrics,
        finite_steps,
        weights,
        seeds,
        augmentation,
        make_train_step(
            partial(logits, training=True),
            variables,
            optimizer,
            *metrics,
            finite_steps,
            config.label_smoothing,
            class_weights(config.class_weights, train.labels, num_classes),
            config.batch_size,
            config.gradient_accumulation_steps,
            (stored if augmentation == "none" else changed, labels),
        ),
        steps_per_execution,
        make_eval_step(logits, num_classes, config.label_smoothing, (stored, labels)),
        eval_batch_size=config.batch_size // config.gradient_accumulation_steps * steps_per_execution,
        steps_per_epoch=-(-len(train) // config.batch_size),
    )


def class_weights(kind: str, labels: np.ndarray, num_classes: int) -> list[float]:
    """Returns one weight a class: 1, or for "balanced" examples / (classes x examples of the class)."""
    if kind == "none":
        return [1.0] * num_classes
    counts = np.bincount(labels, minlength=num_classes)
    return [float(len(labels) / (num_classes * max(1, count))) for count in counts]


def measure(active: ActivePhase, after_batch: Callable[[], None] = lambda: None) -> tuple[float, float]:
    """Returns mean loss and accuracy over the phase's validation images, without dropout; NaN where there are none."""
    results = []
    for inputs, labels in batches_in_order(active.val, active.eval_batch_size):
        results.append([np.asarray(values, np.float64) for values in active.measure(inputs, labels)])
        after_batch()
    if not results:
        return float("nan"), float("nan")
    losses, correct = (np.concatenate([result[i] for result in results]) for i in (0, 1))
    return float(losses.mean()), float(correct.mean())
