"""The sets that `benchmarks.accuracy` is measured on, as folders `train` and `test`: ``python -m benchmarks.sets FOLDER``.

`digits`, `drawn_pills` and the archives of `--zip` without a test split are halved, class by class and by a fixed seed;
of `fashion_mnist`, 2,000 training images and 1,500 of its test images are drawn. The same files come out every time.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from transfer_learning.cli.console import print_line
from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.datasets.dataset import Dataset, Example
from transfer_learning.datasets.sources import archive, digits, drawn_pills, fashion_mnist

SEED = 0
DRAWN = {"fashion_mnist": {"train": 2000, "test": 1500}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("", description=__doc__)
    parser.prog = "python -m benchmarks.sets"
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="each set becomes a folder in it")
    parser.add_argument("--zip", action="append", default=[], type=Path, metavar="FILE", help="a set of class folders")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="of the known datasets")
    flags = parser.parse_args(arguments)
    datasets = {path.stem: archive.read(path, flags.data_dir) for path in flags.zip}
    datasets |= {
        module.__name__.rpartition(".")[2]: module.load(flags.data_dir)
        for module in (digits, drawn_pills, fashion_mnist)
    }
    for name, dataset in datasets.items():
        parts = divide(dataset, DRAWN.get(name, {}))
        write(flags.folder / name, parts)
        print_line(f"{name}: {len(parts['train']):,} training and {len(parts['test']):,} test images")


def divide(dataset: Dataset, counts: dict[str, int]) -> dict[str, list[Example]]:
    """The examples for training and testing, in a random order; at most `counts` of each, if given."""
    shuffled = [dataset.examples[index] for index in np.random.default_rng(SEED).permutation(len(dataset.examples))]
    parts: dict[str, list[Example]] = {"train": [], "test": []}
    if any(example.split == "test" for example in shuffled):
        for example in shuffled:
            parts["test" if example.split == "test" else "train"].append(example)
    else:
        for name in dataset.class_names:
            of_class = [example for example in shuffled if example.label == name]
            parts["train"] += of_class[: len(of_class) // 2]
            parts["test"] += of_class[len(of_class) // 2 :]
    return {split: examples[: counts.get(split)] for split, examples in parts.items()}


def write(folder: Path, parts: dict[str, list[Example]]) -> None:
    """Writes `folder/<train or test>/<class>/<file>`, replacing what was there; pixels in memory become PNG files."""
    shutil.rmtree(folder, ignore_errors=True)
    for split, examples in parts.items():
        for example in examples:
            to = folder / split / example.label.replace("/", "-") / Path(example.id).name
            to.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(example.source, np.ndarray):
                Image.fromarray(example.source).save(to.with_suffix(".png"))
            else:
                shutil.copy(example.source, to)


if __name__ == "__main__":
    sys.exit(run_main(main))
