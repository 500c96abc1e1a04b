"""ImageNet-1K: 1,281,167 training images of 1,000 classes and 50,000 official validation images; or a part of it.

Source: image-net.org, ILSVRC 2012 (Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015);
needs an account there, at Kaggle (imagenet-object-localization-challenge) or at Hugging Face (ILSVRC/imagenet-1k).
"""

import csv
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from transfer_learning.datasets.dataset import Dataset, Example, with_class_names
from transfer_learning.datasets.sources import huggingface
from transfer_learning.datasets.sources.folder import files_below, reason_to_ignore
from transfer_learning.errors import UserError

logger = logging.getLogger(__name__)

HUB_NAME = "ILSVRC/imagenet-1k"
NUM_CLASSES = 1000
KAGGLE_FOLDER = "ILSVRC/Data/CLS-LOC"
# Places of the lists below the dataset's folder; the devkit's archive has a folder of its own.
PLACES_OF_LISTS = ("", "devkit", "devkit/data", "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12/data", "val")
GROUND_TRUTH, SYNSETS = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
KAGGLE_SOLUTION, KAGGLE_WORDS = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
LAYOUT = (
    "train/n01440764/*.JPEG and so on, and val/ likewise or with all images side by side and the devkit's "
    f"{GROUND_TRUTH} and {SYNSETS} next to it; or Kaggle's archive; or what save_to_disk of Hugging Face Datasets "
    "writes"
)
UNPACKING = (
    "mkdir train val; tar xf ILSVRC2012_img_train.tar -C train; tar xf ILSVRC2012_img_val.tar -C val; "
    "for t in train/*.tar; do mkdir ${t%.tar}; tar xf $t -C ${t%.tar}; rm $t; done"
)


def load(data_dir: Path) -> Dataset:
    """Reads ``data_dir/imagenet`` (class folders, or saved by Hugging Face Datasets), else Hugging Face's dataset;
    UserError if there is neither, or the layout is unknown.

    The official validation images become the split `test`; the split `val` is drawn from the training images. Classes
    are in the order of their WordNet ids, as for all published weights, and named by the id and the first word of its
    description; from Hugging Face, by all words.
    """
    root = data_dir / "imagenet"
    if huggingface.is_saved(root):
        dataset = _validation_as_test(huggingface.read(str(root), data_dir))
    elif root.is_dir():
        dataset = _read(root)
    else:
        logger.info(f"Loading {HUB_NAME} from Hugging Face ({root} does not exist).")
        try:
            dataset = _validation_as_test(huggingface.read(HUB_NAME, data_dir))
        except UserError as error:
            raise UserError(f"The dataset imagenet is not in {root} ({LAYOUT}). {error}") from None
    if len(dataset.class_names) != NUM_CLASSES:
        logger.info(f"imagenet: {len(dataset.class_names):,} of {NUM_CLASSES:,} classes.")
    return replace(dataset, name="imagenet")


def _validation_as_test(dataset: Dataset) -> Dataset:
    examples = (example._replace(split="test") if example.split == "val" else example for example in dataset.examples)
    return replace(dataset, examples=tuple(examples))


def _read(root: Path) -> Dataset:
    top = root / KAGGLE_FOLDER if (root / KAGGLE_FOLDER).is_dir() else root
    train, val = top / "train", top / "val"
    tars = [path.name for path in sorted((train if train.is_dir() else top).glob("*.tar"))]
    if not train.is_dir() or not val.is_dir() or tars:
        raise UserError(
            f"{top} does not hold the unpacked images ({LAYOUT}); "
            + (f"unpack {tars[0]} and the other archives: {UNPACKING}" if tars else "put them there")
            + "; --dataset drawn_pills needs no download."
        )
    words = _words(root)
    name_of = {folder.name: f"{folder.name} {words.get(folder.name, '')}".strip() for folder in train.iterdir()}
    examples: list[Example] = []
    ignored = [
        (path.relative_to(top).as_posix(), "beside train and val")
        for entry in sorted(top.iterdir())
        if entry not in (train, val)
        for path in (files_below(entry) if entry.is_dir() else (entry,))
    ]

    def take(folder: Path, split: str, wnid_of: Callable[[Path], str]) -> None:
        for path in files_below(folder):
            reason, wnid = reason_to_ignore(path, folder), wnid_of(path)
            if not reason and wnid not in name_of:
                reason = f"its class {wnid} is not in train" if wnid else "in no list of labels"
            if reason:
                ignored.append((path.relative_to(top).as_posix(), reason))
            else:
                examples.append(Example(path.relative_to(top).as_posix(), name_of[wnid], split, path))

    take(train, "train", lambda path: path.parent.name)
    has_folders = any(entry.is_dir() for entry in val.iterdir())
    labels = {} if has_folders else _validation_labels(root)
    take(val, "test", lambda path: path.parent.name if has_folders else labels.get(path.stem, ""))
    return with_class_names(str(root), examples, ignored, top)


def _validation_labels(root: Path) -> dict[str, str]:
    """The WordNet id of each validation image by its file name: ``{"ILSVRC2012_val_00000001": "n01751748"}``."""
    ground_truth, synsets, solution = (_list(root, name) for name in (GROUND_TRUTH, SYNSETS, KAGGLE_SOLUTION))
    if ground_truth and synsets:
        # The numbers are the devkit's own, defined in meta.mat; they are not positions of the sorted ids.
        wnid_of = {number: wnid for number, wnid, _ in _synsets(synsets)}
        try:
            numbers = map(int, ground_truth.read_text(encoding="utf-8").split())
            return {f"ILSVRC2012_val_{place:08d}": wnid_of[number] for place, number in enumerate(numbers, 1)}
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{ground_truth} is damaged or belongs to another {SYNSETS} (at {error}); a line with a number from "
                f"1 to {NUM_CLASSES:,} for each image was expected, so fetch the devkit of 2012 again."
            ) from None
    if solution:
        try:
            with open(solution, encoding="utf-8", newline="") as file:
                return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
        except (ValueError, KeyError, IndexError, AttributeError, csv.Error) as error:
            raise UserError(
                f"{solution} is damaged (at {error}); the columns ImageId,PredictionString were expected, so fetch "
                "it again."
            ) from None
    raise UserError(
        f"The images in val have no class folders, and {root} has no list of their classes; put the devkit's "
        f"{GROUND_TRUTH} and {SYNSETS}, or Kaggle's {KAGGLE_SOLUTION}, there."
    )


def _words(root: Path) -> dict[str, str]:
    """The first word of the description of each WordNet id in the lists."""
    words = {}
    if synsets := _list(root, SYNSETS):
        words = {wnid: text for _, wnid, text in _synsets(synsets)}
    elif mapping := _list(root, KAGGLE_WORDS):
        lines = mapping.read_text(encoding="utf-8", errors="replace").splitlines()
        words = {wnid: text for wnid, _, text in (line.partition(" ") for line in lines)}
    return {wnid: text.split(",")[0].strip() for wnid, text in words.items()}


def _synsets(path: Path) -> list[tuple[int, str, str]]:
    """(number, WordNet id, words) of each row of the devkit's meta.mat."""
    from scipy.io import loadmat

    try:
        rows = loadmat(path, squeeze_me=True)["synsets"]
        return [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"])) for row in rows]
    except Exception as error:  # a damaged file may raise nearly anything
        problem = f"is not the devkit's {SYNSETS} of 2012 ({str(error)[:100]})"
        raise UserError(f"{path} {problem}; fetch the devkit again.") from None


def _list(root: Path, name: str) -> Path | None:
    return next((path for place in PLACES_OF_LISTS if (path := root / place / name).is_file()), None)
