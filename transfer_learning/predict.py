"""Predict images with a finished run and print a CSV table of file, class and confidence."""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence

from transfer_learning.cli.console import messages_on_stderr
from transfer_learning.cli.flags import EarlierName
from transfer_learning.cli.formatting import printable
from transfer_learning.cli.parser import Parser, quiet_start, run_main
from transfer_learning.errors import UserError
from transfer_learning.experiments.prediction import find_images, predict_images
from transfer_learning.storage.run_directory import evaluated_run_dir

IMAGES = "image files, folders searched for them, and what `run` takes: archives, tables, known datasets"
REJECTED = "unknown"  # in place of a class


def main(arguments: Sequence[str] | None = None) -> None:
    """Predicts images and prints the table; messages go to standard error."""
    with messages_on_stderr():
        _predict(parse(arguments))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the flags."""
    parser = Parser("predict", description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a directory that `run` made")
    parser.add_argument("images", metavar="IMAGE|FOLDER", nargs="+", help=IMAGES)
    parser.add_argument("--skip-unreadable", action="store_true", help="go on without images that cannot be read")
    reject = f"print {REJECTED} instead of a class if the confidence is below the rejection threshold (see the report)"
    parser.add_argument("--reject", action="store_true", help=reject)
    parser.add_argument("--unknown", dest="reject", nargs=0, action=EarlierName, const="reject", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _predict(flags: argparse.Namespace) -> None:
    run_dir = evaluated_run_dir(flags.run_dir)
    config = run_dir.read_config()
    found = find_images(flags.images, config.data_dir)

    with quiet_start():
        from transfer_learning.experiments.finished_run import FinishedRun

    run = FinishedRun(run_dir)
    classifier = run.classifier()
    if flags.reject and not classifier.rejection_threshold:
        raise UserError(
            f"{run.name} has no rejection threshold, which needs validation images; leave out --reject, or train again "
            "with a --val-fraction above 0."
        )
    if flags.reject and REJECTED in classifier.class_names:
        raise UserError(
            f"{run.name} has a class called {REJECTED}, which --reject prints for rejected images; leave it out, and "
            "compare confidences with the threshold in the report."
        )
    threshold = classifier.rejection_threshold if flags.reject else 0.0
    if hasattr(sys.stdout, "reconfigure"):  # file names need not be UTF-8
        sys.stdout.reconfigure(errors="surrogateescape")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("file", "class", "confidence"))
    skipped: Counter[str] = Counter()  # by the kind of the problem
    for file, probabilities, problem, kind in predict_images(classifier, config, found.images):
        if probabilities is not None:
            confidence = probabilities.max()
            name = REJECTED if confidence < threshold else classifier.class_names[probabilities.argmax()]
            writer.writerow((file, name, f"{confidence:.9g}"))
        elif flags.skip_unreadable:
            skipped[kind] += 1
            print(printable(f"Skipped {file}: {problem}."), file=sys.stderr)
        else:
            raise UserError(f"{file} cannot be predicted: {problem}; leave it out, or pass --skip-unreadable.")
    num_skipped = sum(skipped.values())
    kinds = f" ({', '.join(f'{count:,} {kind}' for kind, count in skipped.most_common())})" if skipped else ""
    ignored = f"; {found.describe_ignored()}" if found.ignored else ""
    predicted = f"Predicted {len(found.images) - num_skipped:,} images, skipped {num_skipped:,}{kinds}{ignored}."
    print(printable(predicted), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_main(main))
