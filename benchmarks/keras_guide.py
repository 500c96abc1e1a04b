"""Peer: a script as the Keras documentation writes it.

It follows the developer guide "Transfer learning & fine-tuning" (keras.io) for the model: a frozen base, called with
training=False, GlobalAveragePooling, Dropout, Dense, `compile` and `fit` with validation data; and "Image data loading"
for the data: `image_dataset_from_directory`, which the guide names for own images, with its own prefetching. The
guide's example, whose images come from TensorFlow Datasets, also caches them decoded: `--cache-decoded` does that.
The guide's other way, features computed once by hand and a second model trained on them, is not measured.

Backbone and weights are imported from this package (nothing else is), so that both compute the same.
"""

import statistics
import time
from argparse import Namespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks import job
from benchmarks.networks import extractor
from transfer_learning.models.backbones import build_backbone


def frozen(flags: Namespace) -> dict[str, Any]:
    """The head alone, on images."""
    train, val = dataset(flags, "train"), dataset(flags, "val")
    num_classes = len(train.class_names)
    if flags.cache_decoded:
        train, val = (images.cache().prefetch(tf.data.AUTOTUNE) for images in (train, val))
    base = build_backbone("efficientnet_lite0", flags.size, "imagenet")
    base.trainable = False
    history = classifier(base, flags, num_classes).fit(train, epochs=flags.epochs, validation_data=val, verbose=0)
    return job.trained(flags, history.history["val_accuracy"][-1])


def fine_tune(flags: Namespace) -> dict[str, Any]:
    """ResNet50 with the layers of conv5 and the head unfrozen."""
    train, val = dataset(flags, "train"), dataset(flags, "val")
    num_classes = len(train.class_names)
    if flags.cache_decoded:
        train, val = (images.cache().prefetch(tf.data.AUTOTUNE) for images in (train, val))
    base = build_backbone("resnet50", flags.size, str(flags.weights))
    for layer in base.layers:
        layer.trainable = layer.name.startswith("conv5")
    clock = EpochClock()
    model = classifier(base, flags, num_classes)
    history = model.fit(train, epochs=flags.epochs, validation_data=val, verbose=0, callbacks=[clock])
    return job.trained(flags, history.history["val_accuracy"][-1]) | {
        "epoch_seconds": statistics.median(clock.seconds[1:] or clock.seconds),
        "first_epoch_seconds": clock.seconds[0],
    }


def classify(flags: Namespace) -> dict[str, Any]:
    """The guide from its first to its last step: the head alone, then all layers at 1e-5; `--epochs` each."""
    keras.utils.set_random_seed(flags.seed)
    train, test = dataset(flags, "train"), dataset(flags, "test")
    base = build_backbone("efficientnet_lite0", flags.size, "imagenet")
    base.trainable = False
    model, course = classifier(base, flags, len(train.class_names)), job.Course(flags)
    some = test.unbatch().shard(max(1, len(test.file_paths) // course.NUM_IMAGES), 0).batch(flags.batch_size)

    def measure(epoch: int, logs: dict[str, float]) -> None:
        course.measure(lambda: model.evaluate(some, verbose=0)[1])

    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=measure)]
    model.fit(train, epochs=flags.epochs, verbose=0, callbacks=callbacks)
    base.trainable = True
    model.compile(optimizer=keras.optimizers.Adam(1e-5), loss=model.loss, metrics=["accuracy"])
    model.fit(train, epochs=flags.epochs, verbose=0, callbacks=callbacks)
    probabilities = keras.ops.softmax(model.predict(test, verbose=0))
    found = job.predicted(flags, test.file_paths, train.class_names, np.asarray(probabilities).tolist())
    return found | course.figures()


def extraction(flags: Namespace) -> dict[str, Any]:
    """`model.predict` over random images in memory, ten batches per call."""
    model = extractor(flags.network, flags.size)
    shape = (10 * flags.batch_size, flags.size, flags.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8).astype(np.float32)
    return job.images_per_second(
        lambda: model.predict(images, batch_size=flags.batch_size, verbose=0), len(images), flags.seconds, warm_up=1
    )


def input_epochs(flags: Namespace) -> dict[str, Any]:
    """Epochs over the training images from the second on."""
    images = dataset(flags, "train")
    if flags.cache_decoded:
        images = images.cache().prefetch(tf.data.AUTOTUNE)
    for _ in images:
        pass
    started, number = time.perf_counter(), 0
    for _ in job.steps_for(flags.seconds):
        number += sum(len(labels) for _, labels in images)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "images": number, "images_per_second": number / seconds}


def input_first(flags: Namespace) -> dict[str, Any]:
    """One pass over a folder of large images."""
    return {"images": sum(len(labels) for _, labels in dataset(flags, "."))}


def augmentation(flags: Namespace) -> dict[str, Any]:
    """Keras' preprocessing layers in a Sequential, compiled; ranges as ours, without our shift and brightness."""
    layers = keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomRotation(10 / 360),
            keras.layers.RandomZoom(0.1),
            keras.layers.RandomContrast(0.1),
        ]
    )
    shape = (flags.batch_size, flags.size, flags.size, 3)
    images = tf.constant(np.random.default_rng(0).integers(0, 256, shape, np.uint8).astype(np.float32))
    apply = tf.function(lambda batch: layers(batch, training=True))
    figures = job.images_per_second(lambda: apply(images).numpy(), flags.batch_size, flags.seconds)
    return figures | {"milliseconds": 1000 * flags.batch_size / figures["images_per_second"]}


def dataset(flags: Namespace, part: str) -> tf.data.Dataset:
    return keras.utils.image_dataset_from_directory(
        flags.images / part,
        image_size=(flags.size, flags.size),
        batch_size=flags.batch_size,
        shuffle=part not in ("val", "test"),
        seed=flags.seed,
        verbose=False,
    )


def classifier(base: keras.Model, flags: Namespace, num_classes: int) -> keras.Model:
    images = keras.Input((flags.size, flags.size, 3))
    x = base(images, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    model = keras.Model(images, keras.layers.Dense(num_classes)(x))
    model.compile(
        optimizer=keras.optimizers.Adam(flags.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


class EpochClock(keras.callbacks.Callback):
    """Records the seconds of each epoch, validation included."""

    def __init__(self):
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.started)


if __name__ == "__main__":
    job.run_job(
        {
            "frozen": frozen,
            "fine_tune": fine_tune,
            "classify": classify,
            "extraction": extraction,
            "input_epochs": input_epochs,
            "input_first": input_first,
            "augmentation": augmentation,
        }
    )
