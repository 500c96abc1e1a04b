"""List or clear the cache of decoded images and features."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from transfer_learning.cli.console import console, output_is_result, print_line
from transfer_learning.cli.formatting import printable, size
from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.config import RunConfig
from transfer_learning.errors import UserError
from transfer_learning.storage.cache import Cache, CacheEntry


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("cache", description=__doc__)
    default = RunConfig.cache_dir
    parser.add_argument(
        "--cache-dir", default=default, metavar="FOLDER", help=f"folder of the cache (default: {default})"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--clear", metavar="WHAT", help="delete all, a kind such as pixels or features, or the entry of this name"
    )
    choice.add_argument(
        "--keep-gb", type=float, metavar="N", help="delete the least recently used entries until at most N GB are left"
    )
    flags = parser.parse_args(arguments)
    if flags.keep_gb is not None and not 0 <= flags.keep_gb < float("inf"):
        raise UserError(f"--keep-gb {flags.keep_gb:g} is not a size; give 0 or more, in GB of 10^9 bytes.")
    cache = Cache(Path(flags.cache_dir))
    entries = cache.entries()
    if not entries:
        print_line(f"The cache {cache.folder} is empty.")
    elif flags.clear is not None:
        clear(cache, flags.clear)
    elif flags.keep_gb is not None:
        fits = Cache(cache.folder, flags.keep_gb).make_room(0)
        left = sum(entry.num_bytes for entry in cache.entries())
        rest = "" if fits else "; other entries are in use, read-only or of another user"
        print_line(f"{cache.folder} holds {size(left)}{rest}.")
    else:
        with output_is_result():
            console.print(table(entries))


def table(entries: Sequence[CacheEntry]) -> Table:
    """One row per entry, and a total."""
    result = Table(box=None, show_footer=True, pad_edge=False)
    total = f"{sum(entry.num_records for entry in entries):,}", size(sum(entry.num_bytes for entry in entries))
    result.add_column("entry", "total", no_wrap=True, overflow="fold")  # whole, as --clear takes it
    result.add_column("contents", overflow="fold")
    for name, footer in zip(("records", "size"), total, strict=True):
        result.add_column(name, footer, justify="right", no_wrap=True)
    result.add_column("last used", no_wrap=True)
    result.add_column("in use", no_wrap=True)
    for entry in entries:
        names = Text(printable(entry.name)), Text(printable(entry.contents))
        use = f"{entry.last_used:%Y-%m-%d %H:%M}", "yes" if entry.in_use else "no"
        result.add_row(*names, f"{entry.num_records:,}", size(entry.num_bytes), *use)
    return result


def clear(cache: Cache, chosen: str) -> None:
    """Deletes what is chosen, and prints what was deleted and what stays."""
    deleted, in_use = cache.clear(chosen)
    for entry in deleted:
        print_line(f"Deleted {entry.describe()}.")
    for entry in in_use:
        print_line(f"Left {entry.describe()}: in use by a running process.")
    print_line(f"Freed {size(sum(entry.num_bytes for entry in deleted))}.")


if __name__ == "__main__":
    sys.exit(run_main(main))
