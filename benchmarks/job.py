"""Shared by the programs in this folder: flags, timing, and the line of JSON that they end with.

Only the standard library is imported: the programs of other tools run in an environment without this package's own
dependencies.
"""

import argparse
import csv
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


def run_job(jobs: dict[str, Callable[[argparse.Namespace], dict[str, Any]]]) -> None:
    """Runs the job that the command line names, and prints its figures as the last line of standard output.

    `seconds` is the time of the function, without imports, unless the function returns its own value.
    """
    parser = argparse.ArgumentParser(description="A job of `python -m benchmarks`.")
    parser.add_argument("job", choices=jobs)
    parser.add_argument("--images", type=Path, help="folder with train/ and val/, or with class folders")
    parser.add_argument("--scratch", type=Path, help="an empty folder for this job")
    parser.add_argument("--cache", type=Path, help="cache folder of earlier jobs")
    parser.add_argument("--data", type=Path, help="folder that holds the named datasets")
    parser.add_argument("--to", type=Path, help="the file or folder to write, of a job that prepares inputs")
    parser.add_argument("--network", help="efficientnet_lite0 or resnet50")
    parser.add_argument("--weights", type=Path, help="weights of the network, in Keras' format")
    parser.add_argument("--onnx", type=Path, help="folder of exported networks")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure a rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--number", type=int, help="number of images to make")
    parser.add_argument("--times-limit", type=float, help="size of the decoded set, in multiples of --decoded-gb")
    parser.add_argument("--cache-decoded", action="store_true", help="use the peer's own cache of decoded images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--course", action="store_true", help="measure the test accuracy after each epoch, too")
    parser.add_argument("--options", default="", help="flags of `run`, as one text")
    parser.add_argument("--wait-for-disk", action="store_true", help="wait until each checkpoint is on disk")
    flags = parser.parse_args()
    started = time.perf_counter()
    figures = jobs[flags.job](flags)
    print(json.dumps({"seconds": time.perf_counter() - started} | figures), flush=True)


def steps_for(seconds: float) -> Iterator[int]:
    """Yields 0, 1, 2, ... until `seconds` have passed, and at least 0."""
    ends = time.perf_counter() + seconds
    yield 0
    for step in itertools.count(1):
        if time.perf_counter() >= ends:
            return
        yield step


def images_per_second(
    step: Callable[[], Any], images_per_step: int, seconds: float, warm_up: int = 3
) -> dict[str, float]:
    """Calls `step` for `seconds` after a warm-up; a step must return only when its images are finished."""
    for _ in range(warm_up):
        step()
    started, images = time.perf_counter(), 0
    for _ in steps_for(seconds):
        step()
        images += images_per_step
    taken = time.perf_counter() - started
    return {"seconds": taken, "images": images, "images_per_second": images / taken}


def trained(flags: argparse.Namespace, val_accuracy: float) -> dict[str, float]:
    """The figures of a training job."""
    return {"val_accuracy": float(val_accuracy), "epochs": flags.epochs}


class Course:
    """The accuracy on some test images by the seconds since this process was started, without the time to measure it."""

    NUM_IMAGES = 500

    def __init__(self, flags: argparse.Namespace):
        self.is_on = flags.course
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        self.started, self.paused = time.perf_counter() - age, 0.0
        self.points: list[tuple[float, float]] = []

    def measure(self, accuracy: Callable[[], float]) -> None:
        if self.is_on:
            began = time.perf_counter()
            self.points.append((began - self.started - self.paused, float(accuracy())))
            self.paused += time.perf_counter() - began

    def some(self, files: Sequence) -> list:
        """NUM_IMAGES of the test images, evenly spaced."""
        return list(files)[:: max(1, len(files) // self.NUM_IMAGES)]

    def figures(self) -> dict[str, Any]:
        return {"course": self.points, "paused_seconds": self.paused} if self.is_on else {}


def predicted(
    flags: argparse.Namespace, files: Sequence[str | Path], class_names: Sequence[str], probabilities: list[list[float]]
) -> dict[str, Any]:
    """Writes the predictions of a job that classifies test images: one row per image, named after its file and folder."""
    path = flags.scratch / "test.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", *class_names])
        for name, row in zip(map(Path, files), probabilities, strict=True):
            writer.writerow([f"test/{name.parent.name}/{name.name}", name.parent.name, *row])
    return {"predictions": str(path)}
