"""What all pages share: a template filled and written whole, numbers in words, and the table of classes and splits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from transfer_learning.cli import formatting
from transfer_learning.datasets.dataset import SPLITS, UNSEEN
from transfer_learning.storage.files import written_atomically


def write_page(template: str, content: Mapping[str, Any], path: Path) -> None:
    """Fills a template of this folder, and writes the page whole or not at all."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(__file__).parents[1]]),
        autoescape=True,  # class and file names come from anywhere
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "number": number, "four_places": four_places}
    templates.filters |= {"duration": duration, "size": size}
    page = templates.get_template(template).render(content)
    with written_atomically(path) as temporary:
        temporary.write_bytes(page.encode("utf-8", "replace"))  # names that are no UTF-8 get a question mark


def counts_by_class(manifest: pd.DataFrame, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Examples by class and split, a row a class and a last one with the sums."""
    manifest = manifest[manifest["split"] != UNSEEN]
    names = list(dict.fromkeys([*class_names, *manifest["label"]]))
    places = {split: split for split in SPLITS} | {"": "skipped"}
    counts = pd.crosstab(manifest["label"], manifest["split"].map(places))
    counts = counts.reindex(index=names, columns=[*SPLITS, "skipped"], fill_value=0)
    counts["all"] = counts.sum(axis=1)
    rows = [{"label": name, **row} for name, row in zip(counts.index, counts.to_dict("records"), strict=True)]
    return [*rows, {"label": None, **counts.sum().to_dict()}]


def unseen_class_counts(manifest: pd.DataFrame) -> dict[str, int]:
    """Images by class, of the classes that are not learnt."""
    return manifest.loc[manifest["split"] == UNSEEN, "label"].value_counts(sort=False).to_dict()


def percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.2f} %"


def number(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}"


def four_places(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def duration(seconds: float | None) -> str:
    return "–" if seconds is None else formatting.duration(seconds)


def size(num_bytes: int) -> str:
    return formatting.size(num_bytes) if num_bytes else "–"
