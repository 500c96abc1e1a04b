"""Accuracy of closed-form heads and of the automatic recipe: ``python -m benchmarks.accuracy FOLDER...`` in a checkout.

FOLDER has the folders `train` and `test`, each with one folder per class. Every set is used as a whole and with 10 and 50
training images per class, drawn by seed; the test images stay the same. Each measurement is a process of its own, and is
written at once: the same command continues where a stopped one ended.

The heads train on all training images; the automatic recipe takes its validation images from them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from transfer_learning.cli.console import print_line
from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.storage.files import read_json, write_json, write_text

# One epoch at a vanishing learning rate leaves the closed form as it is.
CLOSED_FORM = (
    "--val-fraction 0 --monitor loss --frozen.epochs 1 --frozen.learning-rate 1e-12 --fine-tune.epochs 0 "
    "--class-weights none --image-size 224 --resize squash --dropout 0"
).split()
TOOLS = {
    "ridge, last map": [*CLOSED_FORM, "--head-features", "last", "--head-init", "ridge"],
    "ridge, all stages": [*CLOSED_FORM, "--head-features", "all", "--head-init", "ridge"],
    "lda, all stages": [*CLOSED_FORM, "--head-features", "all", "--head-init", "lda"],
    "automatic recipe": [],
}
FIGURES = ("accuracy", "macro_f1", "log_loss", "ece", "seconds")


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
                        rows.append(key | measure(subset, TOOLS[key["tool"]], seed, flags.group_by, flags.work_dir))
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


def measure(subset: Path, options: list[str], seed: int, group_by: str, work_dir: Path) -> dict[str, float]:
    """Figures of one run on the test images, and its wall time in seconds."""
    run_dir = work_dir / f"run-{subset.name}-{re.sub('[^0-9A-Za-z]', '', ''.join(options))[-40:]}"
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [sys.executable, "-m", "transfer_learning", "run", "--dataset", str(subset), "--run-dir", str(run_dir)]
    started = time.monotonic()
    subprocess.run([*command, "--seed", str(seed), "--group-by", group_by, *options], check=True)
    seconds = time.monotonic() - started
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    ece = (evaluation["calibration"] or {}).get("error")
    values = {name: evaluation.get(name) for name in FIGURES}
    return values | {"ece": ece, "n": evaluation["num_examples"], "seconds": round(seconds, 1)}


def table(rows: list[dict]) -> str:
    """A Markdown table with one row per set, size and tool: means over the seeds."""
    lines = ["| set | per class | tool | accuracy | macro F1 | log loss | ECE | time | seeds, n |", "|" + "---|" * 9]
    grouped = pd.DataFrame(rows).groupby(["set", "per_class", "tool"], sort=False)
    for (name, count, tool), found in grouped:
        means = found[list(FIGURES)].astype(float).mean()
        spread = f" ({found['accuracy'].min():.1%}-{found['accuracy'].max():.1%})" if len(found) > 1 else ""
        cells = [name, count or "all", tool, f"{means['accuracy']:.1%}{spread}"]
        cells += [f"{means[figure]:.3f}" for figure in ("macro_f1", "log_loss", "ece")]
        cells += [f"{means['seconds']:.0f} s", f"{len(found)}, {found['n'].iloc[0]}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_main(main))
