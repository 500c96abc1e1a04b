"""Evaluate finished runs again, alone or together."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transfer_learning.cli.flags import EarlierName
from transfer_learning.cli.parser import Parser, quiet_start, run_main
from transfer_learning.errors import UserError
from transfer_learning.evaluation.tta import views_of
from transfer_learning.storage.run_directory import evaluated_run_dir, new_run_dir

EXAMPLES = """examples:
  evaluate runs/a --split val               predict and measure the validation images again
  evaluate runs/a --tta flip                average the plain and the mirrored image
  evaluate runs/a --tta flip,crops          the same for the whole image, its centre and its four corners: 12 views
  evaluate runs/a runs/b runs/c             an ensemble: average the probabilities of three runs
  evaluate runs/a runs/b runs/c --soup      average their weights into one network, which predict takes like any run
  evaluate runs/a runs/b --paired           compare two runs image by image

Results of one run go into its directory. Those of several go into a new one, which holds no run unless it is a soup."""


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    views = views_of(flags.tta.split(",") if flags.tta is not None else [])
    run_dirs = [evaluated_run_dir(path) for path in flags.run_dirs]
    what = "soup" if flags.soup else "paired" if flags.paired else "ensemble"
    new = new_run_dir(flags.run_dir, what) if len(run_dirs) > 1 else None
    split = flags.split or "test"

    with quiet_start():
        from transfer_learning.experiments.finished_run import (
            FinishedRun,
            compare_pair,
            evaluate_again,
            evaluate_ensemble,
            evaluate_views,
        )
        from transfer_learning.experiments.soups import make_soup

    members = [FinishedRun(run_dir) for run_dir in run_dirs]
    if flags.soup:
        make_soup(members, new)
    elif flags.paired:
        compare_pair(members, split, views, new)
    elif len(members) > 1:
        evaluate_ensemble(members, split, views, new)
    elif len(views) > 1:
        evaluate_views(members[0], split, views)
    else:
        evaluate_again(members[0], split)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags, after a check that they fit together.

    Raises:
        UserError: they do not.
    """
    parser = Parser("evaluate", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help="a directory that `run` made")
    parser.add_argument("--split", metavar="SPLIT", help="val or test (default: test)")
    parser.add_argument(
        "--tta",
        metavar="VIEWS",
        help="test-time augmentation: average over views of each image: flip, crops or flip,crops",
    )
    parser.add_argument("--views", dest="tta", action=EarlierName, const="tta", help=argparse.SUPPRESS)
    parser.add_argument(
        "--soup", action="store_true", help="average the weights of several runs instead of their answers"
    )
    parser.add_argument("--paired", action="store_true", help="compare two runs image by image; average nothing")
    parser.add_argument(
        "--run-dir", metavar="DIR", help="where the results of several runs go (default: a new directory under runs/)"
    )
    flags = parser.parse_args(arguments)
    num_runs = len(flags.run_dirs)
    twice = [path for place, path in enumerate(flags.run_dirs) if _same_place(path, flags.run_dirs[:place])]
    for holds, sentence in (
        (flags.split in (None, "val", "test"), f"--split {flags.split} is unknown; val or test was expected."),
        (not twice, f"{' and '.join(twice)} is named twice, and would count double; name every run once."),
        (not (flags.soup and flags.paired), "--soup makes one network and --paired compares two; give one of them."),
        (not flags.paired or num_runs == 2, f"--paired compares two runs, and {num_runs} are named; name two."),
        (not flags.soup or num_runs > 1, "--soup averages the weights of several runs, and one is named; name more."),
        (
            not flags.soup or flags.tta is None,
            "--soup averages weights and --tta predictions; make the soup, then evaluate it with --tta.",
        ),
        (
            not flags.soup or flags.split is None,
            f"--soup is chosen by val images and judged like its runs; leave --split {flags.split} out.",
        ),
        (
            flags.run_dir is None or num_runs > 1,
            f"Results of one run go into its directory, so --run-dir {flags.run_dir} has no meaning; leave it out.",
        ),
    ):
        if not holds:
            raise UserError(sentence)
    return flags


def _same_place(path: str, others: Sequence[str]) -> bool:
    return Path(path).resolve() in {Path(other).resolve() for other in others}


if __name__ == "__main__":
    sys.exit(run_main(main))
