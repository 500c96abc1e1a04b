"""Train steps that are shared by devices or processes, compared with the same steps on one device.

python -m tests.support.shared_steps mirrored             two logical devices of this process
python -m tests.support.shared_steps HOST:PORT,... INDEX  one of several processes
"""

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from tests.support.photos import SIZE, draw_photos
from tests.support.shortened import without_files
from transfer_learning.config import Phase, RunConfig
from transfer_learning.datasets.augmentation import AUGMENTATIONS
from transfer_learning.datasets.pipeline import Examples, Share, batches_in_order, training_batches
from transfer_learning.experiments.one_device import random_examples
from transfer_learning.experiments.train import run_experiment
from transfer_learning.machine.cluster import Cluster
from transfer_learning.machine.device_memory import DeviceRows
from transfer_learning.machine.strategy import ALONE, form_workers, lost_worker_as_user_error
from transfer_learning.models.backbones import build_backbone
from transfer_learning.models.classifier import build_classifier
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training import phases
from transfer_learning.training.phases import on_device, start_phase
from transfer_learning.training.train_step import EpochMetrics, StepSettings, make_train_step

RNG = np.random.default_rng(0)
BATCH, STEPS = 7, 20  # two epochs of ten
INPUTS, LABELS = RNG.normal(size=(70, 6, 6, 3)).astype(np.float32), RNG.integers(0, 3, 70)
SIGNATURE = (tf.TensorSpec((None, 6, 6, 3), tf.float32), tf.TensorSpec((None,), tf.int32))


def trained(workers, accumulation, num_examples=67, has_all=False):
    """All variables after STEPS steps, and the metrics of the last epoch; of 67 examples the last batch has 4.

    Args:
        has_all: also BatchNorm and Dropout.
    """
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.GlobalAveragePooling2D()]
    if has_all:
        layers[1:1] = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    network = keras.Sequential([keras.Input((6, 6, 3)), *layers, keras.layers.Dense(3, dtype="float32")])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    if keras.mixed_precision.dtype_policy().name == "mixed_float16":
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
    variables, metrics = network.trainable_variables, EpochMetrics()
    optimizer.build(variables)
    statistics = network.non_trainable_weights
    seeds = [layer.seed_generator.state for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    settings = StepSettings(BATCH, (1.0, 2.0, 0.5), accumulation, statistics=statistics, seeds=seeds)
    training = lambda images: network(images, training=has_all)  # noqa: E731
    train_steps = make_train_step(training, variables, optimizer, metrics, settings, SIGNATURE, workers)
    share = Share(workers.index, workers.count, BATCH)
    for step in range(0, STEPS, 2):  # two steps per call
        if (start := step * BATCH % 70) == 0:
            metrics.reset()
        chosen = share.of(np.arange(num_examples)[start : start + 2 * BATCH], False)
        train_steps(INPUTS[chosen], LABELS[chosen].astype(np.int32), [0.05, 0.1])
    return [np.array(variable) for variable in (*network.weights, *seeds, *metrics.variables)]


def check_device(device):
    """Batches of examples in the memory of a device, and of those copied to it, are on it and are those of the host."""
    inputs, rows = RNG.integers(0, 256, (30, 8, 8, 3), np.uint8), RNG.permutation(30)
    train, val = (
        Examples(inputs, part, part.astype(np.int32), part.astype(str).astype(object))
        for part in (rows[:20], rows[20:26])
    )
    num_bytes = 26 * 8 * 8 * 3
    for room in (num_bytes, num_bytes - 1):
        there, val_there = on_device(train, val, device, room)
        assert isinstance(there.inputs, DeviceRows) == isinstance(val_there.inputs, DeviceRows) == (room == num_bytes)
        pairs = [(batches_in_order(val_there, 4), batches_in_order(val, 4))]
        pairs += [
            [training_batches(examples, 6, 3, 1, 6, augmentation=kind) for examples in (there, train)]
            for kind in ("none", *AUGMENTATIONS)
        ]
        for found, expected in pairs:
            for batch, (images, labels) in zip(found, expected, strict=True):
                assert device in batch[0].device, batch[0].device
                np.testing.assert_allclose(batch[0], images, atol=1e-3)  # TensorFlow may optimize a compiled function
                np.testing.assert_allclose(batch[1], labels, atol=1e-6)


def check_phase(device):
    """A phase holds its images in the memory of a device of which they take less than a quarter."""
    examples = random_examples(8, 32)
    config = RunConfig(backbone="small_cnn", weights="none", image_size=32, fine_tune=Phase(epochs=1, unfreeze="all"))
    phases.GPU = device
    for room, held in ((4 * examples.inputs.nbytes, True), (4 * examples.inputs.nbytes - 4, False)):
        phases.gpu_bytes = lambda room=room: room
        active = start_phase("fine_tune", config, build_classifier(config, tuple("abcdefghij")), examples, examples)
        assert isinstance(active.train.inputs, DeviceRows) == isinstance(active.val.inputs, DeviceRows) == held
        assert held or active.train.device == active.val.device == device


def check_run(folder):
    """Both phases of a run on two devices end with the history of one device, up to rounding."""
    photos, weights = draw_photos(folder / "photos"), folder / "small_cnn.weights.h5"
    build_backbone("small_cnn", SIZE, "none", seed=7).save_weights(weights)
    fine_tune = Phase(epochs=2, learning_rate=1e-5, unfreeze="block4", augmentation="light")
    config = RunConfig(
        dataset=str(photos),
        backbone="small_cnn",
        weights=str(weights),
        image_size=SIZE,
        dropout=0.0,
        batch_size=8,
        cache_dir=str(folder / "cache"),
        frozen=Phase(epochs=2, learning_rate=1e-4),
        fine_tune=fine_tune,
    )
    histories = []
    with without_files():
        for name in ("one", "mirrored"):
            run_experiment(replace(config, strategy=name), run_dir := RunDir(folder / name))
            assert f"Strategy {name}" in run_dir.log.read_text()
            histories.append(pd.read_csv(run_dir.history).drop(columns="phase"))
    pd.testing.assert_frame_equal(*histories, atol=1e-5, rtol=1e-5)


def main(place, index="0"):
    cluster = None if place == "mirrored" else Cluster(tuple(place.split(",")), int(index), "TF_CONFIG")
    if not cluster:
        [cpu] = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        check_device("CPU:1")
        check_phase("CPU:1")
    workers = form_workers("auto" if cluster else "mirrored", cluster, 60.0)
    tf.config.experimental.enable_op_determinism()
    # In float16 a sum is rounded, and so is a division by 4; parts of one image are the same however they are shared.
    for precision, *settings in (("float32", 2), ("mixed_float16", BATCH, 70)):
        keras.mixed_precision.set_dtype_policy(precision)
        for shared, alone in zip(trained(workers, *settings), trained(ALONE, *settings), strict=True):
            np.testing.assert_allclose(shared, alone, atol=1e-5, rtol=1e-5)
    keras.mixed_precision.set_dtype_policy("float32")
    # Parts of one image: workers have 3 and 4 of a batch.
    arrays = np.concatenate([array.ravel() for array in trained(workers, BATCH, has_all=True)]).astype(np.float64)
    assert np.array_equal(workers.sum(arrays), workers.count * arrays), "statistics or seeds differ"
    if not cluster:
        with TemporaryDirectory() as folder:
            check_run(Path(folder))
    data = b"from worker 0" * 1000
    assert workers.from_chief(data if workers.is_chief else b"") == data
    assert workers.any(workers.is_chief) and not workers.any(False)
    if cluster:
        try:
            workers.check_equal({"dataset": "ab" if workers.is_chief else "cd"})
        except Exception as error:
            print(error)
        with lost_worker_as_user_error(workers.count, 60.0):
            if workers.is_chief:
                workers.wait()  # the others have ended
    print("equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
