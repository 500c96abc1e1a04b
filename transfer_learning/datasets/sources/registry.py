"""The table of known datasets, and `load_dataset` for them and for folders, archives and tables.

A new dataset is one file here, with a function ``load(data_dir: Path) -> Dataset``, and one row in `DATASETS`; a recipe
(`recipes.known`) is optional. A new kind of place, given as ``SCHEME:PLACE``, is a function ``read(place: str,
data_dir: Path) -> Dataset`` and one row in `SCHEMES`.
"""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from transfer_learning.datasets.dataset import Dataset, left_out
from transfer_learning.datasets.decoding.formats import count_by_suffix, explain_other_file
from transfer_learning.datasets.sources import archive, folder, table
from transfer_learning.errors import UserError, did_you_mean


class Source(NamedTuple):
    """Where a dataset comes from."""

    function: str  # "module:function" in this folder
    content: str  # what it holds
    origin: str  # where the files come from
    licence: str = ""  # of the images; "": that of each dataset

    def load(self, *arguments: Any) -> Dataset:
        """Calls the function; its module is imported only now."""
        module, _, function = self.function.partition(":")
        return getattr(importlib.import_module(f"{__package__}.{module}"), function)(*arguments)


RESEARCH = "non-commercial research"
DATASETS = {
    "drawn_pills": Source(
        "drawn_pills:load", "1,200 images of 10 pharmaceutical products, 256 x 256", "drawn on first use", "MIT"
    ),
    "digits": Source("digits:load", "1,797 handwritten digits, 8 x 8", "ships with scikit-learn", "CC BY 4.0"),
    "fashion_mnist": Source(
        "fashion_mnist:load", "70,000 images of clothes, 10 classes, 28 x 28", "Debian package, or downloaded", "MIT"
    ),
    "cifar10": Source(
        "cifar10:load", "60,000 photos of 10 classes, 32 x 32", "data/cifar10, or downloaded", "not stated"
    ),
    "pharma": Source(
        "pharma:load", "10,000 images of 10 pharmaceutical products", "data/pharma, or Kaggle", "see Kaggle"
    ),
    "stop_signs": Source("stop_signs:load", "photos with and without a stop sign", "data/stop_signs: your own photos"),
    "imagenet": Source(
        "imagenet:load", "1,281,167 photos of 1,000 classes", "data/imagenet, or Hugging Face with a login", RESEARCH
    ),
}
SCHEMES = {
    "cv_studio": Source("cv_studio:read", "images of a CV Studio project", "FOLDER or s3://BUCKET/PREFIX"),
    "cv_studio_boxes": Source(
        "cv_studio:read_boxes", "boxes of a CV Studio project, cut out", "FOLDER or s3://BUCKET/PREFIX"
    ),
    "hf": Source("huggingface:read", "any image dataset of Hugging Face", "NAME on the hub, or FOLDER"),
    "shards": Source(
        "shards:read", "images in .tar or .parquet files, which stay there", "FOLDER or s3://BUCKET/FOLDER"
    ),
}


def load_dataset(
    name: str, data_dir: str | Path, for_training: bool = True, columns: table.Columns = table.BY_NAME
) -> Dataset:
    """Loads a dataset by its known name, by the path of a folder, archive or table, or by ``SCHEME:PLACE``; UserError
    if there is no such name or path, or, `for_training`, it has fewer than two classes.

    Args:
        columns: of a table, where their names do not say which they are.
    """
    scheme, place = scheme_of(name)
    if not name:
        raise UserError("--dataset is empty; give a known name, or the path of a folder, archive or table.")
    if name in DATASETS:
        dataset = DATASETS[name].load(Path(data_dir))
    elif scheme:
        dataset = SCHEMES[scheme].load(place, Path(data_dir))
    elif Path(name).is_dir():
        dataset = folder.read(Path(name))
    elif archive.is_archive(Path(name)):
        dataset = archive.read(Path(name), Path(data_dir))
    elif Path(name).is_file():
        if explained := explain_other_file(Path(name)):
            what, advice = explained
            raise UserError(f"--dataset {name} is {what}, and a folder, archive or table was expected; {advice}.")
        dataset = table.read(Path(name), columns)
    elif name.startswith(("http://", "https://")):
        raise UserError(f"--dataset {name} is an address; download it, and pass the file or the unpacked folder.")
    else:
        known = [*DATASETS, *(f"{scheme}:PLACE" for scheme in SCHEMES)]
        raise UserError(
            f"--dataset {name} is not a known dataset, folder, archive or table.{did_you_mean(name, known)} "
            "Give a folder with one subfolder of images per class, or a table with the columns path,label."
        )
    check(dataset, 2 if for_training else 1)
    return dataset


def scheme_of(name: str) -> tuple[str, str]:
    """``"hf:beans"`` -> ``("hf", "beans")``; ``("", "")`` for any other name, and for an existing path."""
    scheme, _, place = name.partition(":")
    return (scheme, place) if scheme in SCHEMES and place and not Path(name).exists() else ("", "")


def check(dataset: Dataset, min_classes: int = 2) -> None:
    """Raises UserError for a dataset without images, with fewer classes, or with names that no table can hold."""
    if not dataset.examples:
        holds = count_by_suffix(name for name, _ in dataset.ignored)
        raise UserError(
            f"{dataset.name} has no images{f', but {holds}' if holds else ''}; give a folder with one subfolder of images "
            "(JPEG, PNG, TIFF, WebP, GIF, BMP, PPM, AVIF or HEIC) per class, as in cats/1.jpg, dogs/2.jpg."
        )
    for example in dataset.examples:
        try:
            (example.id + example.label).encode()
        except UnicodeEncodeError:  # bytes of a file name that Python could only carry along
            raise UserError(
                f"The name of the image {ascii(example.id)} in {dataset.name} is not UTF-8, which tables and the "
                "report need; rename it."
            ) from None
    if len(dataset.class_names) < min_classes:
        more = left_out(dataset.ignored)
        raise UserError(
            f"{dataset.name} has only one class, {dataset.class_names[0]}; a classifier needs at least two, so add the "
            f"images of another class.{folder.name_table(dataset.folder, dataset.ignored) if dataset.folder else more}"
        )
