"""The table of known datasets, and the one way to any dataset: by name, by folder, by table.

A known dataset is a module with one function, ``load(data_dir: Path) -> Dataset``; adding one is a file here and a row
in `DATASETS`. A kind of dataset that lies at a place of the user's is a function ``read(place: str, data_dir: Path) ->
Dataset`` and a row in `SCHEMES`: what is written ``SCHEME:PLACE``.
"""

import importlib
from pathlib import Path

from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.sources import archive, folder, table
from transfer_learning.errors import UserError, did_you_mean

DATASETS = {
    "pharma": "transfer_learning.datasets.sources.pharma",
    "cifar10": "transfer_learning.datasets.sources.cifar10",
    "stop_signs": "transfer_learning.datasets.sources.stop_signs",
    "drawn_pills": "transfer_learning.datasets.sources.drawn_pills",
    "digits": "transfer_learning.datasets.sources.digits",
    "fashion_mnist": "transfer_learning.datasets.sources.fashion_mnist",
    "imagenet": "transfer_learning.datasets.sources.imagenet",
}

# "module:function" by the word ahead of the colon
SCHEMES = {
    "cv_studio": "transfer_learning.datasets.sources.cv_studio:read",
    "cv_studio_boxes": "transfer_learning.datasets.sources.cv_studio:read_boxes",
    "hf": "transfer_learning.datasets.sources.huggingface:read",
}


def load_dataset(name: str, data_dir: str | Path) -> Dataset:
    """Loads a known dataset by its name, a folder, an archive of one or a table ``path,label[,split]`` by its path,
    or ``SCHEME:PLACE``.

    Raises:
        UserError: no such name or path; or it holds fewer than two classes.
    """
    scheme, place = scheme_of(name)
    if name in DATASETS:
        dataset = importlib.import_module(DATASETS[name]).load(Path(data_dir))
    elif scheme:
        module, function = SCHEMES[scheme].split(":")
        dataset = getattr(importlib.import_module(module), function)(place, Path(data_dir))
    elif Path(name).is_dir():
        dataset = folder.read(Path(name))
    elif archive.is_archive(Path(name)):
        dataset = archive.read(Path(name), Path(data_dir))
    elif Path(name).is_file():
        dataset = table.read(Path(name))
    else:
        known = [*DATASETS, *(f"{scheme}:PLACE" for scheme in SCHEMES)]
        raise UserError(
            f"--dataset {name} is no known dataset, no folder and no table.{did_you_mean(name, known)} "
            "A folder needs a folder of images for each class; a table needs the columns path,label."
        )
    check(dataset)
    return dataset


def scheme_of(name: str) -> tuple[str, str]:
    """``"hf:beans"`` -> ``("hf", "beans")``; two empty texts for any other name, and for a path that exists."""
    scheme, _, place = name.partition(":")
    return (scheme, place) if scheme in SCHEMES and place and not Path(name).exists() else ("", "")


def check(dataset: Dataset) -> None:
    """Raises UserError for a dataset that no classifier can be made of."""
    if not dataset.examples:
        raise UserError(
            f"{dataset.name} holds no images; a folder of images for each class was expected, as in cats/1.jpg, dogs/2.jpg."
        )
    for example in dataset.examples:
        if not _is_text(example.id + example.label):
            raise UserError(
                f"{dataset.name} holds the image {ascii(example.id)}, whose name is not written in UTF-8; tables and "
                "the report could not name it, so rename it."
            )
    if len(dataset.class_names) < 2:
        raise UserError(
            f"{dataset.name} has only one class, {dataset.class_names[0]}; a classifier needs at least two, "
            "so add a folder of images of something else."
        )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of a file name that Python could only carry along
        return False
    return True
