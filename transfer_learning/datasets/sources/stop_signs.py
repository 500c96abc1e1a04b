"""Photos with and without a stop sign: a project of CV Studio, which each of its users makes of photos of his own."""

from dataclasses import replace
from pathlib import Path

from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.sources import cv_studio
from transfer_learning.errors import UserError


def load(data_dir: Path) -> Dataset:
    """Reads the project in ``data_dir/stop_signs`` as `cv_studio.read` does.

    Raises:
        UserError: it is not there, or is damaged.
    """
    root = data_dir / "stop_signs"
    if not (root / cv_studio.ANNOTATIONS).is_file():
        raise UserError(
            f"The dataset stop_signs is not in {root}, and there is no place that it could be downloaded from; put the "
            f"{cv_studio.ANNOTATIONS} of a CV Studio project and its images there, or run with --dataset "
            "cv_studio:s3://BUCKET/PREFIX; --dataset drawn_pills, which needs no download, works now."
        )
    return replace(cv_studio.read(str(root), data_dir), name="stop_signs")
