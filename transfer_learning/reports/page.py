"""What all reports share: filling a template, embedding a figure, formatting numbers, counting images by split."""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from PIL import Image

from transfer_learning.cli import formatting
from transfer_learning.datasets.dataset import SPLITS, UNSEEN
from transfer_learning.evaluation.figures import DOTS_PER_INCH
from transfer_learning.storage.files import written_atomically

CSS_PIXELS_PER_INCH = 90  # of a figure: its text is as large as that of the page
QUALITY = 82  # of photos, 0 to 100
EFFORT = 0  # of what is stored without loss, 0 to 100: more takes longer and saves nothing


def write_page(template: str, content: Mapping[str, Any], path: Path) -> None:
    """Fills a template of this folder or of the package, and writes the page atomically."""
    page = _templates().get_template(template).render(content)
    with written_atomically(path) as temporary:
        temporary.write_bytes(page.encode("utf-8", "replace"))  # names that are not UTF-8 get a question mark


@cache  # so that each template is compiled once, which takes as long as a few epochs of a small run
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(__file__).parents[1]]),
        autoescape=True,  # class and file names come from anywhere
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "number": number, "four_places": four_places}
    templates.filters |= {"duration": duration, "size": size}
    return templates


class Picture(NamedTuple):
    """A figure inside a page."""

    source: str  # a data URI
    width: int  # CSS pixels
    height: int


def embedded(path: Path, is_photo: bool = False) -> Picture | None:
    """Returns a PNG of `figures.style.save` as WebP, without loss unless it is a photo; None if it is no PNG file."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            pixels = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    content = io.BytesIO()
    pixels.save(content, "WEBP", lossless=not is_photo, quality=QUALITY if is_photo else EFFORT, method=2)
    width, height = (round(side * CSS_PIXELS_PER_INCH / DOTS_PER_INCH) for side in pixels.size)
    return Picture(f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}", width, height)


def counts_by_class(manifest: pd.DataFrame, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Counts images by class and split: one row per class, then one with the sums, whose label is None."""
    manifest = manifest[manifest["split"] != UNSEEN]
    names = list(dict.fromkeys([*class_names, *manifest["label"]]))
    places = {split: split for split in SPLITS} | {"": "skipped"}
    counts = pd.crosstab(manifest["label"], manifest["split"].map(places))
    counts = counts.reindex(index=names, columns=[*SPLITS, "skipped"], fill_value=0)
    counts["all"] = counts.sum(axis=1)
    rows = [{"label": name, **row} for name, row in zip(counts.index, counts.to_dict("records"), strict=True)]
    return [*rows, {"label": None, **counts.sum().to_dict()}]


def unseen_class_counts(manifest: pd.DataFrame) -> dict[str, int]:
    """Counts the images of each class of ``--unseen-classes``."""
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
