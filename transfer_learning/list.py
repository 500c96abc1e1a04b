"""List the known datasets, backbones or recipes."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from transfer_learning.cli.console import console, output_is_result
from transfer_learning.cli.formatting import printable
from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.config import RunConfig
from transfer_learning.datasets.sources.registry import DATASETS, SCHEMES
from transfer_learning.models.backbones import list_backbones
from transfer_learning.recipes.known import RECIPES

EPILOG = "Any folder of class folders, archive or table with path,label columns is a dataset, too; see `run --help`."
KINDS = ("datasets", "backbones", "recipes")
NO_LICENCE = "not stated"  # by those who publish the weights or the images


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("list", description=__doc__, epilog=EPILOG)
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=f"what to list: {', '.join(KINDS)}")
    default = RunConfig.data_dir
    parser.add_argument("--data-dir", default=default, metavar="DIR", help=f"see `run` (default: {default})")
    flags = parser.parse_args(arguments)
    columns, rows = {
        "datasets": ("name, content, licence, where", dataset_rows(Path(flags.data_dir))),
        "backbones": ("name, M parameters, pixels, paper, licence, ImageNet weights", backbone_rows()),
        "recipes": ("dataset, backbone, pixels, batch, frozen phase, fine-tune phase", recipe_rows()),
    }[flags.kind]
    table = Table(*columns.split(", "), box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*map(printable, row))
    with output_is_result():
        console.print(table, soft_wrap=False)


def dataset_rows(data_dir: Path) -> Iterator[Sequence[str]]:
    for name, source in DATASETS.items():
        where = f"in {data_dir / name}" if (data_dir / name).is_dir() else source.origin
        yield name, source.content, source.licence or NO_LICENCE, where
    for scheme, source in SCHEMES.items():
        yield f"{scheme}:PLACE", source.content, source.licence or "that of each", source.origin


def backbone_rows() -> Iterator[Sequence[str]]:
    for row in list_backbones():
        size = f"{row.million_parameters:.1f}", str(row.image_size)
        licence = row.weights_licence or (NO_LICENCE if row.weights_url else "none")
        yield row.name, *size, row.paper, licence, row.weights_status()


def recipe_rows() -> Iterator[Sequence[str]]:
    for name, recipe in RECIPES.items():
        config = recipe()
        one, two = config.frozen, config.fine_tune
        frozen = f"{one.epochs} epochs, {one.augmentation}" if one.epochs else "none"
        fine_tune = f"{two.epochs} epochs of {two.unfreeze}, {two.augmentation}" if two.epochs else "none"
        yield name, config.backbone, str(config.image_size), str(config.batch_size), frozen, fine_tune


if __name__ == "__main__":
    sys.exit(run_main(main))
