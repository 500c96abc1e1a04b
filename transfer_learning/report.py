"""Write the report of a finished run again and print its path."""

import sys
from collections.abc import Sequence

from transfer_learning.cli.console import print_line
from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.reports.run import write_report
from transfer_learning.storage.run_directory import existing_run_dir


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the report of a run again and prints its path."""
    parser = Parser("report", description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a directory that `run` made")
    print_line(str(write_report(existing_run_dir(parser.parse_args(arguments).run_dir))))


if __name__ == "__main__":
    sys.exit(run_main(main))
