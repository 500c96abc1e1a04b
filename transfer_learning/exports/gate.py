"""The gate: an exported file, loaded by its own runtime, must agree with the predictions that the run recorded."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from transfer_learning.errors import UserError
from transfer_learning.evaluation import predictions
from transfer_learning.evaluation.ensemble import is_correct, loses_more_than, paired_difference
from transfer_learning.evaluation.intervals import wilson_interval
from transfer_learning.exports.formats import Format
from transfer_learning.exports.predictor import Predictor
from transfer_learning.machine.resources import processor_name, usable_cores

FLOAT_LIMIT = 1e-4  # largest difference of a probability
REDUCED_LIMIT = 2e-2  # the same for a run that predicted in 16 bits; files compute in 32
SNIPPET_LIMIT = 1e-2  # the snippet decodes large JPEGs at full size, the run at a reduced one
SNIPPET_SECONDS = 300
BATCH_SIZES = (1, 32)
SECONDS = 1.0  # of measuring images/s per batch size, at least


NOT_FINITE = "it outputs NaN or infinite values"


class EvaluatedImages(NamedTuple):
    """The images that the run was evaluated on, decoded from their files, and what it recorded about them."""

    recorded: pd.DataFrame  # a table of predictions, n rows
    pixels: np.ndarray  # uint8 (n, size, size, 3)
    sample: bytes  # the file of one of the images, for the snippet
    sample_row: int
    limit: float = FLOAT_LIMIT  # of float formats


def check(
    format: Format, path: Path, images: EvaluatedImages, int8_limit: float, seconds: float = SECONDS
) -> dict[str, Any]:
    """Compares a file with the recorded predictions and measures it.

    Args:
        int8_limit: the loss of accuracy at which an integer format fails, 0..1, by the difference on the same images.

    Returns:
        Plain numbers, ready for JSON; ``problem`` is "" for a file that passes.

    Raises:
        UserError: the file is damaged or its runtime is not installed.
    """
    predictor = Predictor(path)
    recorded, names = images.recorded, predictions.class_names(images.recorded)
    if list(predictor.class_names) != names:
        raise UserError(f"{path} has other classes than the predictions of the run; export the run again.")
    found = predictor.probabilities(images.pixels)
    result: dict[str, Any] = {"format": format.name, "file": format.path, "num_images": len(found)}
    if not np.isfinite(found).all():
        return result | {"problem": NOT_FINITE}
    position = {name: place for place, name in enumerate(names)}
    labels = recorded["label"].map(position).to_numpy(np.int64)
    table = predictions.table(recorded["id"], labels, found, names)
    gain = paired_difference(recorded, table)
    expected = predictions.probabilities(recorded)
    speeds = {size: images_per_second(predictor.probabilities, images.pixels, size, seconds) for size in BATCH_SIZES}
    start_up, snippet_problem = run_snippet(format, path, predictor, images)
    result |= {
        "largest_difference": float(np.abs(found - expected).max()),
        "agreement": float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        "accuracy": float(is_correct(table).mean()),
        "accuracy_interval": wilson_interval(int(is_correct(table).sum()), len(table)),
        "difference": gain["difference"],
        "difference_interval": gain["difference_interval"],
        "images_per_second": {str(size): speed for size, speed in speeds.items()},
        "start_up_seconds": start_up,
        "bytes": sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()),
        "runtime": f"{format.runtime} {packages.version(format.runtime.replace('_', '-'))}",
        "processor": processor_name(),
        "threads": usable_cores(),
        "limit": images.limit if format.is_float else int8_limit,
    }
    return result | {"problem": problem_of(format, result) or snippet_problem}


def problem_of(format: Format, result: dict[str, Any]) -> str:
    """Why a file fails its limit, or "" if it passes."""
    limit = result["limit"]
    if format.is_float:
        return _too_different(result["largest_difference"], limit)
    if loses_more_than(limit, result["difference"]):
        return f"its accuracy is {-100 * result['difference']:.2f} points lower, more than {100 * limit:g}"
    return ""


def float_problem(found: np.ndarray, recorded: np.ndarray, limit: float) -> str:
    """Why probabilities float32 (n, classes) fail the limit of a float format, or "" if they pass."""
    if not np.isfinite(found).all():
        return NOT_FINITE
    return _too_different(float(np.abs(found - recorded).max()), limit)


def _too_different(difference: float, limit: float) -> str:
    if difference <= limit:
        return ""
    return f"a probability differs from the recorded one by {difference:.2g}, more than {limit:g}"


def images_per_second(run: Callable[[np.ndarray], Any], pixels: np.ndarray, size: int, seconds: float) -> float:
    """The median over batches of `size` images; measured after a first batch, for `seconds` and three batches or more."""
    batch = np.resize(pixels, (size, *pixels.shape[1:]))
    run(batch)
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    return size / float(np.median(times))


def run_snippet(format: Format, path: Path, predictor: Predictor, images: EvaluatedImages) -> tuple[float, str]:
    """Runs the snippet of the model card on one test image.

    Returns:
        The seconds that its whole process took, and the problem: another class or probability than recorded, or its
        error; "" for none.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / format.path).symlink_to((path.parent if path.suffix == ".xml" else path).absolute())
        (Path(folder) / "photo.jpg").write_bytes(images.sample)
        (Path(folder) / "snippet.py").write_text(format.snippet(predictor.metadata))
        start = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, "snippet.py"],
                cwd=folder,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=SNIPPET_SECONDS,
                env=os.environ | {"PYTHONIOENCODING": "utf-8", "CI": "true"},  # CI: OpenVINO reports nothing to Google
            )
        except subprocess.TimeoutExpired:
            return float(SNIPPET_SECONDS), f"its snippet took more than {SNIPPET_SECONDS} s"
        seconds = time.perf_counter() - start
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        return seconds, f"its snippet ended with {last}"
    name, _, confidence = done.stdout.strip("\n").rpartition(" ")
    row = images.recorded.iloc[images.sample_row]
    near = abs(float(confidence) - row["confidence"]) <= SNIPPET_LIMIT
    if format.is_float and (name != row["predicted"] or not near):
        recorded = f"{row['predicted']} {row['confidence']:.4f}"
        return seconds, f"its snippet printed {name} {confidence} for an image of {recorded}"
    return seconds, ""
