"""Predict images with a finished run: ``python -m transfer_learning.predict RUN_DIR IMAGE|FOLDER... > predictions.csv``."""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from transfer_learning.cli.console import muted
from transfer_learning.cli.formatting import printable
from transfer_learning.cli.parser import Parser, quiet_start, run_main
from transfer_learning.errors import UserError
from transfer_learning.experiments.prediction import image_files, predict_files
from transfer_learning.storage.files import read_json
from transfer_learning.storage.run_directory import evaluated_run_dir

UNKNOWN = "unknown"  # in place of a class


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("predict", description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a directory that `run` made")
    parser.add_argument("images", metavar="IMAGE|FOLDER", nargs="+", help="image files, or folders searched for them")
    parser.add_argument("--skip-unreadable", action="store_true", help="go on without images that cannot be read")
    parser.add_argument(
        "--reject",
        action="store_true",
        help="write unknown where the confidence is too low for any class (see the report)",
    )
    # The earlier name of --reject, without a warning: standard output is the CSV.
    parser.add_argument("--unknown", dest="reject", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    run_dir = evaluated_run_dir(flags.run_dir)
    config = run_dir.read_config()
    begun_with = read_json(run_dir.environment, device=dict)["device"]
    recorded = read_json(run_dir.evaluation, weights_sha256=str)
    files = [file for argument in flags.images for file in image_files(Path(argument))]

    with quiet_start():
        from transfer_learning.machine.devices import set_up_devices
        from transfer_learning.models.classifier import load_model

    with muted():
        set_up_devices(config.precision, config.seed, begun_with)
    classifier = load_model(config, run_dir.model, recorded["weights_sha256"])
    if flags.reject and not classifier.rejection_threshold:
        raise UserError(
            f"{run_dir.path} has no rule for --reject: it was trained without validation images, or before there was one; "
            "leave it out, or train again with a --val-fraction above 0."
        )
    if flags.reject and UNKNOWN in classifier.class_names:
        raise UserError(
            f"A class of {run_dir.path} is itself called {UNKNOWN}, so what the rule finds could not be told from it; leave "
            "--reject away, and compare confidences with the threshold in the report."
        )
    rejection_threshold = classifier.rejection_threshold if flags.reject else 0.0
    if hasattr(sys.stdout, "reconfigure"):  # a file name need not be UTF-8, and goes out as it came in
        sys.stdout.reconfigure(errors="surrogateescape")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("file", "class", "confidence"))
    skipped = 0
    for file, probabilities, problem in predict_files(classifier, config, files):
        if probabilities is not None:
            is_unknown = probabilities.max() < rejection_threshold
            name = UNKNOWN if is_unknown else classifier.class_names[probabilities.argmax()]
            writer.writerow((file, name, f"{probabilities.max():.9g}"))
        elif flags.skip_unreadable:
            skipped += 1
            print(printable(f"Skipped {file}: {problem}."), file=sys.stderr)
        else:
            raise UserError(f"{file} cannot be predicted: {problem}; leave it out, or pass --skip-unreadable.")
    print(f"Predicted {len(files) - skipped:,} images, skipped {skipped:,}.", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_main(main))
