"""Photos of ten pharmaceutical products: 10,000 images, one folder per class.

Source: Kaggle, vencerlanz09/pharmaceutical-drugs-and-vitamins-synthetic-images; public, fetched without an account.
"""

import logging
from dataclasses import replace
from pathlib import Path

from transfer_learning.datasets.dataset import Dataset, check_class_names
from transfer_learning.datasets.sources import folder
from transfer_learning.datasets.sources.drawn_pills import CLASS_NAMES
from transfer_learning.errors import needs_extra
from transfer_learning.storage.download import not_downloaded

logger = logging.getLogger(__name__)

KAGGLE_NAME = "vencerlanz09/pharmaceutical-drugs-and-vitamins-synthetic-images"


def load(data_dir: Path) -> Dataset:
    """Reads ``data_dir/pharma`` if it exists, else downloads it with kagglehub (into its own cache); UserError if the
    download fails, or the folder does not have the ten classes.
    """
    root = data_dir / "pharma"
    dataset = folder.read(root if root.is_dir() else _download(root))
    advice = "unpack its archive there, or pass the folder to --dataset"
    check_class_names(dataset, CLASS_NAMES, "the Kaggle dataset", advice)
    return replace(dataset, name="pharma")


def _download(root: Path) -> Path:
    with needs_extra("kaggle"):
        import kagglehub

    logger.info(f"Downloading {KAGGLE_NAME} from Kaggle, since {root} is missing.")
    try:
        return Path(kagglehub.dataset_download(KAGGLE_NAME))  # draws its own progress bar
    except Exception as error:  # kagglehub passes on what requests, the archive and Kaggle's API raise
        by_hand = f"unpack kaggle.com/datasets/{KAGGLE_NAME} into {root}, or use --dataset drawn_pills"
        raise not_downloaded("The dataset pharma", error, by_hand) from None
