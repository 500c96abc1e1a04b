"""Write the report of a run again, or one page that ranks several runs, and print its path."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from transfer_learning.cli.console import print_line
from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.errors import UserError
from transfer_learning.reports.leaderboard import FILE, find_runs, write_leaderboard
from transfer_learning.storage.run_directory import RunDir, evaluated_run_dir, existing_run_dir

logger = logging.getLogger(__name__)

EXAMPLES = f"""examples:
  # write runs/a/report.html again
  transfer-learning report runs/a
  # write runs/{FILE}, a sortable page of all runs in this folder
  transfer-learning report runs/
  # the same for some runs, or under another name
  transfer-learning report runs/a runs/b
  transfer-learning report runs/ --output x.html
  # also log the run to an MLflow server
  transfer-learning report runs/a --mlflow http://localhost:5000"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the report of one run, or the leaderboard of several, and prints its path."""
    parser = Parser("report", description=__doc__, epilog=EXAMPLES)
    places = "a directory that `run` made; several, or a folder of them, are ranked on one page"
    parser.add_argument("run_dirs", metavar="RUN_DIR|FOLDER", nargs="+", help=places)
    parser.add_argument("--output", metavar="FILE", help=f"the page of several runs (default: {FILE} in their folder)")
    parser.add_argument("--mlflow", metavar="URI", help="log these runs, which must be finished, to this MLflow server")
    flags = parser.parse_args(arguments)
    first, is_alone = RunDir(flags.run_dirs[0]), len(flags.run_dirs) == 1
    if is_alone and (first.config.exists() or not first.path.is_dir()):
        if flags.output:
            raise UserError(f"--output {flags.output} is for several runs; the report of one is in its directory.")
        from transfer_learning.reports.run import write_report

        runs, page = [first.path], write_report(existing_run_dir(first.path))
    else:
        if flags.output and Path(flags.output).suffix.lower() not in (".html", ".htm"):
            raise UserError(f"--output {flags.output} would be a web page; give a name that ends with .html.")
        runs = find_runs(flags.run_dirs)
        folder = first.path if is_alone else first.path.parent
        page = write_leaderboard(runs, Path(flags.output or folder / FILE))
    print_line(str(page))
    if flags.mlflow:
        from transfer_learning.reports.mlflow import log_run

        for run in [evaluated_run_dir(path) for path in runs]:
            logger.info(f"Logged {run.path} to MLflow as run {log_run(run, flags.mlflow)}.")


if __name__ == "__main__":
    sys.exit(run_main(main))
