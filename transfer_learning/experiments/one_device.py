"""Measures one device with the network of a recipe, for `device_benchmark`, which hides all others, and for `plan`.

The last line of its output is a JSON object.
"""

import argparse
import io
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import tensorflow as tf
from PIL import Image

from transfer_learning.config import RunConfig
from transfer_learning.datasets.decoding.decode import decode
from transfer_learning.datasets.pipeline import Examples
from transfer_learning.machine.cluster import find_cluster
from transfer_learning.machine.devices import Devices, set_up_devices
from transfer_learning.machine.resources import available_bytes, usable_cores
from transfer_learning.machine.strategy import form_workers
from transfer_learning.models.classifier import Classifier, build_classifier, unfreeze_layers
from transfer_learning.models.features import BATCH
from transfer_learning.models.inference_graph import inference_graph
from transfer_learning.recipes.known import RECIPES
from transfer_learning.training.phases import ActivePhase, evaluate, start_phase
from transfer_learning.training.rate_search import endless_batches

CLASS_NAMES = tuple("0123456789")
WINDOWS = 5
LARGEST_TRIED = 65536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("list", "measure", "pieces", "all-reduce"))
    parser.add_argument("--dataset", default="drawn_pills", help="recipe")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the measurement of a rate")
    parser.add_argument("--images", type=int, default=0, help="images of an epoch, for training and validation")
    parser.add_argument("--batches", default="", help="images per train step, as 32,16")
    flags = parser.parse_args()
    figures: dict[str, Any]
    if flags.job == "list":
        figures = {"gpus": [gpu.name for gpu in tf.config.list_physical_devices("GPU")]}
    elif flags.job == "pieces":
        figures = measure_pieces(flags.dataset, flags.seconds, [int(batch) for batch in flags.batches.split(",")])
    elif flags.job == "all-reduce":
        figures = measure_all_reduce(flags.dataset, flags.seconds)
    else:
        figures = measure_recipe(flags.dataset, flags.seconds, flags.images)
    print(json.dumps(figures), flush=True)


def measure_recipe(dataset: str, seconds: float, num_images: int) -> dict[str, Any]:
    """Returns rates, each measured for `seconds` in `WINDOWS` windows, memory and the largest batch size of a recipe's
    network, whose weights are random; and the time of an epoch of `num_images`.
    """
    config, devices, classifier = set_up(dataset)
    window = seconds / WINDOWS
    extraction = extraction_rate(classifier, window)

    unfrozen = unfreeze_layers(classifier, config.backbone, config.fine_tune.unfreeze)
    active, training = training_rate(config, classifier, window)
    with_xla = None
    if devices.num_gpus:
        _, with_xla = training_rate(replace(config, jit_compile=True), classifier, window)
    evaluate(active)  # compiles
    started = time.perf_counter()
    evaluate(active)
    validation = len(active.val) / (time.perf_counter() - started)
    num_val = round(num_images * config.val_fraction)
    num_train = num_images - num_val

    peak = peak_bytes(devices.num_gpus)
    largest, describe, how = largest_batch(config, classifier, devices.num_gpus)
    what = f"{config.backbone} at {config.image_size} pixels, training {unfrozen}, batch {config.batch_size}"
    device = {"name": devices.name, "precision": devices.precision, "threads": devices.threads, "what": what}
    rates = {"windows": WINDOWS, "window_seconds": window, "extraction": extraction, "training": training}
    rates["training_with_xla"] = with_xla
    return (
        device
        | rates
        | {
            "validation_images_per_second": validation,
            "num_train": num_train,
            "num_val": num_val,
            "epoch_seconds": num_train / training["median"] + num_val / validation,
            "device_peak_mb": peak / 1e6,
            "memory": "GPU memory" if devices.num_gpus else "resident memory",
            "largest_batch": largest,
            "largest_batch_text": describe,
            "how_largest_batch": how,
        }
    )


def measure_pieces(dataset: str, seconds: float, batches: Sequence[int]) -> dict[str, Any]:
    """What `plan.rows` is calculated from: seconds of a train step by its number of images, rates and bytes."""
    config, devices, classifier = set_up(dataset)
    window, size = seconds / WINDOWS, config.stored_size
    forward = extraction_rate(classifier, window)
    unfreeze_layers(classifier, config.backbone, config.fine_tune.unfreeze)
    steps = {}
    for batch in batches:
        own = replace(
            config, batch_size=batch, gradient_accumulation_steps=min(batch, config.gradient_accumulation_steps)
        )
        _, training = training_rate(own, classifier, window)
        steps[str(batch)] = batch / training["median"]
    photo = io.BytesIO()
    Image.fromarray(random_images(1, 48)[0]).resize((500, 375), Image.Resampling.BICUBIC).save(
        photo, "JPEG", quality=90
    )
    decoded = rate(lambda: bool(decode(photo.getvalue(), size, config.resize).width), window)
    variables = classifier.model.trainable_variables
    return {
        "device": devices.name,
        "cores": usable_cores(),
        "step_seconds": steps,
        "forward_images_per_second": forward["median"],
        "decode_images_per_second": decoded["median"],
        "image_bytes": len(photo.getvalue()),
        "gradient_bytes": 4 * sum(int(np.prod(variable.shape)) for variable in variables),
        "feature_bytes": 4 * int(np.prod(classifier.extractor.output_shape[1:])),
    }


def measure_all_reduce(dataset: str, seconds: float) -> dict[str, Any]:
    """Median seconds of the two all-reduces of a train step, among the workers in TF_CONFIG."""
    config = RECIPES[dataset]()
    cluster = find_cluster("multi-worker")
    set_up_devices(config.precision, config.seed)
    workers = form_workers("multi-worker", cluster, config.worker_timeout)
    classifier = build_classifier(config, CLASS_NAMES, initial_weights="none")
    unfreeze_layers(classifier, config.backbone, config.fine_tune.unfreeze)
    gradients = [tf.zeros(variable.shape) for variable in classifier.model.trainable_variables]
    found = []
    for work in (lambda: workers.sum_tensors(gradients), lambda: workers.any(False)):
        times: list[float] = []
        work()
        for _ in range(max(5, round(4 * seconds))):  # the same number for all
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        found.append(float(np.median(times)))
    return {"seconds": found}


def set_up(dataset: str) -> tuple[RunConfig, Devices, Classifier]:
    """The recipe of a dataset, the device, and the network with random weights."""
    config = RECIPES[dataset]()
    devices = set_up_devices(config.precision, config.seed)
    return config, devices, build_classifier(config, CLASS_NAMES, initial_weights="none")


def extraction_rate(classifier: Classifier, window: float) -> dict[str, float]:
    """Of the inference graph, with the copies to the device and back; see `rate`."""
    compute = inference_graph(classifier.extractor, BATCH)
    images = random_images(BATCH, classifier.model.input_shape[1]).astype(np.float32)
    return rate(lambda: len(compute(tf.constant(images)).numpy()), window)


def training_rate(config: RunConfig, classifier: Classifier, window: float) -> tuple[ActivePhase, dict[str, float]]:
    """Of the fine-tune phase as the training loop trains it, with order and augmentation; see `rate`."""
    examples = random_examples(8 * config.batch_size, config.stored_size)
    active = start_phase("fine_tune", config, classifier, examples, examples)
    batches = endless_batches(active, config)
    return active, rate(lambda: train_step(active, *next(batches)), window)


def rate(step: Callable[[], int], window: float) -> dict[str, float]:
    """Images per second over `WINDOWS` windows: median, least and most. `step` returns its number of images."""
    for _ in range(3):
        step()
    rates = []
    for _ in range(WINDOWS):
        started, images = time.perf_counter(), 0
        while images == 0 or time.perf_counter() < started + window:
            images += step()
        rates.append(images / (time.perf_counter() - started))
    return {"median": float(np.median(rates)), "least": min(rates), "most": max(rates)}


def train_step(active: ActivePhase, inputs: tf.Tensor, labels: tf.Tensor) -> int:
    """Runs one train step to its end and returns its number of images."""
    active.train_steps(inputs, labels, [active.settings.learning_rate])
    float(active.metrics.loss.result())  # waits for the device
    return len(labels)


def largest_batch(config: RunConfig, classifier: Classifier, num_gpus: int) -> tuple[int, str, str]:
    """The recipe's batch size doubled as often as memory allows: as a number, as text, and how it was found."""
    batch = config.batch_size
    if num_gpus:
        fits = 0
        while batch <= LARGEST_TRIED and trains(config, classifier, batch):
            fits, batch = batch, 2 * batch
        how = f"Largest batch on a GPU: doubled until its memory was exhausted, or up to {LARGEST_TRIED:,}."
        return fits, f"{fits:,}" if fits else "none", how
    # Without a GPU the system would kill the process, so the memory per image is measured with one larger batch.
    used, free, peak = psutil.Process().memory_info().rss, available_bytes(), peak_bytes(0)
    trains(config, classifier, 2 * batch)
    an_image = max(peak_bytes(0) - peak, 1e6) / batch
    most = 2 * batch + (used + free - peak_bytes(0)) / an_image
    fits = batch
    while 2 * fits <= min(most, LARGEST_TRIED):
        fits *= 2
    how = (
        f"Largest batch on the processor: estimated. From {batch} to {2 * batch} images the peak memory rose by "
        f"{an_image / 1e6:.1f} MB per image, and {free / 1e9:.1f} GB were free."
    )
    return fits, f"about {fits:,}", how


def trains(config: RunConfig, classifier: Classifier, batch: int) -> bool:
    """Whether one train step on `batch` images fits the memory of the GPU."""
    config = replace(config, batch_size=batch, gradient_accumulation_steps=1)
    examples = random_examples(batch, config.stored_size)
    try:
        active = start_phase("fine_tune", config, classifier, examples, examples)
        train_step(active, *next(endless_batches(active, config)))
    except (tf.errors.ResourceExhaustedError, tf.errors.InternalError):  # cuDNN raises the second
        return False
    return True


def peak_bytes(num_gpus: int) -> int:
    """Peak memory so far: of the GPU, or of this process."""
    if num_gpus:
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def random_images(number: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, size, size, 3), np.uint8)


def random_examples(number: int, size: int) -> Examples:
    labels = np.arange(number, dtype=np.int32) % len(CLASS_NAMES)
    return Examples(random_images(number, size), np.arange(number), labels, labels.astype(str).astype(object))


if __name__ == "__main__":
    main()
