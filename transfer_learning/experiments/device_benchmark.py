"""The processor and each GPU measured one after the other, each in a process of its own (`one_device`)."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfer_learning.experiments import measurements
from transfer_learning.experiments.measurements import left_out_lines, markdown_table, number
from transfer_learning.machine.gpus import cuda_names
from transfer_learning.storage.files import write_json

logger = logging.getLogger(__name__)

PROGRAM = "transfer_learning.experiments.one_device"
COLUMNS = (
    "device; precision; extraction, images/s; training, images/s; with --jit-compile, images/s; epoch, s; largest batch; "
    "peak memory, MB"
)


def measure_devices(document: dict[str, Any], path: Path, num_images: int) -> None:
    """Measures every device that is not in the document yet, and writes the document to `path` after each."""
    settings = document["settings"]
    gpus = measurements.run_child(sys.executable, PROGRAM, ["list"], {})["gpus"]
    if not gpus:
        logger.info("TensorFlow sees no GPU on this machine; only the processor is measured.")
    names = cuda_names() or list(map(str, range(len(gpus))))  # none where the driver has no NVML
    devices = {"CPU": "-1"} | {f"GPU {index}": name for index, name in enumerate(names[: len(gpus)])}
    for name, visible in devices.items():
        if name in document["measurements"]:
            continue
        logger.info(f"Measuring {name} ...")
        try:
            arguments = ["measure", "--dataset", settings["dataset"], "--seconds", str(settings["seconds"])]
            arguments += ["--images", str(num_images)]
            figures = measurements.run_child(sys.executable, PROGRAM, arguments, {"CUDA_VISIBLE_DEVICES": visible})
        except measurements.MeasurementFailed as failed:
            document["left_out"][name] = str(failed)
            logger.warning(f"{name} is left out: {failed}")
            continue
        document["measurements"][name] = figures
        write_json(path, document)
    write_json(path, document)


def device_table(document: Mapping[str, Any]) -> str:
    """The document as a Markdown table with notes."""
    measured = document["measurements"]
    if not measured:
        return "\n\n".join(["Nothing was measured.", *left_out_lines(document)])
    rows = [COLUMNS.split("; ")]
    for name, figures in measured.items():
        row = [f"{name}: {figures['name']}", figures["precision"]]
        rates = map(figures.get, ("extraction", "training", "training_with_xla"))  # earlier files have two
        row += [*map(_spread, rates), f"{figures['epoch_seconds']:.1f}"]
        rows.append([*row, figures["largest_batch_text"], f"{figures['device_peak_mb']:,.0f} ({figures['memory']})"])
    one = next(iter(measured.values()))
    recipe = document["settings"]["dataset"]
    notes = [
        f"Recipe {recipe}: {one['what']}. Rates are medians (and ranges) over {one['windows']} windows of "
        f"{number(one['window_seconds'])} s after a warm-up. Extraction: the inference graph, batch 32. "
        "Training: train steps of the fine-tune phase with the recipe's batch size, unfrozen layers and augmentation, "
        f"images in memory. Epoch: {one['num_train']:,} training and {one['num_val']:,} validation images.",
        *dict.fromkeys(figures["how_largest_batch"] for figures in measured.values()),
    ]
    if set(measured) == {"CPU"}:
        notes.insert(0, "TensorFlow sees no GPU on this machine, so there is nothing to compare the processor with.")
    return "\n\n".join([markdown_table(rows), *notes, *left_out_lines(document)])


def _spread(figures: Mapping[str, float] | None) -> str:
    if figures is None:
        return "-"
    return f"{number(figures['median'])} ({number(figures['least'])}-{number(figures['most'])})"
