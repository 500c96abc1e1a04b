"""Fetch, check, split and decode a dataset, so that `run` finds it done: ``python -m transfer_learning.prepare DATASET``."""

import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from transfer_learning.cli.flags import add_config_flags, as_flags, given_values
from transfer_learning.cli.formatting import duration, printable, size
from transfer_learning.cli.parser import Parser, quiet_start, run_main
from transfer_learning.config import RunConfig
from transfer_learning.datasets.audit.findings import Features, audit
from transfer_learning.datasets.corrections import read_corrections
from transfer_learning.datasets.dataset import SPLITS
from transfer_learning.datasets.manifest import check_classes
from transfer_learning.datasets.prepared import PreparedDataset, prepare_dataset
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.errors import UserError
from transfer_learning.experiments.cached_features import find_cached_features
from transfer_learning.recipes.resolve import resolve_config
from transfer_learning.reports.audit import crop_in_words, in_lines, new_audit_dir, write_audit
from transfer_learning.reports.page import counts_by_class, unseen_class_counts
from transfer_learning.storage.cache import Cache

logger = logging.getLogger(__name__)

FILES_SHOWN = 20  # of those that are skipped
EPILOG = """examples:
  python -m transfer_learning.prepare photos/
  python -m transfer_learning.prepare table.csv --image-size 160 --test-fraction 0.2 --features
  python -m transfer_learning.prepare photos/ --group-by '([^/]*)_[0-9]+\\.jpg'

Give it the flags that `run` will get: those of the dataset, the image size, the splits and the folders decide what is
prepared, and those of training change nothing here. What is found stands in a new directory (--out): audit.html to look
at, audit.csv with a row a file, and corrections.csv, which `run --corrections` takes once you have edited it. Nothing is
written into the folder of your own images, and none of them is changed."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("prepare", description=__doc__, epilog=EPILOG)
    parser.add_argument("place", metavar="DATASET", nargs="?", help="what --dataset names, without the flag")
    parser.add_argument("--out", metavar="DIR", help="directory of the audit (default: a new one under runs/)")
    parser.add_argument(
        "--features",
        action="store_true",
        help="compute the backbone's features of all images, which `run` then finds: by them likely label "
        "errors and outliers are found (default: use those that a run has kept)",
    )
    add_config_flags(parser)
    flags = parser.parse_args(arguments)
    if flags.place is not None:
        if getattr(flags, "dataset", flags.place) != flags.place:
            raise UserError(f"{flags.place} and --dataset {flags.dataset} are two datasets; name one.")
        flags.dataset = flags.place
    config, _ = resolve_config(flags)  # what `run` would choose
    folder = new_audit_dir(flags.out or default_folder(config))
    decided = read_corrections(config.corrections) if config.corrections else None

    started = time.monotonic()
    dataset = load_dataset(config.dataset, config.data_dir)  # fetched, or drawn, where it is missing
    num_images, found = len(dataset.examples), time.monotonic()
    print(f"{config.dataset}: {num_images:,} images, found in {duration(found - started)}.", flush=True)

    # Unreadable images are no reason to stop before everything is told.
    data = prepare_dataset(dataset, replace(config, skip_unreadable=True), allow_empty_classes=True)
    seconds = time.monotonic() - found

    for line in described_data(data):
        logger.info(line)
    for entry in Cache.of(config).entries():
        if entry.spec == data.images.cached_in:  # none where the disk refuses, which was logged
            print(f"Cached in {entry.path}: {entry.contents}; {size(entry.num_bytes)}, other datasets included.")
    print(
        f"Read, decoded and divided {num_images:,} images in {duration(seconds)}: {num_images / seconds:,.0f} images/s."
    )

    started = time.monotonic()
    found_in = audit(dataset, data, features_for(config, data, flags.features))
    values = given_values(flags) | {"dataset": flags.dataset}
    command = [sys.executable, "-m", "transfer_learning.run"]
    without = as_flags({name: value for name, value in values.items() if name != "corrections"})
    written = write_audit(found_in, dataset, data, config, folder, [*command, *without], decided)
    print()
    for line in in_lines(found_in):
        logger.info(line)
    if config.resize == "crop":
        print(crop_in_words(found_in))
    print(
        f"Looked for in {duration(time.monotonic() - started)}; see {written.page}, and {written.table} for every file."
    )
    if written.num_doubtful:
        images = "1 image is" if written.num_doubtful == 1 else f"{written.num_doubtful:,} images are"
        print(f"{images} for you to decide on: edit {written.corrections}, and pass it by --corrections.")

    num_unreadable = int((data.images.rows < 0).sum())
    if num_unreadable and not config.skip_unreadable:
        images = "1 image" if num_unreadable == 1 else f"{num_unreadable:,} images"
        raise UserError(
            f"{images} of {num_images:,} cannot be read, so `run` would stop at once; mend or remove what is named above, "
            "or pass --skip-unreadable here and there."
        )
    check_classes(data.manifest, data.class_names)
    print(f"Train on it with: {shlex.join([*command, *as_flags(values)])}")


def default_folder(config: RunConfig) -> Path:
    """``runs/audit-photos-20260131-120000``; a later one of the same second has another number behind it."""
    name = Path(config.dataset.rstrip("/").replace(":", "-")).stem
    path = Path("runs") / f"audit-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    tries = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in range(1, 1000))
    return next(path for path in tries if not path.exists())


def features_for(config: RunConfig, data: PreparedDataset, is_asked: bool) -> Features | None:
    """The features of the images: computed if asked for, else what a run has kept, else None."""
    if is_asked:
        with quiet_start():  # imports TensorFlow
            from transfer_learning.experiments.plain_features import plain_features
        values, examples, about = plain_features(config, data)
    else:
        found = find_cached_features(data.manifest["sha256"].tolist(), config.backbone, Cache.of(config))
        if found is None:
            return None
        values, examples, about = found
    is_used = (data.manifest["split"].iloc[examples] != "").to_numpy()
    values, examples = values[is_used], examples[is_used]
    num_used = int((data.manifest["split"] != "").sum())
    if not len(examples):
        return None
    more = "" if len(examples) == num_used else "; pass --features for all"
    return Features(np.asarray(values), examples, f"{about}, of {len(examples):,} of {num_used:,} images in use{more}")


def described_data(data: PreparedDataset) -> Iterator[str]:
    """What is in a dataset, line by line: images by class and split, and all that was left out, with reasons."""
    yield f"{data.describe()}."
    yield ""
    yield from class_table(data)
    if unseen_classes := unseen_class_counts(data.manifest):
        yield f"Held out: {', '.join(f'{name} ({count:,} images)' for name, count in unseen_classes.items())}."
    yield ""
    skipped = data.manifest[data.manifest["split"] == ""]
    if len(skipped):
        yield f"Skipped {len(skipped):,} of the images:"
        yield from (f"  {row.file or row.id}: {row.problem}" for row in skipped.head(FILES_SHOWN).itertuples())
        if len(skipped) > FILES_SHOWN:
            yield f"  and {len(skipped) - FILES_SHOWN:,} more"
    if data.ignored:
        yield f"Ignored {len(data.ignored):,} other file{'s' * (len(data.ignored) > 1)}:"
        counts = Counter(reason for _, reason in data.ignored).most_common()
        width = len(f"{counts[0][1]:,}")
        yield from (f"  {count:>{width},} {reason}" for reason, count in counts)


def class_table(data: PreparedDataset) -> list[str]:
    """The lines of an aligned table of the images by class and split, with sums."""
    rows = [("class", *SPLITS, "skipped", "images")]
    for row in counts_by_class(data.manifest, data.class_names):
        rows.append(
            (printable(row["label"] or "(all)"), *(f"{row[column]:,}" for column in (*SPLITS, "skipped", "all")))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            (row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)))
        )
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(run_main(main))
