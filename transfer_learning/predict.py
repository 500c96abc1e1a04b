"""Predict images with a finished run or an exported file: class, confidence and rejection, one row per image."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

from transfer_learning.cli.console import messages_on_stderr, output_is_result
from transfer_learning.cli.flags import EarlierName
from transfer_learning.cli.formatting import counted, printable
from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.cli.progress import count_progress
from transfer_learning.cli.streams import print_error
from transfer_learning.errors import UserError
from transfer_learning.experiments.prediction import FoundImages, Image, columns, find_images, predict_images
from transfer_learning.experiments.prediction_table import FORMATS, format_of, table_writer
from transfer_learning.experiments.trained_model import find_trained_model

IMAGES = "image files, folders, patterns ('photos/**/*.jpg'), archives, tables or known datasets"
REJECTED = "unknown"  # in place of a class
EXAMPLES = """examples:
  # a table on standard output
  transfer-learning predict runs/mine photos/
  # the same as a file
  transfer-learning predict runs/mine photos/ --output found.parquet
  # names of images from standard input
  find . -name '*.jpg' | transfer-learning predict runs/mine -"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Predicts images and writes the table; messages go to standard error."""
    with messages_on_stderr():  # parsing warns of earlier names of flags
        flags = parse(arguments)
        with nullcontext() if flags.output else output_is_result():
            _predict(flags)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the flags."""
    parser = Parser("predict", description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "model", metavar="RUN|EXPORT", help="a directory that `run` made, or a file that `export` wrote"
    )
    parser.add_argument(
        "images", metavar="IMAGE|FOLDER|PATTERN|-", nargs="+", help=f"{IMAGES}; -: read their names from standard input"
    )
    parser.add_argument(
        "--top-k", type=int, default=1, metavar="N", help="name the N most probable classes (default: 1)"
    )
    formats = f"{', '.join(FORMATS)} (default: by the name of --output, else csv)"
    parser.add_argument("--format", metavar="FORMAT", help=formats)
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: standard output)")
    parser.add_argument("--tta", default="", metavar="flip", help="flip: average with the mirrored image")
    exact = "use the saved model of a run, with TensorFlow: exactly the recorded predictions, instead of to within 1e-4"
    parser.add_argument("--exact", action="store_true", help=exact)
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    reject = f"write {REJECTED} instead of a class if the confidence is below the rejection threshold (see the report)"
    parser.add_argument("--reject", action="store_true", help=reject)
    parser.add_argument("--unknown", dest="reject", nargs=0, action=EarlierName, const="reject", help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.top_k < 1:
        raise UserError(f"--top-k {flags.top_k} names no class; give 1 or more.")
    if flags.tta not in ("", "flip"):
        raise UserError(f"--tta {flags.tta} is unknown; predict has flip, and evaluate --tta the others.")
    flags.format = format_of(flags.format, flags.output)
    for place in flags.images:
        if flags.output and flags.output.is_file() and os.path.exists(place) and flags.output.samefile(place):
            raise UserError(
                f"--output {flags.output} is also given as input, and would be replaced; name another file."
            )
    return flags


def _predict(flags: argparse.Namespace) -> None:
    model = find_trained_model(flags.model, flags.exact)
    found = _found(flags.images, model.data_dir)
    predictor = model.open()
    if flags.reject and not predictor.rejection_threshold:
        raise UserError(
            f"{model.name} has no rejection threshold, which needs validation images; leave out --reject, or train again "
            "with a --val-fraction above 0."
        )
    if flags.reject and REJECTED in predictor.class_names:
        raise UserError(
            f"{model.name} has a class called {REJECTED}, which --reject prints for rejected images; leave it out, and "
            "read the column rejected."
        )
    top_k = min(flags.top_k, len(predictor.class_names))
    unreadable: Counter[str] = Counter()  # by the kind of the problem
    progress = count_progress("Predicting images")
    with table_writer(flags.format, flags.output, columns(top_k)) as write:
        for prediction in predict_images(predictor, found.images, flags.tta, progress):
            name, best, confidence, rejected, *others = prediction.row(
                predictor.class_names, predictor.rejection_threshold, top_k
            )
            if prediction.problem:
                unreadable[prediction.kind] += 1
                if flags.skip_unreadable:
                    print_error(printable(f"Skipped {name}: {prediction.problem}."))
                    continue
            write((name, REJECTED if flags.reject and rejected else best, confidence, rejected, *others))
    count = sum(unreadable.values())
    kinds = f" ({', '.join(f'{number:,} {kind}' for kind, number in unreadable.most_common())})" if count else ""
    ignored = f"; {found.describe_ignored()}" if found.ignored else ""
    what = f"skipped {count:,}" if flags.skip_unreadable else f"{count:,} unreadable"
    print_error(printable(f"Predicted {counted(len(found.images) - count, 'image')}, {what}{kinds}{ignored}."))


def _found(places: Iterable[str], data_dir: str) -> FoundImages:
    """What is at the places; - stands for the names of images, one per line, on standard input."""
    images: list[Image] = []
    ignored: list[tuple[str, str]] = []
    for place in places:
        if place == "-":
            names = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            images += [Image(name, Path(name)) for name in names if name]
        else:
            found = find_images([place], data_dir)
            images += found.images
            ignored += found.ignored
    return FoundImages(images, ignored)


if __name__ == "__main__":
    sys.exit(run_main(main))
