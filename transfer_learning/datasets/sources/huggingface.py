"""Datasets of Hugging Face, from the hub or a folder, loaded with the library `datasets`.

``hf:PLACE`` is a dataset of the hub (``hf:AI-Lab-Makerere/beans``) or a folder: one written by `save_to_disk`, or
anything that `load_dataset` reads. ``,config=``, ``,image=`` and ``,label=`` choose a configuration and columns where
there are several: ``hf:uoft-cs/cifar100,label=fine_label``. Datasets that need to run code of their own are refused.

The library stores all rows in Arrow files, with the images still encoded. Only the place of each image in its file is
taken from them, so no image is in memory before it is decoded.
"""

import os
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer_learning.datasets.dataset import Dataset, Example, FilePart, Source
from transfer_learning.datasets.split_names import split_of
from transfer_learning.errors import UserError, did_you_mean, needs_extra

if TYPE_CHECKING:
    import datasets
    import pyarrow

OPTIONS = ("config", "image", "label")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "category", "target")  # of a column that is not a ClassLabel
LABEL_TYPES = "string large_string bool int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()
NETWORK_ERRORS = set(
    "ConnectionError TimeoutError ConnectError ConnectTimeout ReadTimeout ProxyError OfflineModeIsEnabled "
    "LocalEntryNotFoundError".split()
)


def read(place: str, data_dir: Path) -> Dataset:
    """Downloads to Hugging Face's own cache (moved by HF_HOME) what is missing, and lists every row.

    Ignored, each with a reason: splits other than train, validation and test, if there are several splits; and rows
    without an image or a label (-1 on the hub, as in the test split of ImageNet). A ClassLabel gives the order of
    classes. UserError if the dataset is missing, private or unreachable, or its columns are ambiguous.
    """
    name, options = _parsed(place)
    tables = _load(name, options.get("config"))
    features = next(iter(tables.values())).features
    image, label = _columns(place, features, options)
    splits = {split: split_of(split) or None if len(tables) > 1 else "" for split in tables}
    if "train" not in splits.values() and len(tables) > 1:
        raise UserError(
            f"hf:{place} has the splits {', '.join(tables)}, and none is train; save it with such a split by "
            "save_to_disk, and pass hf:FOLDER."
        )
    names = getattr(features[label], "names", None)  # of a ClassLabel
    folders = _folders_of_images(name)
    examples, ignored, labels = [], [], set()
    for split, table in tables.items():
        if (named := splits[split]) is None:
            ignored.append((f"{split} ({len(table):,} rows)", "a split that is neither train, validation nor test"))
            continue
        files = [file["filename"] for file in table.cache_files]
        rows = _rows(place, files, image, label if label in table.features else None, folders)
        for number, (content, value) in enumerate(rows):
            id = f"{split}/{number:07d}" if split else f"{number:07d}"
            if content is None:
                ignored.append((id, "a row without an image"))
            elif value in (None, "") or (type(value) is int and value < 0):
                ignored.append((id, "a row without a label"))
            else:
                labels.add(value)
                examples.append(Example(id, names[value] if names else str(value), named, content))
    if names:
        ignored += [(name, "a class without an image") for value, name in enumerate(names) if value not in labels]
    class_names = tuple(names[value] if names else str(value) for value in sorted(labels))
    return Dataset(f"hf:{place}", class_names, tuple(examples), tuple(ignored))


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))


def _parsed(place: str) -> tuple[str, dict[str, str]]:
    """``"beans,label=labels"`` -> ``("beans", {"label": "labels"})``."""
    if Path(place).exists():
        return place, {}
    name, *parts = place.split(",")
    options = dict(part.partition("=")[::2] for part in parts)
    for option, value in options.items():
        if option not in OPTIONS or not value:
            raise UserError(
                f"hf:{place} has the option {option!r}; config=, image= or label= with a name was expected."
                f"{did_you_mean(option, OPTIONS)}"
            )
    return name, options


def _load(name: str, config: str | None) -> Mapping[str, "datasets.Dataset"]:
    """The tables of a dataset by their splits; "" where a single one has no name."""
    with needs_extra("hf"):
        import datasets  # takes a second

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if is_saved(Path(name)):
            loaded = datasets.load_from_disk(name, keep_in_memory=False)
        else:
            loaded = datasets.load_dataset(name, config, keep_in_memory=False)
    except Exception as error:  # besides its own, the library passes on what the network, pyarrow and the disk raise
        raise _explained(name, error) from None
    return loaded if isinstance(loaded, dict) else {str(loaded.split or ""): loaded}


def _explained(name: str, error: Exception) -> UserError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    reason = ": ".join(str(cause) or type(cause).__name__ for cause in (error, error.__cause__) if cause)
    short = textwrap.shorten(reason, 200, placeholder=" ...")
    otherwise = "a folder of class folders, or --dataset drawn_pills, needs no network"
    if "gated dataset" in reason or "GatedRepoError" in kinds:
        return UserError(
            f"hf:{name} is gated: accept its terms on https://huggingface.co/datasets/{name}, log in with `hf auth "
            f"login`, and run again; {otherwise}."
        )
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        return UserError(
            f"There is no folder {name}, and no such dataset on the hub, or it is private ({short}); correct the "
            f"name as on huggingface.co/datasets, or log in with `hf auth login`; {otherwise}."
        )
    if kinds & NETWORK_ERRORS:
        return UserError(
            f"hf:{name} is not a folder, and huggingface.co cannot be reached ({short}); on a machine with network, "
            f"save it by datasets.load_dataset({name!r}).save_to_disk(FOLDER), copy it here and pass hf:FOLDER; "
            f"{otherwise}."
        )
    if "scripts are no longer supported" in reason:
        return UserError(
            f"hf:{name} is a script, and foreign code is not run; look on its page for a version in Parquet files; "
            f"{otherwise}."
        )
    if "onfig" in reason and isinstance(error, ValueError):
        return UserError(f"hf:{name} has several configurations ({short}); name one, as in hf:{name},config=NAME.")
    return UserError(f"hf:{name} cannot be read ({short}); a dataset of images was expected; {otherwise}.")


def _columns(place: str, features: Mapping[str, Any], options: Mapping[str, str]) -> tuple[str, str]:
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [name for name, feature in features.items() if getattr(feature, "dtype", "") in LABEL_TYPES]
    likely = classes or [name for name in plain if name in LABEL_NAMES]
    columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    image = _chosen(place, columns, "image", images, images, options.get("image"))
    return image, _chosen(
        place, columns, "label", likely, list(dict.fromkeys([*classes, *plain])), options.get("label")
    )


def _chosen(place: str, columns: str, what: str, likely: list[str], possible: list[str], wanted: str | None) -> str:
    """The requested column, else the only likely one, else the likely one with a usual name."""
    if wanted:
        if wanted not in possible:
            raise UserError(
                f"hf:{place} asks for the {what} column {wanted}, and the columns that can be it are "
                f"{', '.join(possible) or 'none'} of {columns}.{did_you_mean(wanted, possible)}"
            )
        return wanted
    if len(likely) == 1:
        return likely[0]
    if found := [name for name in ("image", "img", "label", "labels") if name in likely]:
        return found[0]
    if not possible:
        raise UserError(
            f"hf:{place} has no {what} column among {columns}; a dataset of images with one label each was expected."
        )
    raise UserError(
        f"hf:{place} has the columns {columns}, and {' or '.join(likely or possible)} may be the {what}; choose one, "
        f"as in hf:{place},{what}={(likely or possible)[0]}."
    )


def _folders_of_images(name: str) -> list[str]:
    """Folders in which images that are files of their own may lie: the named one, and the library's caches."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    fetched = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    named = (name,) if Path(name).is_dir() else ()
    return [real(folder) for folder in (*named, *fetched) for real in (os.path.abspath, os.path.realpath)]


def _rows(
    place: str, files: list[str], image: str, label: str | None, folders: list[str]
) -> Iterator[tuple[Source | None, Any]]:
    """The place of each row's image and its label; None for a missing one.

    The files are Arrow streams, whose buffers are in the file as in memory; each is mapped only while it is listed.
    """
    import pyarrow

    for file in files:
        path = Path(file)
        with pyarrow.memory_map(file) as source:
            whole = source.read_buffer()
            source.seek(0)
            for batch in pyarrow.ipc.open_stream(source):
                images = batch.column(image)
                values = batch.column(label).to_pylist() if label else [None] * len(batch)
                starts, lengths = _places(images.field("bytes"), whole)
                links = images.field("path").to_pylist()
                for start, length, link, value in zip(starts, lengths, links, values, strict=True):
                    if length:
                        if not 0 <= start <= whole.size - length:
                            raise UserError(
                                f"hf:{place} has compressed columns in {file}; save it to another folder with "
                                "datasets.load_from_disk and save_to_disk, and pass hf:FOLDER."
                            )
                        yield FilePart(path, start, length), value
                    elif link and "://" in link:
                        raise UserError(
                            f"hf:{place} has links instead of images ({link}); download the images, and pass their "
                            "folder."
                        )
                    elif link:
                        path_of_image = Path(os.path.abspath(link))
                        if not any(path_of_image.is_relative_to(folder) for folder in folders):
                            raise UserError(
                                f"hf:{place} asks for the file {link}, which is outside of it; if it is your image, "
                                "copy it into a folder of its class, and pass the folder above."
                            )
                        yield path_of_image, value
                    else:
                        yield None, value


def _places(encoded: "pyarrow.BinaryArray", whole: "pyarrow.Buffer") -> tuple[list[int], list[int]]:
    """The offset of each value in the file that `whole` maps, and its length, 0 for a missing value."""
    _, offsets, data = encoded.buffers()
    offsets = np.frombuffer(offsets, np.int32 if encoded.type == "binary" else np.int64)
    offsets = offsets[encoded.offset : encoded.offset + len(encoded) + 1].astype(np.int64)
    starts = offsets[:-1] + (data.address - whole.address if data else 0)
    lengths = np.where(encoded.is_valid().to_numpy(zero_copy_only=False), np.diff(offsets), 0)
    return starts.tolist(), lengths.tolist()
