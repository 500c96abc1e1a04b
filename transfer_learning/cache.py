"""Look at and clear what is kept from run to run: ``python -m transfer_learning.cache [--clear WHAT | --keep-gb N]``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.config import RunConfig
from transfer_learning.errors import UserError
from transfer_learning.storage.cache import CacheEntry, clear, described, list_entries, make_room

COLUMNS = ("kind", "name", "holds", "records", "MB", "last used", "in use")
TO_THE_RIGHT = ("records", "MB")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m transfer_learning.cache", description=__doc__)
    parser.add_argument(
        "--cache-dir", default=RunConfig.cache_dir, metavar="FOLDER", help=f"(default: {RunConfig.cache_dir})"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--clear", metavar="WHAT", help="delete all, a kind such as pixels or features, or one by its name"
    )
    choice.add_argument(
        "--keep-gb", type=float, metavar="N", help="delete what was not used for longest until N GB are left"
    )
    flags = parser.parse_args(arguments)
    if flags.keep_gb is not None and not 0 <= flags.keep_gb < float("inf"):
        raise UserError(f"--keep-gb {flags.keep_gb:g} is no size; give 0 or more, in 10^9 bytes.")
    pools = list_entries(flags.cache_dir)
    if not Path(flags.cache_dir).exists():
        print(
            f"There is no folder {flags.cache_dir}, so nothing is kept; a run makes it, or --cache-dir names another one."
        )
    elif not pools:
        print(f"Nothing is kept in {flags.cache_dir}.")
    elif flags.clear is not None:
        _clear(flags.cache_dir, flags.clear)
    elif flags.keep_gb is not None:
        _keep(flags.cache_dir, flags.keep_gb * 1e9)
    else:
        print("\n".join(table(pools)))
        print(
            "Clear with --clear all, a kind or a name, or with --keep-gb N; what is cleared is made again when needed."
        )


def table(pools: Sequence[CacheEntry]) -> list[str]:
    """The lines of a table of pools: a heading, one for each, a total."""
    rows = [COLUMNS]
    for pool in pools:
        used = f"{pool.last_used:%Y-%m-%d %H:%M}", "yes" if pool.in_use else "no"
        rows.append(
            (pool.kind, pool.path.name, pool.about or "-", f"{pool.num_records:,}", _size(pool.num_bytes), *used)
        )
    num_records, num_bytes = (sum(getattr(pool, name) for pool in pools) for name in ("num_records", "num_bytes"))
    rows.append(("total", "", "", f"{num_records:,}", _size(num_bytes), "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_aligned(*cell) for cell in zip(row, widths, COLUMNS, strict=True)).rstrip() for row in rows]


def _clear(cache_dir: str, chosen: str) -> None:
    deleted, in_use = clear(cache_dir, chosen)
    for pool in deleted:
        print(f"Deleted {pool.name} ({described(pool)}).")
    for pool in in_use:
        print(f"Left {pool.name} ({described(pool)}): a running process uses it; clear it when that has ended.")
    print(f"{_size(sum(pool.num_bytes for pool in deleted))} MB freed.")


def _keep(cache_dir: str, limit_bytes: float) -> None:
    fits = make_room(cache_dir, 0, limit_bytes)
    left = f"{cache_dir} holds {_size(sum(pool.num_bytes for pool in list_entries(cache_dir)))} MB"
    print(f"{left}." if fits else f"{left}, more than that: what is left is in use, or of another user.")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f}"


def _aligned(text: str, width: int, column: str) -> str:
    return text.rjust(width) if column in TO_THE_RIGHT else text.ljust(width)


if __name__ == "__main__":
    sys.exit(run_main(main))
