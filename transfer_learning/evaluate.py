"""Evaluate finished runs again, alone or together."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from transfer_learning.cli.console import new_table, print_table
from transfer_learning.cli.flags import EarlierName
from transfer_learning.cli.formatting import printable
from transfer_learning.cli.parser import Parser, quiet_start, run_main
from transfer_learning.errors import ExitCode, UserError
from transfer_learning.evaluation.tta import transforms_of
from transfer_learning.experiments.trained_model import is_export
from transfer_learning.storage.run_directory import RunDir, evaluated_run_dir, new_run_dir

EXAMPLES = """examples:
  # predict and evaluate the validation images again
  transfer-learning evaluate runs/a --split val
  # the accuracy on other labelled images
  transfer-learning evaluate runs/a --dataset new_photos/
  # test-time augmentation with mirrored images; also with the centre and the corners
  transfer-learning evaluate runs/a --tta flip
  transfer-learning evaluate runs/a --tta flip,crops
  # ensemble: average the probabilities of three runs
  transfer-learning evaluate runs/a runs/b runs/c
  # soup: average the weights of three runs into one network
  transfer-learning evaluate runs/a runs/b runs/c --soup
  # compare two runs image by image
  transfer-learning evaluate runs/a runs/b --paired
  # exit code 3 if the first one is more than a point worse
  transfer-learning evaluate runs/new runs/old --paired --not-worse-than 1
  transfer-learning evaluate runs/a/export/model.onnx runs/a --paired --not-worse-than 1

The results of one run are written into its directory. The results of several runs are written into a new directory."""


def main(arguments: Sequence[str] | None = None) -> ExitCode:
    """Evaluates runs and prints the results; exit code 3 if the first one is worse than --not-worse-than allows."""
    flags = parse(arguments)
    transforms = transforms_of(flags.tta.split(",") if flags.tta is not None else [])
    places = [path if flags.paired and is_export(path) else evaluated_run_dir(path) for path in flags.run_dirs]
    run_dirs = [place for place in places if isinstance(place, RunDir)]
    if not run_dirs:
        raise UserError("--paired was given two exported files, which have no images; name a run in place of one.")
    if len(run_dirs) < len(places) and len(transforms) > 1:
        raise UserError("--tta is for runs, and one of the two is an exported file; leave out --tta.")
    what = "soup" if flags.soup else "paired" if flags.paired else "ensemble"
    new = new_run_dir(flags.run_dir, what) if len(places) > 1 else None
    split = flags.split or "test"

    with quiet_start(in_command=True):
        from transfer_learning.datasets.sources.table import Columns
        from transfer_learning.experiments import ensembles
        from transfer_learning.experiments.exported_file import ExportedFile
        from transfer_learning.experiments.finished_run import FinishedRun
        from transfer_learning.experiments.other_dataset import evaluate_on
        from transfer_learning.experiments.soups import make_soup

    runs = [FinishedRun(run_dir) for run_dir in run_dirs]
    if new is None and flags.dataset:
        evaluate_on(runs[0], flags.dataset, flags.split, Columns(flags.path_column or "", flags.label_column or ""))
    elif new is None:
        if len(transforms) > 1:
            ensembles.evaluate_tta(runs[0], split, transforms)
        else:
            ensembles.evaluate_again(runs[0], split)
    elif flags.soup:
        print_table(soup_table(make_soup(runs, new)["soup"]["members"]))
    elif flags.paired:
        limit = None if flags.not_worse_than is None else flags.not_worse_than / 100
        pair = [FinishedRun(place) if isinstance(place, RunDir) else ExportedFile(place, runs[0]) for place in places]
        comparison = ensembles.compare_pair(pair, split, transforms, new, limit)
        print_table(paired_table(comparison))
        if comparison.get("is_worse"):
            return ExitCode.LIMIT_EXCEEDED
    else:
        print_table(ensemble_table(ensembles.evaluate_ensemble(runs, split, transforms, new)))
    return ExitCode.DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the flags.

    Raises:
        UserError: a flag is unknown, or flags contradict each other.
    """
    parser = Parser("evaluate", description=__doc__, epilog=EXAMPLES)
    a_run = "a directory that `run` made; with --paired one of the two may be an exported file"
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help=a_run)
    parser.add_argument("--split", choices=("val", "test"), help="which images (default: test)")
    parser.add_argument("--tta", metavar="KINDS", help="test-time augmentation: flip, crops or flip,crops")
    parser.add_argument("--views", dest="tta", action=EarlierName, const="tta", help=argparse.SUPPRESS)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--soup", action="store_true", help="average the weights of several runs instead of their predictions"
    )
    what.add_argument("--paired", action="store_true", help="compare two runs image by image instead of averaging them")
    limit = "with --paired: exit code 3 if the first run classifies more than X %% fewer of the images correctly"
    parser.add_argument("--not-worse-than", metavar="X", type=float, help=f"{limit} (the estimate, not its interval)")
    parser.add_argument(
        "--run-dir", metavar="DIR", help="directory for the results of several runs (default: a new one under runs/)"
    )
    parser.add_argument(
        "--dataset", metavar="DATASET", help="labelled images elsewhere: the run's own, which were moved, or other ones"
    )
    for name in ("path", "label"):
        column = f"with --dataset TABLE: the column with the {name}s (default: that of the run)"
        parser.add_argument(f"--{name}-column", metavar="COLUMN", help=column)
    flags = parser.parse_args(arguments)
    num_runs = len(flags.run_dirs)
    if len({Path(path).resolve() for path in flags.run_dirs}) < num_runs:
        raise UserError(f"A run is named twice in {' '.join(flags.run_dirs)}; name every run once.")
    if flags.paired and num_runs != 2:
        raise UserError(f"--paired compares two runs, but {num_runs} were given; name two.")
    if flags.not_worse_than is not None and not flags.paired:
        raise UserError("--not-worse-than compares two runs; give --paired, the new run and the old one.")
    if flags.not_worse_than is not None and not 0 <= flags.not_worse_than <= 100:
        raise UserError(
            f"--not-worse-than {flags.not_worse_than:g} is not in 0..100; give percentage points, such as 1."
        )
    if flags.soup and num_runs < 2:
        raise UserError("--soup averages the weights of several runs, but one was given; name more.")
    if flags.soup and (flags.tta is not None or flags.split):
        raise UserError("--soup takes neither --tta nor --split; make the soup, then evaluate it with them.")
    if flags.dataset is not None and (num_runs > 1 or flags.tta is not None):
        raise UserError("--dataset evaluates one run without --tta; leave out the other runs and --tta.")
    if flags.dataset is None and (named := flags.path_column or flags.label_column):
        raise UserError(f"The column {named} was named without a table; give the table as --dataset TABLE.")
    if flags.run_dir is not None and num_runs == 1:
        raise UserError(f"Results of one run go into its directory; leave out --run-dir {flags.run_dir}.")
    return flags


def soup_table(members: Sequence[dict[str, Any]]) -> Table:
    """The runs in the order in which they were tried."""
    table = new_table("run", "val accuracy", "soup with it", "")
    for member in members:
        accuracies = [f"{member[name]:.2%}" for name in ("val_accuracy", "soup_val_accuracy")]
        table.add_row(printable(member["run_dir"]), *accuracies, "added" if member["is_taken"] else "left out")
    return table


def ensemble_table(evaluation: dict[str, Any]) -> Table:
    """Accuracies of the members, and of the ensemble."""
    table = new_table("run", f"{evaluation['split']} accuracy", "val accuracy")
    for member in evaluation["members"]:
        val = member["val_accuracy"]
        accuracy = f"{member['accuracy']:.2%}"
        table.add_row(printable(member["run_dir"]), accuracy, "–" if val is None else f"{val:.2%}")
    table.add_row("ensemble", f"{evaluation['accuracy']:.2%}", "")
    return table


def paired_table(comparison: dict[str, Any]) -> Table:
    """The number of images that both, one or none of the runs A and B classify correctly."""
    table = new_table("images", "B correct", "B wrong")
    table.add_row("A correct", f"{comparison['both_right']:,}", f"{comparison['only_before_right']:,}")
    table.add_row("A wrong", f"{comparison['only_after_right']:,}", f"{comparison['both_wrong']:,}")
    return table


if __name__ == "__main__":
    sys.exit(run_main(main))
