"""Write a finished run as SavedModel, ONNX, LiteRT, OpenVINO or Keras files that need no training code.

Each file is loaded by its own runtime and compared with the recorded predictions of the test images; one that differs
is not written. README.md beside the files is a model card with a tested program for each.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from transfer_learning.cli.console import new_table, print_table
from transfer_learning.cli.formatting import duration, size
from transfer_learning.cli.parser import Parser, quiet_start, run_main
from transfer_learning.errors import ExitCode, UserError
from transfer_learning.exports.formats import FORMATS, chosen_formats, format_of
from transfer_learning.storage.run_directory import RunDir, evaluated_run_dir

EXAMPLES = """examples:
  # write ONNX into runs/a/export/
  transfer-learning export runs/a
  # write every format
  transfer-learning export runs/a --format all
  # for phones, also with 8-bit integers
  transfer-learning export runs/a --format litert,litert-int8
  # check a file again, here or on another machine
  transfer-learning export runs/a --gate-only model.onnx
  # also upload the folder to the Hugging Face Hub
  transfer-learning export runs/a --push-to-hub me/birds"""


def main(arguments: Sequence[str] | None = None) -> ExitCode:
    """Exports, or checks a file, and prints the table; exit code 3 if a file failed."""
    flags = parse(arguments)
    run_dir = evaluated_run_dir(flags.run_dir)
    limit = flags.int8_limit / 100
    if flags.gate_only:
        results = check_file(run_dir, Path(flags.gate_only), limit, flags.dataset)
    else:
        formats, folder = chosen_formats(flags.format), Path(flags.output or run_dir.export)
        with quiet_start(in_command=True):
            from transfer_learning.experiments.export import export_run
            from transfer_learning.reports.run import write_report

        results = export_run(run_dir, formats, folder, limit, flags.dataset)
        if folder == run_dir.export and run_dir.is_finished:
            write_report(run_dir)
    print_table(table_of(results))
    if any(result["problem"] for result in results):
        return ExitCode.LIMIT_EXCEEDED
    if flags.push_to_hub:
        from transfer_learning.exports.hub import push

        logging.getLogger(__name__).info(f"Uploaded: {push(folder, flags.push_to_hub)}")
    return ExitCode.DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the flags.

    Raises:
        UserError: a flag is unknown, a value is out of range, or flags contradict each other.
    """
    parser = Parser("export", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a directory that `run` made")
    parser.add_argument(
        "--format", metavar="NAME,...", default="onnx", help=f"{', '.join(FORMATS)}, or all (default: onnx)"
    )
    parser.add_argument("--output", metavar="DIR", help="folder of the files (default: RUN_DIR/export)")
    parser.add_argument(
        "--int8-limit",
        metavar="POINTS",
        type=float,
        default=2.0,
        help="largest allowed loss of accuracy of an integer format, in percentage points (default: 2)",
    )
    parser.add_argument(
        "--dataset", metavar="DATASET", default="", help="the new place of the images, if they were moved"
    )
    parser.add_argument("--gate-only", metavar="FILE", help="check an existing file instead of writing one")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="upload the folder, if all files pass")
    flags = parser.parse_args(arguments)
    chosen_formats(flags.format)
    if not 0 <= flags.int8_limit <= 100:
        raise UserError(f"--int8-limit {flags.int8_limit:g} is not in 0..100; give percentage points, such as 2.")
    if flags.gate_only and (flags.output or flags.push_to_hub):
        raise UserError("--gate-only writes nothing; leave out --output and --push-to-hub.")
    return flags


def check_file(run_dir: RunDir, path: Path, int8_limit: float, dataset: str) -> list[dict[str, Any]]:
    """Checks one file without TensorFlow, unless its format is TensorFlow's."""
    format = format_of(path)
    from transfer_learning.exports.gate import check
    from transfer_learning.exports.images import load_images

    result = check(format, path, load_images(run_dir, dataset), int8_limit)
    if result["problem"]:
        logging.getLogger(__name__).error(f"{path} fails: {result['problem']}.")
    return [result]


def table_of(results: Sequence[dict[str, Any]]) -> Table:
    """One row per file."""
    table = new_table(
        *("format", "accuracy", "same class", "largest difference", "images/s", "batch 32", "start-up", "size", "")
    )
    for row in results:
        if "accuracy" not in row:
            table.add_row(row["format"], *[""] * 7, "failed")
            continue
        table.add_row(
            row["format"],
            f"{row['accuracy']:.2%}",
            f"{row['agreement']:.2%}",
            f"{row['largest_difference']:.1e}",
            *(f"{row['images_per_second'][batch]:,.0f}" for batch in ("1", "32")),
            duration(row["start_up_seconds"]),
            size(row["bytes"]),
            "failed" if row["problem"] else "passed",
        )
    return table


if __name__ == "__main__":
    sys.exit(run_main(main))
