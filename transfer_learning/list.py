"""List the known datasets, backbones or recipes."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from transfer_learning.cli.console import console
from transfer_learning.cli.formatting import printable
from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.config import RunConfig
from transfer_learning.datasets.sources.registry import DATASETS, SCHEMES
from transfer_learning.models.backbones import Backbone, list_backbones
from transfer_learning.recipes.known import RECIPES

EPILOG = "Any folder of class folders, archive or table with path,label columns is a dataset, too; see `run --help`."
KINDS = ("datasets", "backbones", "recipes")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("list", description=__doc__, epilog=EPILOG)
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=f"what to list: {', '.join(KINDS)}")
    parser.add_argument(
        "--data-dir", default=RunConfig.data_dir, metavar="DIR", help=f"see `run` (default: {RunConfig.data_dir})"
    )
    flags = parser.parse_args(arguments)
    if flags.kind == "datasets":
        show(("name", "content", "licence", "where"), dataset_rows(Path(flags.data_dir)))
    elif flags.kind == "backbones":
        columns = ("name", "M parameters", "pixels", "paper", "licence", "ImageNet weights")
        show(columns, map(backbone_row, list_backbones()))
    else:
        columns = ("dataset", "backbone", "pixels", "batch", "frozen phase", "fine-tune phase")
        show(columns, recipe_rows())


def show(columns: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    """Prints a table as wide as the terminal."""
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*map(printable, row))
    console.print(table, soft_wrap=False)


def dataset_rows(data_dir: Path) -> Iterator[Sequence[str]]:
    for name, source in DATASETS.items():
        where = f"in {data_dir / name}" if (data_dir / name).is_dir() else source.origin
        yield name, source.content, source.licence, where
    for scheme, source in SCHEMES.items():
        yield f"{scheme}:PLACE", source.content, source.licence, source.origin


def backbone_row(row: Backbone) -> Sequence[str]:
    parameters = f"{row.million_parameters:.1f}"
    return row.name, parameters, str(row.image_size), row.paper, row.weights_licence, row.weights_status()


def recipe_rows() -> Iterator[Sequence[str]]:
    for name, recipe in RECIPES.items():
        config = recipe()
        frozen, fine_tune = config.frozen, config.fine_tune
        yield (
            name,
            config.backbone,
            str(config.image_size),
            str(config.batch_size),
            f"{frozen.epochs} epochs, {frozen.augmentation}" if frozen.epochs else "none",
            f"{fine_tune.epochs} epochs of {fine_tune.unfreeze}, {fine_tune.augmentation}"
            if fine_tune.epochs
            else "none",
        )


if __name__ == "__main__":
    sys.exit(run_main(main))
