"""This package at each job: the command `run` as a user calls it, or the functions that it is made of."""

import json
import shlex
import statistics
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from benchmarks import folding, job
from benchmarks.networks import extractor
from transfer_learning import run as run_command
from transfer_learning.config import RunConfig
from transfer_learning.datasets.augmentation import apply, draw
from transfer_learning.datasets.pipeline import training_batches
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.experiments import train  # ahead, so that no job counts its imports
from transfer_learning.experiments.one_device import train_step
from transfer_learning.machine.devices import set_up_devices
from transfer_learning.models.backbones import build_backbone
from transfer_learning.models.inference_graph import inference_graph
from transfer_learning.storage.files import read_json
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training import checkpoint

KIND = "light"


def frozen(flags: Namespace) -> dict[str, Any]:
    """A frozen phase from files to trained head; `--cache` is the cache that the next job starts from."""
    return run(flags, *frozen_phase(flags)) | {"epochs": flags.epochs}


def fine_tune(flags: Namespace) -> dict[str, Any]:
    """Epochs of fine-tuning with conv5 unfrozen: the median from the second on, with validation, without checkpoint."""
    figures = run(
        flags,
        *("--backbone", "resnet50", "--weights", str(flags.weights), "--frozen.epochs", "0"),
        *f"--fine-tune.epochs {flags.epochs} --fine-tune.learning-rate {flags.learning_rate}".split(),
        *"--fine-tune.unfreeze conv5 --fine-tune.optimizer adam --fine-tune.weight-decay 0".split(),
        *"--fine-tune.schedule constant --fine-tune.warmup-epochs 0 --fine-tune.patience 0".split(),
        *"--fine-tune.augmentation none".split(),
    )
    timings = pd.read_csv(flags.scratch / "run" / "timings.csv")
    epochs = timings.loc[timings["phase"] == "fine_tune", "seconds"].tolist()
    return figures | {"epoch_seconds": statistics.median(epochs[1:] or epochs), "first_epoch_seconds": epochs[0]}


def train_steps(flags: Namespace) -> dict[str, Any]:
    """Train steps of all layers on one batch, BatchNorm in inference mode and folded."""
    set_up_devices("float32", seed=0)
    active = folding.built_phase(flags.network, flags.size, flags.batch_size, folds=True)
    inputs, labels = (
        tf.convert_to_tensor(part) for part in (active.train.inputs[active.train.rows], active.train.labels)
    )
    return job.images_per_second(lambda: train_step(active, inputs, labels), flags.batch_size, flags.seconds)


def memory(flags: Namespace) -> dict[str, Any]:
    """A run on small images, for the peak memory of its process."""
    return run(flags, *frozen_phase(flags))


def memory_limited(flags: Namespace) -> dict[str, Any]:
    """The same with augmentation, on images of `--times-limit` times the size that `--decoded-gb` allows."""
    num_images = sum(1 for _ in flags.images.rglob("*.jpg"))
    limit = num_images * flags.size**2 * 3 / 1e9 / flags.times_limit
    more = ("--frozen.augmentation", "light", "--decoded-gb", f"{limit:.9f}")
    return run(flags, *frozen_phase(flags), *more) | {"images": num_images, "decoded_gb": limit}


def checkpoints(flags: Namespace) -> dict[str, Any]:
    """The recipe drawn_pills: the share of its time that training waits for checkpoints."""
    if flags.wait_for_disk:
        save = checkpoint.Writer.save

        def save_and_wait(writer: checkpoint.Writer, *arguments: Any) -> None:
            save(writer, *arguments)
            writer.wait()

        checkpoint.Writer.save = save_and_wait  # type: ignore[method-assign]
    run(flags, "--data-dir", str(flags.data), dataset="drawn_pills", own_sizes=True)
    seconds = pd.read_csv(flags.scratch / "run" / "timings.csv")["checkpoint_seconds"].sum()
    total = sum(stage["seconds"] for stage in read_estimate(flags.scratch / "run")["stages"])
    return {"checkpoint_percent": 100 * seconds / total, "checkpoint_seconds": seconds, "run_seconds": total}


def classify(flags: Namespace) -> dict[str, Any]:
    """A whole run with `--options`, from files to the report; the predictions of the test images are left in --scratch."""
    places = ["--cache-dir", str(flags.scratch / "cache"), "--run-dir", str(flags.scratch / "run")]
    words = ["--dataset", str(flags.images), "--seed", str(flags.seed), *places, *shlex.split(flags.options)]
    course = job.Course(flags)
    if course.is_on:
        train.config_callbacks = lambda config, run_dir: [TestAccuracy(course, config)]  # type: ignore[assignment]
    if code := run_command.main(words):
        sys.exit(code)
    path = flags.scratch / "run" / "predictions" / "test.csv"
    course.measure(lambda: read_json(RunDir(flags.scratch / "run").evaluation)["accuracy"])  # of all images, at the end
    return {"predictions": str(path)} | course.figures()


class TestAccuracy(keras.callbacks.Callback):
    """Measures the network after each epoch on test images."""

    def __init__(self, course: job.Course, config: RunConfig):
        super().__init__()
        self.course, self.config = course, config

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.course.measure(self.accuracy)

    def accuracy(self) -> float:
        test = load_prepared(self.config).split("test")
        some = self.course.some(range(len(test)))
        logits = self.model.predict(test.inputs[test.rows[some]].astype(np.float32), batch_size=32, verbose=0)
        return (logits.argmax(axis=1) == test.labels[some]).mean()


def extraction(flags: Namespace) -> dict[str, Any]:
    """Forward passes of the inference graph over random images in memory."""
    compute = inference_graph(extractor(flags.network, flags.size), flags.batch_size)
    images = random_images(flags).astype(np.float32)
    return job.images_per_second(lambda: compute(tf.constant(images)).numpy(), flags.batch_size, flags.seconds)


def input_epochs(flags: Namespace) -> dict[str, Any]:
    """Epochs over the training images from the second on, as the training loop gets them."""
    examples = load(flags).split("train")
    for _ in training_batches(examples, flags.batch_size, 0, 0):
        pass
    started, images = time.perf_counter(), 0
    for epoch in job.steps_for(flags.seconds):
        for _, labels in training_batches(examples, flags.batch_size, 0, epoch + 1):
            images += len(labels)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "images": images, "images_per_second": images / seconds}


def input_first(flags: Namespace) -> dict[str, Any]:
    """A dataset without a cache: checked, hashed, decoded, cached."""
    data = load(flags)
    return {"images": len(data.manifest)}


def augmentation(flags: Namespace) -> dict[str, Any]:
    """Augmentation of a batch: flip, rotation, zoom, shift, brightness and contrast."""
    images, keys = tf.constant(random_images(flags)), np.arange(flags.batch_size, dtype=np.uint64)
    augment = tf.function(partial(apply, KIND), autograph=False)

    def step():
        augment(images, draw(KIND, True, 0, 0, keys, flags.size)).numpy()

    figures = job.images_per_second(step, flags.batch_size, flags.seconds)
    return figures | {"milliseconds": 1000 * flags.batch_size / figures["images_per_second"]}


def random_weights(flags: Namespace) -> dict[str, Any]:
    """Writes random weights of a network as a file that `--weights` takes."""
    unfinished = flags.to.with_name(f"unfinished-{flags.to.name}")
    build_backbone(flags.network, flags.size, "none").save_weights(unfinished)
    unfinished.rename(flags.to)
    return {}


def drawn(flags: Namespace) -> dict[str, Any]:
    """Draws the dataset drawn_pills."""
    return {"images": len(load_dataset("drawn_pills", flags.to).examples)}


def frozen_phase(flags: Namespace) -> tuple[str, ...]:
    """Flags for every setting of the frozen phase, so that none is chosen automatically."""
    return (
        *"--backbone efficientnet_lite0 --head none --dropout 0.2 --class-weights none".split(),
        *f"--frozen.epochs {flags.epochs} --frozen.learning-rate {flags.learning_rate} --frozen.optimizer adam".split(),
        *"--frozen.patience 0 --frozen.schedule constant --fine-tune.epochs 0".split(),
    )


def run(flags: Namespace, *more: str, dataset: str = "", own_sizes: bool = False) -> dict[str, Any]:
    """Calls the command `run`; with `own_sizes` image and batch sizes are the recipe's.

    `seconds` leaves out the stage `evaluate` (evaluation of the whole model, figures and report), which no other tool
    makes; `seconds_with_evaluation` includes it.
    """
    size, batch_size = str(flags.size), str(flags.batch_size)
    sizes = ["--image-size", size, "--input-size", "0", "--batch-size", batch_size, "--test-fraction", "0"]
    places = ["--cache-dir", str(flags.cache or flags.scratch / "cache"), "--run-dir", str(flags.scratch / "run")]
    command = ["--dataset", dataset or str(flags.images), *([] if own_sizes else sizes), *more, *places]
    started = time.perf_counter()
    if code := run_command.main(command):
        sys.exit(code)
    seconds = time.perf_counter() - started
    stages = {stage["name"]: stage["seconds"] for stage in read_estimate(flags.scratch / "run").get("stages", [])}
    history = pd.read_csv(flags.scratch / "run" / "history.csv")
    return {
        "seconds": seconds - stages.get("evaluate", 0.0),
        "seconds_with_evaluation": seconds,
        "evaluate_seconds": stages.get("evaluate"),
        "stages": stages,
        "val_accuracy": float(history["val_accuracy"].iloc[-1]),
        "command": command,
    }


def read_estimate(run_dir: Path) -> dict[str, Any]:
    path = RunDir(run_dir).stages
    return json.loads(path.read_text()) if path.exists() else {}


def load(flags: Namespace):
    return load_prepared(
        RunConfig(
            dataset=str(flags.images),
            image_size=flags.size,
            val_fraction=0.0,
            test_fraction=0.0,
            cache_dir=str(flags.scratch / "cache"),
        )
    )


def random_images(flags: Namespace) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (flags.batch_size, flags.size, flags.size, 3), np.uint8)


if __name__ == "__main__":
    job.run_job(
        {
            "frozen": frozen,
            "fine_tune": fine_tune,
            "train_steps": train_steps,
            "classify": classify,
            "memory": memory,
            "memory_limited": memory_limited,
            "checkpoints": checkpoints,
            "extraction": extraction,
            "input_epochs": input_epochs,
            "input_first": input_first,
            "augmentation": augmentation,
            "random_weights": random_weights,
            "drawn": drawn,
        }
    )
