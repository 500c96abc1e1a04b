"""Fetch, check, split and decode a dataset, so that `run` finds it done: ``python -m transfer_learning.prepare``."""

import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from transfer_learning.choice import chosen_config
from transfer_learning.command_line import Parser, add_config_flags, run_main
from transfer_learning.datasets.catalogue import load_dataset
from transfer_learning.datasets.data import Data, open_data
from transfer_learning.datasets.dataset import SPLITS
from transfer_learning.errors import UserError
from transfer_learning.pools import list_pools
from transfer_learning.training.progress import count_progress
from transfer_learning.units import duration, size

FILES_SHOWN = 20  # of those that are skipped
EPILOG = """examples:
  python -m transfer_learning.prepare --dataset photos/
  python -m transfer_learning.prepare --dataset table.csv --image-size 160 --test-fraction 0.2

Give it the flags that `run` will get: those of the dataset, the image size, the splits and the folders decide what is
prepared, and those of training change nothing here. Nothing is written into the folder of your own images."""


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(prog="python -m transfer_learning.prepare", description=__doc__, epilog=EPILOG)
    add_config_flags(parser)
    config, _ = chosen_config(parser.parse_args(arguments))  # what `run` would choose

    started = time.monotonic()
    dataset = load_dataset(config.dataset, config.data_dir)  # fetched, or drawn, where it is missing
    num_images, found = len(dataset.examples), time.monotonic()
    print(f"{config.dataset}: {num_images:,} images, found in {duration(found - started)}.", flush=True)

    # Unreadable images are no reason to stop before everything is told.
    data = open_data(dataset, replace(config, skip_unreadable=True), progress=count_progress("Looking at images:"))
    seconds = time.monotonic() - found

    for line in described_data(data):
        print(line)
    for pool in list_pools(config.cache_dir):
        if pool.path == data.store.folder:  # none where the disk refuses, which was said
            print(f"Kept in {pool.path}, with those of other datasets: {pool.about}, {size(pool.num_bytes)}.")
    print(f"Read, decoded and divided {num_images:,} images in {duration(seconds)}: {num_images / seconds:,.0f} images/s.")
    num_unreadable = int((data.store.rows < 0).sum())
    if num_unreadable and not config.skip_unreadable:
        images = "1 image" if num_unreadable == 1 else f"{num_unreadable:,} images"
        raise UserError(
            f"{images} of {num_images:,} cannot be read, so `run` would stop at once; mend or remove what is named above, "
            "or pass --skip-unreadable here and there."
        )
    command = shlex.join([sys.executable, "-m", "transfer_learning.run", *arguments])
    print(f"Train on it with: {command}")


def described_data(data: Data) -> Iterator[str]:
    """What is in a dataset, line by line: images by class and split, and all that was left out, with reasons."""
    yield f"{data.in_words()}."
    yield ""
    yield from class_table(data)
    yield ""
    skipped = data.manifest[data.manifest["split"] == ""]
    if len(skipped):
        yield f"Skipped {len(skipped):,} of the images:"
        yield from (f"  {row.file or row.id}: {row.problem}" for row in skipped.head(FILES_SHOWN).itertuples())
        if len(skipped) > FILES_SHOWN:
            yield f"  and {len(skipped) - FILES_SHOWN:,} more"
    if data.ignored:
        yield f"Ignored {len(data.ignored):,} other files:"
        counts = Counter(reason for _, reason in data.ignored).most_common()
        width = len(f"{counts[0][1]:,}")
        yield from (f"  {count:>{width},} {reason}" for reason, count in counts)


def class_table(data: Data) -> list[str]:
    """The lines of an aligned table of the images by class and split, with sums."""
    counts = Counter(zip(data.manifest["label"], data.manifest["split"], strict=True))
    columns = (*SPLITS, "")  # "": skipped
    numbers = [[counts[name, column] for column in columns] for name in data.class_names]
    numbers.append([sum(column) for column in zip(*numbers, strict=True)])
    rows = [("class", *SPLITS, "skipped", "images")]
    for name, row in zip((*data.class_names, "(all)"), numbers, strict=True):
        rows.append((name, *(f"{number:,}" for number in (*row, sum(row)))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join((row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))))
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(run_main(main))
