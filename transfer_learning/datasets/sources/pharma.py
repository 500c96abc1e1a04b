"""Photos of ten pharmaceutical products: 10,000 images, one folder per class.

Source: Kaggle, vencerlanz09/pharmaceutical-drugs-and-vitamins-synthetic-images; public, fetched without an account.
"""

import logging
import textwrap
from dataclasses import replace
from pathlib import Path

from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.sources import folder
from transfer_learning.errors import UserError, needs_extra

logger = logging.getLogger(__name__)

KAGGLE_NAME = "vencerlanz09/pharmaceutical-drugs-and-vitamins-synthetic-images"
CLASS_NAMES = (
    "Alaxan",
    "Bactidol",
    "Bioflu",
    "Biogesic",
    "DayZinc",
    "Decolgen",
    "Fish Oil",
    "Kremil S",
    "Medicol",
    "Neozep",
)


def load(data_dir: Path) -> Dataset:
    """Reads ``data_dir/pharma`` if it exists, else downloads it with kagglehub (into its own cache).

    Raises:
        UserError: the download fails, or the folder does not have the ten classes.
    """
    root = data_dir / "pharma"
    dataset = folder.read(root if root.is_dir() else _download(root))
    if dataset.class_names != CLASS_NAMES:
        raise UserError(
            f"{dataset.name} has the classes {', '.join(dataset.class_names) or 'none'}; those of the Kaggle dataset "
            f"were expected ({', '.join(CLASS_NAMES)}), so unpack its archive there, or pass the folder to --dataset."
        )
    return replace(dataset, name="pharma")


def _download(root: Path) -> Path:
    with needs_extra("kaggle"):
        import kagglehub

    logger.info(f"Downloading {KAGGLE_NAME} from Kaggle ({root} does not exist).")
    try:
        return Path(kagglehub.dataset_download(KAGGLE_NAME))  # with its own progress bar
    except Exception as error:  # kagglehub raises errors of requests, of the archive and of Kaggle's API
        reason = textwrap.shorten(str(error) or type(error).__name__, 120, placeholder=" ...")
        raise UserError(
            f"The dataset pharma is not in {root} and cannot be downloaded ({reason}); unpack "
            f"kaggle.com/datasets/{KAGGLE_NAME} into {root}, or pass --dataset drawn_pills, which needs no download."
        ) from None
