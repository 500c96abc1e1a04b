"""Photos with and without a stop sign: a CV Studio project of the user's own photos."""

from dataclasses import replace
from pathlib import Path

from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.sources import cv_studio
from transfer_learning.errors import UserError


def load(data_dir: Path) -> Dataset:
    """Reads the project in ``data_dir/stop_signs`` as `cv_studio.read` does; UserError if it is missing or damaged."""
    root = data_dir / "stop_signs"
    if not (root / cv_studio.ANNOTATIONS).is_file():
        raise UserError(
            f"The dataset stop_signs is not in {root}, and there is no download; put the {cv_studio.ANNOTATIONS} and "
            "the images of a CV Studio project there, or pass --dataset cv_studio:s3://BUCKET/PREFIX; --dataset "
            "drawn_pills needs no download."
        )
    return replace(cv_studio.read(str(root), data_dir), name="stop_signs")
