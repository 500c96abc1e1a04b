"""Fashion-MNIST: 70,000 grey images of clothes, 28 x 28 pixels, 10 classes, with an official test split of 10,000.

Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
2017.
"""

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from transfer_learning.datasets.dataset import Dataset, Example
from transfer_learning.errors import UserError
from transfer_learning.storage.download import download

CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist lays the files
MAX_BYTES = 200_000_000  # of an unpacked file; the largest has 47 million
KERAS_FOLDER = Path(os.path.expanduser("~/.keras/datasets/fashion-mnist"))  # where Keras puts its downloads
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MD5 = {  # as published with the dataset
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
FILES = {"train": tuple(MD5)[:2], "test": tuple(MD5)[2:]}


def load(data_dir: Path) -> Dataset:
    """Reads the four IDX files from ``data_dir/fashion_mnist``, Debian's package or Keras' folder, or downloads them;
    UserError if a file is damaged or the download fails.
    """
    own = data_dir / "fashion_mnist"
    places = own, DEBIAN_FOLDER, KERAS_FOLDER
    folder = next((folder for folder in places if all((folder / name).is_file() for name in MD5)), own)
    if folder == own:
        otherwise = "install Debian's package dataset-fashion-mnist; --dataset digits needs no download"
        for name, md5 in MD5.items():
            if not (own / name).is_file():
                download(f"{URL}/{name}", own / name, md5, otherwise)
    examples = []
    for split, names in FILES.items():
        images, labels = (read_idx(folder / name) for name in names)
        if images.ndim != 3 or labels.shape != images.shape[:1] or (labels >= len(CLASS_NAMES)).any():
            raise UserError(
                f"Fashion-MNIST's {split} images have the shape {images.shape} and its labels {labels.shape}; one "
                f"label below {len(CLASS_NAMES)} per image was expected, so replace its files."
            )
        examples += [
            Example(f"{split}/{number:05d}", CLASS_NAMES[label], "" if split == "train" else "test", image)
            for number, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
    return Dataset("fashion_mnist", CLASS_NAMES, tuple(examples))


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file, with the shape of its header; UserError if it has another format or is
    truncated.
    """
    try:
        with gzip.open(path) as file:
            zeros, kind, axes = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or kind != 8:
                raise ValueError("it has no header of an IDX file of bytes")
            shape = struct.unpack(f">{axes}I", file.read(4 * axes))
            content = file.read(MAX_BYTES + 1)  # a small file may unpack to anything
        if len(content) > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES:,} bytes")
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); replace it, or delete it to download it.") from None
