"""Fine-tuning with BatchNorm inside the convolutions and apart, in turns in one process: images per second.

python -m benchmarks.folding efficientnet_lite0 --size 160 --batch-size 32
"""

import argparse
import os
import statistics
import time
from dataclasses import replace

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # before the first import of TensorFlow

import tensorflow as tf

from transfer_learning.config import Phase, RunConfig
from transfer_learning.experiments.one_device import random_examples, train_step
from transfer_learning.machine.devices import set_up_devices
from transfer_learning.models.classifier import build_classifier, unfreeze_layers
from transfer_learning.training.phases import ActivePhase, start_phase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone")
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="train steps of one measurement")
    parser.add_argument("--pairs", type=int, default=6, help="measurements of each, A B B A")
    flags = parser.parse_args()

    set_up_devices("float32", seed=0)
    phases = {folds: built_phase(flags.backbone, flags.size, flags.batch_size, folds) for folds in (False, True)}
    for active in phases.values():
        rate(active, 1)  # compiles
    rates: dict[bool, list[float]] = {False: [], True: []}
    for pair in range(flags.pairs):
        for folds in (False, True) if pair % 2 == 0 else (True, False):
            rates[folds].append(rate(phases[folds], flags.steps))
    ratios = [folded / apart for apart, folded in zip(rates[False], rates[True], strict=True)]
    for name, values in (("apart", rates[False]), ("folded", rates[True]), ("ratio", ratios)):
        print(f"{name:7}{statistics.median(values):8.2f} ({min(values):.2f}-{max(values):.2f}), n = {len(values)}")


def built_phase(backbone: str, size: int, batch_size: int, folds: bool) -> ActivePhase:
    """A phase that trains all layers, on one batch of random images."""
    config = RunConfig(
        backbone=backbone,
        weights="none",
        image_size=size,
        batch_size=batch_size,
        fold_batch_norm=folds,
        fine_tune=Phase(epochs=1, unfreeze="all", learning_rate=1e-5),
    )
    classifier = replace(build_classifier(config, tuple("abcdefghij")), pretrained=True)
    unfreeze_layers(classifier, backbone, "all")
    examples = random_examples(batch_size, size)
    return start_phase("fine_tune", config, classifier, examples, examples)


def rate(active: ActivePhase, steps: int) -> float:
    """Images per second over `steps` train steps on the batch of the phase."""
    inputs, labels = (
        tf.convert_to_tensor(part) for part in (active.train.inputs[active.train.rows], active.train.labels)
    )
    started = time.perf_counter()
    for _ in range(steps):
        train_step(active, inputs, labels)
    return steps * len(labels) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
