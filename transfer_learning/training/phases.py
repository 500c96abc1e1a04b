"""A phase while it trains: its layers, inputs, optimizer and compiled steps, and its arrays for the checkpoint."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from transfer_learning.config import Phase, RunConfig
from transfer_learning.datasets.augmentation import AUGMENTATIONS
from transfer_learning.datasets.pipeline import Examples, Share, batches_in_order
from transfer_learning.errors import UserError
from transfer_learning.machine.device_memory import GPU, DeviceRows, gpu_bytes, results
from transfer_learning.machine.strategy import ALONE, Workers
from transfer_learning.models.backbones import find_backbone
from transfer_learning.models.classifier import Classifier, leaf_layers
from transfer_learning.models.freezing import Cut
from transfer_learning.training.checkpoint import Arrays
from transfer_learning.training.optimizers import make_optimizer
from transfer_learning.training.train_step import EpochMetrics, StepSettings, make_eval_step, make_train_step

BYTES_PER_EXECUTION = 16e6  # of features that one call trains on
# Of a GPU's memory, for the examples of a phase. Of all of it and not of what is free, so that a resumed run decides alike.
SHARE_OF_GPU = 0.25


@dataclass
class ActivePhase:
    """One phase while it trains."""

    name: str
    settings: Phase
    train: Examples
    val: Examples
    optimizer: keras.optimizers.Optimizer
    metrics: EpochMetrics
    weights: list[keras.Variable]  # all that the phase may change
    seeds: list[keras.Variable]  # states of Dropout and the like, which no weights file holds
    augmentation: str  # drawn anew in every epoch
    train_steps: Callable[[tf.Tensor, tf.Tensor, Sequence[float]], None]  # see make_train_step
    steps_per_execution: int  # train steps in one call
    steps_per_epoch: int
    eval_step: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]  # see make_eval_step
    eval_batch_size: int  # no more than training has in memory at once
    num_classes: int
    workers: Workers = ALONE
    best: list[np.ndarray] = field(default_factory=list)  # `weights` of the best epoch so far
    initial: list[np.ndarray] = field(default_factory=list)  # `weights` at the start of fine-tuning; [] if not needed

    def keep_best(self) -> None:
        """Copies the weights, as those of the best epoch so far."""
        self.best = [np.array(variable) for variable in self.weights]

    def restore_best(self) -> None:
        """Gives the network the weights of the best epoch."""
        for variable, array in zip(self.weights, self.best, strict=True):
            variable.assign(array)

    def arrays(self) -> Arrays:
        """Copies of all arrays that the next train step or the end of the phase depends on."""
        copies = {group: [np.array(variable) for variable in variables] for group, variables in self._groups().items()}
        return copies | {"best": self.best, "initial": self.initial}  # never changed in place, so they need no copy

    def assign(self, arrays: Arrays) -> None:
        """Restores what `arrays` returned.

        Raises:
            UserError: their number, shapes or dtypes are not those of this phase.
        """
        for group, variables in self._groups().items():
            expected = [(tuple(variable.shape), np.dtype(variable.numpy().dtype)) for variable in variables]
            found = [(array.shape, array.dtype) for array in arrays.get(group, [])]
            if found != expected:
                raise UserError(
                    f"The checkpoint's {group} do not fit phase {self.name} ({len(found)} arrays, {len(expected)} "
                    "expected, or other shapes), because this version builds another network; start a new run."
                )
            for variable, array in zip(variables, arrays[group], strict=True):
                variable.assign(array)
        for seed in self.seeds if self.workers.index else ():  # other masks of Dropout than those of worker 0
            seed.assign(np.array(seed) + np.array([self.workers.index, 0], np.uint32))
        self.best, self.initial = arrays["best"], arrays.get("initial", [])  # earlier versions had no initial ones

    def _groups(self) -> dict[str, list]:
        return {
            "weights": self.weights,
            "seeds": self.seeds,
            "optimizer": self.optimizer.variables,
            "metrics": self.metrics.variables,
        }


def start_phase(
    name: str,
    config: RunConfig,
    classifier: Classifier,
    train: Examples,
    val: Examples,
    cut: Cut | None = None,
    workers: Workers = ALONE,
) -> ActivePhase:
    """Prepares a phase that trains the unfrozen layers of `classifier`, with a new optimizer.

    Args:
        cut: given if `train` and `val` hold the activations at this cut; None: they hold images.
        workers: that share each batch. A step on features is too short for more than one device of a process.
    """
    settings = config.phase(name)
    layers, logits = (cut.layers_above, cut.above) if cut else (leaf_layers(classifier.model), classifier.logits)
    trained = [layer for layer in layers if layer.trainable]
    variables = [variable for layer in trained for variable in layer.trainable_variables]
    weights = [variable for layer in trained for variable in layer.weights]
    known = {id(variable) for variable in weights}
    seeds = [variable for layer in trained for variable in layer.variables if id(variable) not in known]
    optimizer, metrics = make_optimizer(settings, rate_factors(config, classifier, trained, settings)), EpochMetrics()
    optimizer.build(variables)
    if workers.count == 1 and len(train.inputs.shape) == 2:
        workers = ALONE
    if workers.strategy is None and (num_bytes := gpu_bytes()):
        train, val = on_device(train, val, GPU, SHARE_OF_GPU * num_bytes)
    if workers.count > 1:
        train = replace(train, share=Share(workers.index, workers.count, config.batch_size))
    has_statistics = workers.count > 1 and config.weights == "none"  # else BatchNorm stays in inference mode
    trainable = {id(variable) for variable in variables}
    statistics = [variable for variable in weights if id(variable) not in trainable] if has_statistics else []
    step_settings = StepSettings(
        batch_size=config.batch_size,
        class_weights=class_weights(config.class_weights, train.labels, len(classifier.class_names)),
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        label_smoothing=config.label_smoothing,
        statistics=statistics,
        seeds=seeds if workers.count > 1 else (),
        jit_compile=config.jit_compile,
    )
    augmentation = "none" if cut else settings.augmentation
    stored = tf.TensorSpec((None, *train.inputs.shape[1:]), train.inputs.dtype)
    trained_on = stored if augmentation == "none" else tf.TensorSpec(stored.shape, tf.float32)
    labels = tf.TensorSpec((None,), tf.int32)
    is_mixed = augmentation != "none" and AUGMENTATIONS[augmentation].share is not None
    # A step of the head alone is as short as Python's work between two steps, so one call makes several.
    batch_bytes = config.batch_size * int(np.prod(stored.shape[1:])) * stored.dtype.size
    steps_per_execution = max(1, int(BYTES_PER_EXECUTION // batch_bytes)) if len(stored.shape) == 2 else 1
    return ActivePhase(
        name=name,
        settings=settings,
        train=train,
        val=val,
        optimizer=optimizer,
        metrics=metrics,
        weights=weights,
        seeds=seeds,
        augmentation=augmentation,
        train_steps=make_train_step(
            partial(logits, training=True),
            variables,
            optimizer,
            metrics,
            step_settings,
            (trained_on, tf.TensorSpec((None, 3), tf.float32) if is_mixed else labels),
            workers,
        ),
        steps_per_execution=steps_per_execution,
        steps_per_epoch=math.ceil(len(train) / config.batch_size),
        eval_step=make_eval_step(logits, step_settings, (stored, labels)),
        eval_batch_size=config.batch_size // config.gradient_accumulation_steps * steps_per_execution,
        num_classes=len(classifier.class_names),
        workers=workers,
    )


def rate_factors(
    config: RunConfig, classifier: Classifier, layers: list[keras.layers.Layer], settings: Phase
) -> list[float]:
    """The factor of the learning rate of each trainable variable of these layers, see `Phase.layer_decay`.

    The head has 1, and each stage of the backbone `layer_decay` times that of the one above (Clark et al., ELECTRA, 2020,
    arXiv:2003.10555, for the layers of a text network). A layer outside all stages has the factor of the one before it.
    """
    backbone, head = find_backbone(config.backbone), set(map(id, leaf_layers(classifier.head)))
    factors, stage = [], 0
    for layer in layers:
        if (name := backbone.stage_of(layer.name)) is not None:
            stage = backbone.stages.index(name)
        depth = 0 if id(layer) in head else len(backbone.stages) - stage
        factors += [settings.layer_decay**depth] * len(layer.trainable_variables)
    return factors


def on_device(train: Examples, val: Examples, device: str, num_bytes: float) -> tuple[Examples, Examples]:
    """The examples in the memory of a device if they fit into `num_bytes`; otherwise their batches are copied ahead."""
    held = np.unique(np.concatenate([train.rows.ravel(), val.rows]))
    if len(held) * int(np.prod(train.inputs.shape[1:])) * train.inputs.dtype.itemsize > num_bytes:
        return replace(train, device=device), replace(val, device=device)
    inputs = DeviceRows(train.inputs[held], device)
    return train.on_device(inputs, held), val.on_device(inputs, held)


def class_weights(kind: str, labels: np.ndarray, num_classes: int) -> list[float]:
    """Returns one weight per class: 1, or for "balanced" examples / (classes x examples of the class)."""
    if kind == "none":
        return [1.0] * num_classes
    counts = np.bincount(labels, minlength=num_classes)
    return [float(len(labels) / (num_classes * max(1, count))) for count in counts]


def evaluate(active: ActivePhase, after_batch: Callable[[], None] = lambda: None) -> tuple[float, float]:
    """Returns mean loss and accuracy on the phase's validation images, without dropout; NaN if there are none."""
    if not len(active.val):
        return float("nan"), float("nan")
    losses, correct, _ = evaluated(active, after_batch)
    return float(losses.astype(np.float64).mean()), float(correct.astype(np.float64).mean())


def evaluated(active: ActivePhase, after_batch: Callable[[], None] = lambda: None) -> list[np.ndarray]:
    """What `eval_step` returns for the phase's validation images, of which each worker computes a part."""
    workers, num_examples = active.workers, len(active.val)
    own = workers.part(num_examples)
    val = active.val.at(np.arange(num_examples)[own])

    def steps() -> Iterator[tuple[tf.Tensor, ...]]:
        for inputs, labels in batches_in_order(val, active.eval_batch_size):
            yield active.eval_step(inputs, labels)
            after_batch()

    found = [np.concatenate(values) for values in zip(*results(steps()), strict=True)]
    if workers.count == 1:
        return found
    every = [np.zeros((num_examples, *shape), np.float32) for shape in ((), (), (active.num_classes,))]
    for array, values in zip(every, found, strict=False):  # a worker may have no part
        array[own] = values
    return [np.asarray(total) for total in workers.sum_tensors(every)]
