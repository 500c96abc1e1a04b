"""Load, decode, split and audit a dataset, so that `run` can start at once."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from transfer_learning.cli.console import console, new_table, print_line
from transfer_learning.cli.flags import add_config_flags, as_flags, given_values
from transfer_learning.cli.formatting import counted, printable
from transfer_learning.cli.parser import PROGRAM, Parser, command_line, run_main
from transfer_learning.config import RunConfig
from transfer_learning.datasets.audit.kinds import KINDS
from transfer_learning.datasets.corrections import read_corrections
from transfer_learning.datasets.dataset import SPLITS
from transfer_learning.errors import UserError
from transfer_learning.machine.ray_cluster import PerWorker, add_ray_flags

if TYPE_CHECKING:  # imported by the functions below: --help needs no pandas
    from transfer_learning.datasets.audit.findings import Audit
    from transfer_learning.datasets.prepared import PreparedDataset

NUM_SHOWN = 20  # skipped images
EPILOG = """examples:
  transfer-learning prepare photos/
  transfer-learning prepare table.csv --image-size 160 --test-fraction 0.2 --features
  transfer-learning prepare photos/ --group-by '([^/]*)_[0-9]+\\.jpg'

Give the same flags as to `run`; flags of training have no effect here. The result is a new directory (--out) with
audit.html, audit.csv (one row per file) and corrections.csv, which you can edit and pass to `run --corrections`. Nothing
is written into the folder of your images, and no image is changed.

--features --workers N --feature-store PLACE computes only the features of all images, with N workers. With --ray it does so
on a cluster whose machines have the same files at the same paths."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("prepare", usage=f"{PROGRAM} prepare DATASET [options]", description=__doc__, epilog=EPILOG)
    parser.add_argument("place", metavar="DATASET", nargs="?", help="the dataset to check; the same as --dataset")
    parser.add_argument("--out", metavar="DIR", help="directory of the audit (default: a new one in runs/)")
    features = "compute and cache the backbone's features of all images, to find label issues and outliers"
    parser.add_argument("--features", action="store_true", help=f"{features} (default: use cached features)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="compute the features with N Ray workers")
    add_ray_flags(parser)
    add_config_flags(parser)
    flags = parser.parse_args(arguments)
    if flags.place is not None:
        if getattr(flags, "dataset", flags.place) != flags.place:
            raise UserError(f"{flags.place} and --dataset {flags.dataset} are two datasets; name one.")
        flags.dataset = flags.place
    from transfer_learning.experiments.audit import audit_dataset, prepare_for_audit, refuse_unusable
    from transfer_learning.recipes.resolve import resolve_config, with_features_of_run
    from transfer_learning.reports.audit import describe_crop, new_audit_dir, write_audit

    config, _ = resolve_config(flags)
    if flags.features:
        config = with_features_of_run(config, given_values(flags))
    if flags.workers or flags.ray:
        return extract(config, flags)
    folder = new_audit_dir(flags.out, config.dataset)
    corrections = read_corrections(config.corrections) if config.corrections else None
    values = given_values(flags) | {"dataset": flags.dataset}

    dataset, data = prepare_for_audit(config)
    print_dataset(data)
    audit = audit_dataset(dataset, data, config, flags.features)
    without = as_flags({name: value for name, value in values.items() if name != "corrections"})
    written = write_audit(audit, dataset, data, config, folder, without, corrections)
    print_findings(audit)
    if config.resize == "crop":
        print_line(describe_crop(audit))
    print_line(f"Audit: {written.page}; every file: {written.table}.")
    if written.num_to_review:
        print_line(
            f"{counted(written.num_to_review, 'image')} to review: edit {written.corrections}, and pass it to --corrections."
        )
    refuse_unusable(data, config)
    print_line(f"Train with: {command_line('run', *as_flags(values))}")


def extract(config: RunConfig, flags: argparse.Namespace) -> None:
    """Computes features with several workers into the feature store."""
    from transfer_learning.experiments.extraction import extract_features

    if not (flags.features and config.feature_store and flags.workers > 0):
        raise UserError(
            "--workers and --ray need --features, --feature-store PLACE and at least --workers 1; give all."
        )
    places: dict[str, Any] = {
        name: absolute(getattr(config, name)) for name in ("data_dir", "cache_dir", "feature_store")
    }
    per_worker = PerWorker.of(flags)
    num_unreadable = extract_features(replace(config, **places), flags.workers, per_worker, flags.ray)
    if num_unreadable:
        print_line(f"Unreadable: {counted(num_unreadable, 'new image')}; prepare without --workers names them.")
    print_line(f"Features: {places['feature_store']}.")
    print_line(f"Train with: {command_line('run', *as_flags(given_values(flags) | {'dataset': config.dataset}))}")


def absolute(place: str) -> str:
    """A folder as all nodes of a cluster see it; URLs stay."""
    return place if "://" in place else os.path.abspath(place)


def print_dataset(data: "PreparedDataset") -> None:
    """Prints the images per class and split, and what was skipped and ignored, with reasons."""
    from transfer_learning.reports.page import counts_by_class, unseen_class_counts

    print_line(f"{data.describe()}.\n")
    table = new_table("class", *SPLITS, "skipped", "images")
    for row in counts_by_class(data.manifest, data.class_names):
        counts = (f"{row[column]:,}" for column in (*SPLITS, "skipped", "all"))
        table.add_row(Text(printable(row["label"] or "(all)")), *counts)
    console.print(table, soft_wrap=False)
    if unseen_classes := unseen_class_counts(data.manifest):
        print_line(f"Unseen classes: {', '.join(f'{name} ({n:,} images)' for name, n in unseen_classes.items())}.")
    skipped = data.manifest[data.manifest["split"] == ""]
    if len(skipped):
        print_line(f"\nSkipped {counted(len(skipped), 'image')}:")
        for row in skipped.head(NUM_SHOWN).itertuples():
            print_line(f"  {row.file or row.id}: {row.problem}")
        if len(skipped) > NUM_SHOWN:
            print_line(f"  and {len(skipped) - NUM_SHOWN:,} more")
    if data.ignored:
        print_line(f"\nIgnored {len(data.ignored):,} other {'file' if len(data.ignored) == 1 else 'files'}:")
        for reason, count in Counter(reason for _, reason in data.ignored).most_common():
            print_line(f"  {count:,} {reason}")


def print_findings(audit: "Audit") -> None:
    """Prints the sum of the files, and a table of the kinds of findings."""
    from transfer_learning.reports.audit import file_counts

    print_line(f"\n{file_counts(audit)}")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    for kind, count in audit.counts.items():
        table.add_row(f"{count:,}", kind, KINDS[kind])
    if audit.counts:
        console.print(table, soft_wrap=False)


if __name__ == "__main__":
    sys.exit(run_main(main))
