"""Time, memory, network and cost of a recipe on many workers, calculated from pieces that are measured on one.

A train step takes what the worker's part of the batch takes, and then an all-reduce of the gradients: nothing overlaps in
`train_step`. Each of N workers sends and receives 2 (N - 1) / N of the bytes (Patarasuk and Yuan, "Bandwidth optimal
all-reduce algorithms for clusters of workstations", 2009), and NCCL's trees wait 2 log2 N times for a message. A second
all-reduce of a few bytes says whether a worker has to stop. The processes of one machine share its cores and memory, so
their pieces are measured in as many processes at once.
"""

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from transfer_learning.cli.formatting import duration, size
from transfer_learning.experiments import measurements
from transfer_learning.experiments.measurements import markdown_table, number
from transfer_learning.machine.cluster import tf_config
from transfer_learning.machine.resources import usable_cores
from transfer_learning.machine.worker_processes import free_ports
from transfer_learning.recipes.known import RECIPES
from transfer_learning.storage.files import write_json

logger = logging.getLogger(__name__)

PROGRAM = "transfer_learning.experiments.one_device"
# Images outside of the test split: the dataset itself is not loaded.
NUM_IMAGES = {
    "pharma": 8000,
    "cifar10": 50000,
    "imagenet": 1_281_167,
    "drawn_pills": 960,
    "digits": 1527,
    "fashion_mnist": 60000,
}
LATENCY = 2e-5  # seconds per message between two machines
COLUMNS = (
    "workers; images per worker and step; step, ms: computing + all-reduce; images/s; efficiency; sent per worker and step; "
    "epoch; fine-tuning; decoding once; extraction; cost"
)


class Plan(NamedTuple):
    """What a table is made for."""

    recipe: str
    workers: int
    is_here: bool  # all workers are processes of this machine
    gbit: float  # per second between two machines
    images: int
    price: float  # per worker and hour
    batch_size: int  # of all workers together

    def counts(self) -> list[int]:
        """The numbers of workers that the table has rows for."""
        if self.is_here:
            return list(range(1, self.workers + 1))
        return sorted({2**power for power in range(self.workers.bit_length())} | {self.workers})


def measure(plan: Plan, document: dict[str, Any], path: Path) -> None:
    """Measures the pieces that the document lacks, and writes it to `path` after each."""
    measured, settings = document["measurements"], document["settings"]
    arguments = ["--dataset", plan.recipe, "--seconds", str(settings["seconds"])]

    def add(name: str, what: str, processes: int, job: Sequence[str]) -> None:
        if name not in measured:
            logger.info(f"Measuring {what} ...")
            measured[name] = _slowest(_run_together(processes, [*job, *arguments]))
            write_json(path, document)

    for processes in plan.counts() if plan.is_here else [1]:
        counts = [processes] if plan.is_here else plan.counts()
        batches = sorted({math.ceil(plan.batch_size / count) for count in counts}, reverse=True)
        name, what = _pieces_name(processes), "decoding, forward pass and train steps"
        among = f" of {processes} processes at once" if processes > 1 else ""
        add(name, what + among, processes, ["pieces", "--batches", ",".join(map(str, batches))])
        if processes > 1:
            name = f"all-reduce of {processes}"
            add(name, f"the {name} processes", processes, ["all-reduce"])


def _pieces_name(processes: int) -> str:
    return f"{processes} processes" if processes > 1 else "one process"


def _run_together(processes: int, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of so many processes at once, which share the cores of this machine as `launch` shares them."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(processes, 23_000)]
    threads = str(max(1, usable_cores() // processes))

    def run(index: int) -> dict[str, Any]:
        environment = {"TF_NUM_INTRAOP_THREADS": threads}
        environment |= {"TF_CONFIG": tf_config(addresses, index)} if arguments[0] == "all-reduce" else {}
        return measurements.run_child(sys.executable, PROGRAM, arguments, environment)

    with ThreadPoolExecutor(processes) as children:
        return list(children.map(run, range(processes)))


def _slowest(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the process that the others wait for."""
    if "step_seconds" not in found[0]:
        return found[0]
    return max(found, key=lambda pieces: sum(pieces["step_seconds"].values()))


def rows(plan: Plan, measured: Mapping[str, Any]) -> list[dict[str, float]]:
    """The figures of each number of workers; seconds, bytes, images per second, and the price's currency."""
    config, found = RECIPES[plan.recipe](), []
    num_val = round(plan.images * config.val_fraction)
    for count in plan.counts():
        pieces = measured.get(_pieces_name(count) if plan.is_here else "") or next(iter(measured.values()))
        cores = pieces["cores"] if plan.is_here else pieces["cores"] * count
        images = math.ceil(plan.batch_size / count)
        compute = step_seconds(pieces["step_seconds"], images)
        sent = 2 * (count - 1) / count * pieces["gradient_bytes"]
        if plan.is_here:
            reduce = sum(measured[f"all-reduce of {count}"]["seconds"]) if count > 1 else 0.0
        else:
            reduce = sent / (plan.gbit * 1e9 / 8) + 4 * math.log2(count) * LATENCY
        rate = plan.batch_size / (compute + reduce)
        forward = pieces["forward_images_per_second"] * count
        decode = pieces["decode_images_per_second"] * cores
        if not plan.is_here:  # the files come over the network, too
            decode = min(decode, count * plan.gbit * 1e9 / 8 / pieces["image_bytes"])
        epoch = (plan.images - num_val) / rate + num_val / forward
        total = (
            plan.images / decode + bool(config.frozen.epochs) * plan.images / forward + config.fine_tune.epochs * epoch
        )
        found.append(
            {
                "workers": count,
                "images_per_worker": images,
                "compute": compute,
                "all_reduce": reduce,
                "images_per_second": rate,
                "sent": sent,
                "epoch": epoch,
                "fine_tuning": config.fine_tune.epochs * epoch,
                "decoding": plan.images / decode,
                "extraction": plan.images / min(decode, forward),
                "cost": total / 3600 * count * plan.price,
            }
        )
    return found


def step_seconds(measured: Mapping[str, float], images: int) -> float:
    """Interpolates between the two nearest numbers of images; in proportion above the largest."""
    points = sorted((int(batch), seconds) for batch, seconds in measured.items())
    if images >= points[-1][0]:
        return points[-1][1] * images / points[-1][0]
    below = max((point for point in points if point[0] <= images), default=points[0])
    above = min((point for point in points if point[0] >= images), default=points[-1])
    share = (images - below[0]) / (above[0] - below[0]) if above[0] > below[0] else 0.0
    return below[1] + share * (above[1] - below[1])


def describe(plan: Plan, measured: Mapping[str, Any]) -> str:
    """The plan as a Markdown table with notes."""
    config, found, pieces = RECIPES[plan.recipe](), rows(plan, measured), next(iter(measured.values()))
    table, alone = [COLUMNS.split("; ")], found[0]["compute"]
    for row in found:
        efficiency = row["images_per_second"] / found[0]["images_per_second"] / row["workers"]
        cells = [f"{row['workers']}", f"{row['images_per_worker']}"]
        cells += [f"{1e3 * row['compute']:.0f} + {1e3 * row['all_reduce']:.1f}", number(row["images_per_second"])]
        cells += [f"{efficiency:.0%}", size(row["sent"]), duration(row["epoch"]), duration(row["fine_tuning"])]
        cells += [duration(row["decoding"]), duration(row["extraction"])]
        table.append([*cells, f"{row['cost']:,.2f}" if plan.price else "-"])
    halved = [row["workers"] for row in found if row["compute"] + row["all_reduce"] > 2 * alone / row["workers"]]
    limit = f"From {halved[0]} workers on" if halved else "At none of these numbers of workers"
    network = "loopback of this machine" if plan.is_here else f"{plan.gbit:g} Gbit/s"
    features = size(plan.images * pieces["feature_bytes"])
    return "\n\n".join(
        [
            markdown_table(table),
            f"Recipe {plan.recipe}, {plan.images:,} images, batch {plan.batch_size} of all workers together; {network}. "
            f"{limit}, less than half of the time would be enough if the speed grew with their number.",
            f"Per worker: {pieces['peak_mb']:,.0f} MB of memory; gradients of {size(pieces['gradient_bytes'])}; forward pass "
            f"{number(pieces['forward_images_per_second'])} images/s, decoding {number(pieces['decode_images_per_second'])} "
            f"images/s per core ({pieces['cores']} cores), of {size(pieces['image_bytes'])} each. Features of all images: "
            f"{features}. Fine-tuning: {config.fine_tune.epochs} epochs; cost: decoding once, features and fine-tuning.",
        ]
    )
