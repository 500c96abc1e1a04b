"""Accuracy of closed-form heads, the automatic recipe and other tools: ``python -m benchmarks.accuracy FOLDER...``.

FOLDER has the folders `train` and `test`, each with one folder per class. Every set is used as a whole and with 10 and 50
training images per class, drawn by seed; the test images stay the same. Each measurement is a process of its own, and is
written at once: the same command continues where a stopped one ended.

The heads train on all training images; the automatic recipe takes its validation images from them. A tool of this
project may have options of `run` after its name, such as "automatic recipe --fine-tune.epochs 3".
"""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.cases import TORCH
from transfer_learning.cli.console import print_line
from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.evaluation import calibration, metrics, predictions
from transfer_learning.experiments.measurements import run_child
from transfer_learning.storage.files import read_json, write_json, write_text

# One epoch at a vanishing learning rate leaves the closed form as it is.
CLOSED_FORM = (
    "--val-fraction 0 --monitor loss --frozen.epochs 1 --frozen.learning-rate 1e-12 --fine-tune.epochs 0 "
    "--class-weights none --image-size 224 --resize squash --dropout 0"
).split()


@dataclass(frozen=True)
class Tool:
    """A program in this folder whose job `classify` trains on the folder train and predicts the folder test."""

    module: str
    options: tuple[str, ...] = ()  # of `run`
    flags: tuple[str, ...] = ()  # of the job
    packages: tuple[str, ...] = ()  # needed in --peers-python; none: it runs in this Python


def closed_form(features: str, kind: str) -> Tool:
    return Tool("ours", (*CLOSED_FORM, "--head-features", features, "--head-init", kind))


TOOLS = {
    "ridge, last map": closed_form("last", "ridge"),
    "ridge, all stages": closed_form("all", "ridge"),
    "lda, all stages": closed_form("all", "lda"),
    "automatic recipe": Tool("ours"),
    "Keras guide": Tool("keras_guide", flags=("--epochs", "10")),
    "fastai fine_tune": Tool("fastai_learner", flags=("--epochs", "5"), packages=("fastai", *TORCH)),
}
BASELINE = "lda, all stages"  # others are compared with it, image by image
FIGURES = ("accuracy", "macro_f1", "log_loss", "ece", "ece_by_chance", "seconds", "cpu_seconds", "peak_mb")


def find_tool(text: str) -> Tool:
    """The tool of a name, which may have options of `run` after it."""
    name, *options = text.split(" --", 1)
    tool = TOOLS[name]
    return replace(tool, options=(*tool.options, *shlex.split(f"--{options[0]}"))) if options else tool


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("", description=__doc__)
    parser.prog = "python -m benchmarks.accuracy"
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="sets with the folders train and test")
    parser.add_argument("--per-class", default="10,50,0", metavar="N,N", help="images per class; 0: all (10,50,0)")
    parser.add_argument(
        "--tools", default=",".join(name.replace(",", "/") for name in TOOLS), help="some of them; / for a comma"
    )
    parser.add_argument("--seeds", default="0", metavar="N,N", help="seeds of the drawn images and of the runs (0)")
    parser.add_argument("--group-by", default="", metavar="REGEX", help="as for `run`: images that stay together")
    parser.add_argument(
        "--course", action="store_true", help="also the accuracy on test images after each epoch, by seconds"
    )
    parser.add_argument("--peers-python", default=sys.executable, metavar="PATH", help="Python with the other tools")
    parser.add_argument("--work-dir", type=Path, default=Path("data/benchmark/accuracy"), metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy.json"), metavar="FILE")
    flags = parser.parse_args(arguments)
    rows = read_json(flags.out)["rows"] if flags.out.exists() else []
    for folder in flags.folders:
        for count in map(int, flags.per_class.split(",")):
            for seed in map(int, flags.seeds.split(",")):
                subset = draw(folder, count, seed, flags.work_dir)
                for tool in flags.tools.split(","):
                    key = {"set": folder.name, "per_class": count, "seed": seed, "tool": tool.replace("/", ",")}
                    if not any(key.items() <= row.items() for row in rows):
                        rows.append(key | measure(subset, find_tool(key["tool"]), seed, flags))
                        write_json(flags.out, {"rows": rows})
    text = table(rows)
    write_text(flags.out.with_suffix(".md"), text)
    print_line(text)


def draw(folder: Path, per_class: int, seed: int, work_dir: Path) -> Path:
    """A folder with all test images and `per_class` training images of each class (0: all), as hard links."""
    subset = work_dir / f"{folder.name}-{per_class}-{seed}"
    shutil.rmtree(subset, ignore_errors=True)
    rng = np.random.default_rng(seed)
    for split in ("train", "test"):
        for class_folder in sorted((folder / split).iterdir()):
            files = sorted(class_folder.iterdir())
            if split == "train" and per_class:
                files = [files[index] for index in rng.permutation(len(files))[:per_class]]
            (subset / split / class_folder.name).mkdir(parents=True)
            for file in files:
                os.link(file, subset / split / class_folder.name / file.name)
    return subset


def measure(subset: Path, tool: Tool, seed: int, flags: argparse.Namespace) -> dict[str, Any]:
    """Figures of one training on the test images, which of them are classified correctly, wall time and peak memory."""
    scratch = (flags.work_dir / "scratch").absolute()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    arguments = ["classify", "--images", str(subset.absolute()), "--scratch", str(scratch), "--seed", str(seed)]
    if tool.module == "ours":
        arguments += ["--options", shlex.join(["--group-by", flags.group_by, *tool.options])]
    arguments += ["--course"] if flags.course else []
    python = flags.peers_python if tool.packages else sys.executable
    figures = run_child(python, f"benchmarks.{tool.module}", [*arguments, *tool.flags], {})
    table = pd.read_csv(figures["predictions"], dtype={"id": str, "label": str}).sort_values("id")
    names = [name for name in table.columns if name not in ("id", "label", "predicted", "confidence")]
    labels = table["label"].map({name: index for index, name in enumerate(names)})
    table = predictions.table(table["id"], labels.to_numpy(int), table[names].to_numpy(), names)
    found = metrics.evaluate(table)
    is_right = (table["label"] == table["predicted"]).to_numpy()
    calibrated = calibration.measure(table, 1.0)
    return {
        **{name: found[name] for name in ("accuracy", "macro_f1", "log_loss")},
        "ece": calibrated["error"],
        "ece_by_chance": calibrated["by_chance"],
        "n": len(table),
        "seconds": round(figures["wall_seconds"] - figures.get("paused_seconds", 0.0), 1),
        "cpu_seconds": round(figures["cpu_seconds"], 1),
        "peak_mb": round(figures["peak_mb"]),
        "correct": "".join(map(str, is_right.astype(int))),
        "course": figures.get("course"),
    }


def table(rows: list[dict]) -> str:
    """A Markdown table with one row per set, size and tool: means over the seeds, the difference to BASELINE, mean ranks."""
    columns = (
        "set",
        "per class",
        "tool",
        "accuracy",
        "against lda",
        "macro F1",
        "log loss",
        "ECE",
        "by chance",
        "time, processor time",
        "MB",
        "seeds, n",
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    grouped = pd.DataFrame(rows).groupby(["set", "per_class", "tool"], sort=False)
    for (name, count, tool), found in grouped:
        means = found.reindex(columns=list(FIGURES)).astype(float).mean()  # earlier rows have no "by chance"
        spread = f" ({found['accuracy'].min():.1%}-{found['accuracy'].max():.1%})" if len(found) > 1 else ""
        gains = [difference(rows, row) for row in found.to_dict("records")]
        pairs = [pair for pair in gains if pair]
        gain = " ".join(f"{100 * mean:+.1f} ± {100 * error:.1f}" for mean, error in pairs) if tool != BASELINE else ""
        cells = [name, count or "all", tool, f"{means['accuracy']:.1%}{spread}", gain]
        cells += [f"{means[figure]:.3f}" for figure in ("macro_f1", "log_loss", "ece", "ece_by_chance")]
        cells += [
            f"{means['seconds']:.0f} s, {means['cpu_seconds']:.0f} s",
            f"{means['peak_mb']:.0f}",
            f"{len(found)}, {found['n'].iloc[0]}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", mean_ranks(rows)]) + "\n"


def mean_ranks(rows: list[dict]) -> str:
    """The mean rank of each tool by accuracy, over what was measured with all tools; 1 is the best."""
    cells = pd.DataFrame(rows).pivot(index=["set", "per_class", "seed"], columns="tool", values="accuracy").dropna()
    means = cells.rank(axis=1, ascending=False).mean().sort_values()
    return f"Mean rank by accuracy (n = {len(cells)}): " + "; ".join(
        f"{tool} {mean:.1f}" for tool, mean in means.items()
    )


def difference(rows: list[dict], row: dict) -> tuple[float, float] | None:
    """Accuracy above that of BASELINE on the same images, and the standard error of this paired difference."""
    same = {name: row[name] for name in ("set", "per_class", "seed")} | {"tool": BASELINE}
    for other in rows:
        if same.items() <= other.items():
            own, base = (np.array(list(text), int) for text in (row["correct"], other["correct"]))
            return float((own - base).mean()), float((own - base).std() / len(own) ** 0.5)
    return None


if __name__ == "__main__":
    sys.exit(run_main(main))
