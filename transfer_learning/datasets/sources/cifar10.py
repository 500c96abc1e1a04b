"""CIFAR-10: 60,000 photos of 32 x 32 pixels, 10 classes, with an official test split of 10,000.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; www.cs.toronto.edu/~kriz/cifar.html.
"""

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transfer_learning.datasets.dataset import Dataset, Example, check_class_names
from transfer_learning.datasets.sources import folder
from transfer_learning.datasets.sources.archive import entries
from transfer_learning.errors import UserError
from transfer_learning.storage.download import download
from transfer_learning.storage.pickled import read_pickle

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
SIDE = 32  # in pixels
PIXEL_BYTES = 3 * SIDE * SIDE  # per image: all of red, then green, then blue, row by row
MAX_BYTES = 10**8  # of a batch in an archive; the real ones have 31 MB
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"  # of that file, as in Keras
# Of a damaged file; an ArithmeticError for numbers that are too large.
DAMAGE = (OSError, EOFError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError)
DAMAGE_OF_ARCHIVES = (*DAMAGE, zlib.error, tarfile.TarError)


class Form(NamedTuple):
    """A published form of the dataset: an archive of a folder of batches."""

    archive: str
    folder: str
    suffix: str  # of the batches
    read: Callable[[bytes], tuple[np.ndarray, np.ndarray]]  # pixels uint8 (n, PIXEL_BYTES), labels uint8 (n,)


def load(data_dir: Path) -> Dataset:
    """Reads ``data_dir/cifar10``: the binary or the python version, packed or unpacked, or PNG files in ``train/CLASS``
    and ``test/CLASS``; where none is there, the python version is downloaded to it.

    Archives are not unpacked. Both versions give the same examples; PNG files have other hashes, and so another
    validation split. UserError if a file is damaged, or the download fails.
    """
    root = data_dir / "cifar10"
    for form in FORMS:
        for source in (root / form.folder, root / form.archive):
            if source.exists():
                return _dataset(form, source)
    if (root / "train").is_dir() and (root / "test").is_dir():
        dataset = folder.read(root)
        check_class_names(dataset, CLASS_NAMES, "CIFAR-10", "rename them, or pass the folder to --dataset")
        return replace(dataset, name="cifar10")
    by_hand = "put its images there as train/CLASS/*.png and test/CLASS/*.png; --dataset digits needs no download"
    return _dataset(PYTHON, download(URL, root / PYTHON.archive, SHA256, by_hand))


def read_binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Reads a batch of the binary version: one byte of label before the bytes of each image."""
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXEL_BYTES)
    return records[:, 1:], records[:, 0]


def read_python(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Reads a batch of the python version: a dictionary of an array and a list of labels, pickled by Python 2."""
    batch = read_pickle(io.BytesIO(content), _check_name)
    _, shape, kind, is_fortran, pixels = batch[b"data"].state
    if kind.arguments[0] != b"u1" or is_fortran or type(pixels) is not bytes or shape[1:] != (PIXEL_BYTES,):
        raise ValueError(f"it has no images of {SIDE} x {SIDE} pixels")
    return np.frombuffer(pixels, np.uint8).reshape(shape), np.array(batch[b"labels"], np.uint8)


def _check_name(name: str) -> None:
    if name not in ("numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"):
        raise ValueError(f"it asks for {name}, which no batch needs")


PYTHON = Form("cifar-10-python.tar.gz", "cifar-10-batches-py", "", read_python)
FORMS = (Form("cifar-10-binary.tar.gz", "cifar-10-batches-bin", ".bin", read_binary), PYTHON)


def _dataset(form: Form, source: Path) -> Dataset:
    batches = {}
    try:
        for name, content in _members(source, form):
            try:
                pixels, labels = form.read(content)
                if not 0 < len(pixels) == len(labels) or (labels >= len(CLASS_NAMES)).any():
                    raise ValueError(f"one label below {len(CLASS_NAMES)} per image was expected")
            except DAMAGE as error:
                raise ValueError(f"{name}: {str(error) or type(error).__name__}") from None
            images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
            batches[name] = np.ascontiguousarray(images), labels
        for name in (*BATCHES["train"], *BATCHES["test"]):
            if name not in batches:
                raise ValueError(f"{name}{form.suffix} is missing")
    except DAMAGE_OF_ARCHIVES as error:
        raise UserError(
            f"{source} is damaged ({str(error) or type(error).__name__}); replace it from "
            "www.cs.toronto.edu/~kriz/cifar.html, or delete it to download it."
        ) from None
    examples = []
    for split, names in BATCHES.items():
        labelled = (pair for name in names for pair in zip(*batches[name], strict=True))
        examples += [
            Example(f"{split}/{number:05d}", CLASS_NAMES[label], "" if split == "train" else "test", image)
            for number, (image, label) in enumerate(labelled)
        ]
    return Dataset("cifar10", CLASS_NAMES, tuple(examples))


def _members(source: Path, form: Form) -> Iterator[tuple[str, bytes]]:
    """Reads the batches of a folder or an archive, no other members; nothing is written."""
    names = {f"{form.folder}/{name}{form.suffix}": name for name in (*BATCHES["train"], *BATCHES["test"])}
    if source.is_dir():
        yield from ((name, (source.parent / place).read_bytes()) for place, name in names.items())
        return
    with entries(source) as found:
        for entry in found:
            if name := names.get(entry.name):
                if entry.problem or entry.num_bytes > MAX_BYTES:
                    raise ValueError(f"{entry.name} is no batch")
                yield name, entry.open().read()
