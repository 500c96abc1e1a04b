"""Which folders are classes and which are splits, decided by the names of the folders that hold images."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from transfer_learning.cli.formatting import counted, listed
from transfer_learning.datasets.split_names import FILLERS, is_unlabelled, split_and_rest, split_of
from transfer_learning.errors import UserError

Folder = tuple[str, ...]  # names below the root
PART = re.compile(r"(fold|part|batch|shard|chunk)s?[ _.-]*\d+", re.IGNORECASE)  # of a set in several folders
NUM_NAMED = 5
FOR_PREDICTION = "after training, `transfer-learning predict RUN_DIR` takes them"


@dataclass
class Tree:
    """A folder: the number of its images, and its subfolders with images at any depth."""

    num_images: int = 0
    folders: dict[str, "Tree"] = field(default_factory=dict)


class Layout(NamedTuple):
    """What the folders mean."""

    classes: dict[Folder, tuple[str, str]]  # folder of a class, with all below it: class name, split ("" for none)
    left_out: dict[Folder, str]  # folder whose images are not used: the reason
    notes: tuple[str, ...] = ()  # what is not obvious
    warnings: tuple[str, ...] = ()


def tree_of(folders: Iterable[Folder]) -> Tree:
    """The tree of the folders of all images, one entry per image."""
    root = Tree()
    for folder in folders:
        place = root
        for name in folder:
            place = place.folders.setdefault(name, Tree())
        place.num_images += 1
    return root


def understand(tree: Tree, top: Folder, where: str) -> Layout:
    """Decides which folders are classes.

    Args:
        tree: the folder of the class or split folders, see `tree_of`.
        top: its place below the root of the dataset.
        where: its path, for messages.

    Raises:
        UserError: the folders could be read in two ways, or split folders have no class folders.
    """
    if layout := _splits_above_classes(tree, top, where) or _splits_below_classes(tree, top, where):
        return layout
    if common := _common_names(tree):
        outer = {name: _without_wrapper(folder, top + (name,)) for name, folder in tree.folders.items()}
        if all(map(PART.fullmatch, tree.folders)):
            classes = {path + (label,): (label, "") for path, inner in outer.values() for label in inner.folders}
            return Layout(classes, {}, (f"The classes are the folders inside {_named(tree.folders)} of {where}.",))
        first = next(iter(tree.folders))
        raise UserError(
            f"{where} has the same folders ({_named(common)}) in each of its folders ({_named(tree.folders)}), so either "
            f"could be the classes; pass one of them, such as --dataset '{where}/{first}', rename splits to train, val and "
            "test, or give a table with the columns path,label of all images."
        )
    notes = [
        f"The folder {name} of {where} counts as a class, not as a split, since it lies beside "
        f"{_named(other for other in tree.folders if other != name)}."
        for name in tree.folders
        if split_of(name)
    ]
    return Layout({top + (name,): (name, "") for name in tree.folders}, {}, tuple(notes))


def _splits_above_classes(tree: Tree, top: Folder, where: str) -> Layout | None:
    """The layout of split folders that hold class folders; None for any other.

    Raises:
        UserError: there are split folders, but it is not clear which folders are the classes.
    """
    found = {name: split_and_rest(name) for name in tree.folders}
    splits = {name: split for name, (split, _) in found.items() if split and not is_unlabelled(name)}
    if not splits or len({rest for name, (_, rest) in found.items() if name in splits}) > 1:
        return None  # `train` and `test tube` are no splits of one set
    unlabelled = [name for name in tree.folders if name not in splits and is_unlabelled(name)]
    others = [name for name in tree.folders if name not in splits and name not in unlabelled]
    nested = [name for name in splits if tree.folders[name].folders]
    if others or not (nested or len(splits) > 1):
        is_ambiguous = any(splits[name] == "train" for name in nested) and not any(
            tree.folders[name].folders for name in others
        )
        if others and ((len(set(splits.values())) > 1 and "train" in splits.values()) or is_ambiguous):
            raise UserError(
                f"{where} has split folders ({_named(splits)}) and other folders ({_named(others)}); either splits or "
                "classes were expected, so move the others away, or rename a class that is called like a split."
            )
        return None
    inner = {name: _without_wrapper(tree.folders[name], top + (name,), splits[name]) for name in splits}
    trained = {label for name in splits if splits[name] == "train" for label in inner[name][1].folders}
    classes: dict[Folder, tuple[str, str]] = {}
    left_out = dict.fromkeys([top + (name,) for name in unlabelled], "beside the split folders")
    warnings = []
    for name in unlabelled:
        warnings.append(f"The folder {name} of {where} is not used: it is none of the splits {_named(splits)}.")
    for name, split in splits.items():
        path, folder = inner[name]
        is_flat = not folder.folders or (
            # test/unknown/1.jpg: a folder that only Keras' loaders want
            split != "train" and len(folder.folders) == 1 and len(trained) > 1 and not trained & folder.folders.keys()
        )
        if is_flat and split != "train" and trained:
            count = counted(_count(folder), "image")
            left_out[top + (name,)] = f"without class folders inside {name}"
            warnings.append(
                f"The folder {name} of {where} holds {count} without class folders, so it is not used; {FOR_PREDICTION}."
            )
        elif not folder.folders:
            raise UserError(
                f"{where} has the split folders {_named(splits)}, and {name} has no class folders; move its images into "
                "class folders, or give a table with the columns path,label,split (if it is a class, rename it)."
            )
        classes |= {path + (label,): (label, split) for label in folder.folders if top + (name,) not in left_out}
    notes = [_note(splits, where)] if any(name.lower() != split for name, split in splits.items()) else []
    return Layout(classes, left_out, tuple(notes), tuple(warnings))


def _splits_below_classes(tree: Tree, top: Folder, where: str) -> Layout | None:
    """The layout of class folders that hold split folders, as in MVTec AD; None for any other.

    Raises:
        UserError: some classes have split folders and others have not, or each split holds the same folders.
    """
    outer = {name: _without_wrapper(folder, top + (name,)) for name, folder in tree.folders.items()}
    splits = {name: {inner: split_of(inner) for inner in folder.folders} for name, (_, folder) in outer.items()}
    has_splits = [
        name
        for name, of_class in splits.items()
        if "train" in of_class.values() and len({*of_class.values()} - {""}) > 1
    ]
    if not has_splits:
        return None
    all_splits = {inner: split for of_class in splits.values() for inner, split in of_class.items() if split}
    for name, of_class in splits.items():
        folder = outer[name][1]
        others = [inner for inner, split in of_class.items() if not split and not is_unlabelled(inner)]
        if folder.num_images or others or not any(of_class.values()):
            beside = f"other folders ({_named(others)})" if others else "images that are in none"
            raise UserError(
                f"{where}/{has_splits[0]} has split folders ({_named(splits[has_splits[0]])}), and {where}/{name} has "
                f"{beside}; give every class the same splits, or a table with the columns path,label,split."
            )
    below = Tree(folders={f"{name}/{inner}": tree for name in outer for inner, tree in outer[name][1].folders.items()})
    if (common := _common_names(below)) and len(tree.folders) > 1:
        raise UserError(
            f"{where} has the same folders ({_named(common)}) in the splits of each of its folders "
            f"({_named(tree.folders)}), so either could be the classes; pass one of them, such as --dataset "
            f"'{where}/{next(iter(tree.folders))}'."
        )
    classes, left_out = {}, {}
    for name, (path, folder) in outer.items():
        for inner in folder.folders:
            if split := splits[name][inner]:
                classes[path + (inner,)] = (name, split)
            else:
                left_out[path + (inner,)] = "beside the split folders of its class"
    names = {path[-1] for path in left_out}
    warnings = (
        [f"The folders {_named(sorted(names))} inside the classes are not used: they are no splits."] if names else []
    )
    note = f"Each class has split folders. {_note(all_splits, where)}"
    return Layout(classes, left_out, (note,), tuple(warnings))


def _common_names(tree: Tree) -> list[str]:
    """The names that (nearly) all folders of `tree` have inside; [] if each has folders of its own, or images."""
    inner = [_without_wrapper(folder, ())[1] for folder in tree.folders.values()]
    if len(inner) < 2 or any(folder.num_images for folder in inner):
        return []
    common = set.intersection(*(set(folder.folders) for folder in inner))
    every = set().union(*(folder.folders for folder in inner))
    return sorted(common) if len(common) > 1 and 2 * len(common) >= len(every) else []


def _without_wrapper(folder: Tree, path: Folder, split: str = "") -> tuple[Folder, Tree]:
    """The folder inside, if it is the only one and has no name of its own: ``train/train``, ``test/images``."""
    while not folder.num_images and len(folder.folders) == 1:
        [(name, inner)] = folder.folders.items()
        words = re.findall(r"[^\W\d_]+", name.lower())
        is_filler = bool(words) and FILLERS.issuperset(words)
        is_repeated = (name,) == path[-1:] or (split != "" and split_and_rest(name)[0] == split)
        if not is_filler and not is_repeated:
            break
        path, folder = path + (name,), inner
    return path, folder


def _count(tree: Tree) -> int:
    return tree.num_images + sum(map(_count, tree.folders.values()))


def _note(splits: dict[str, str], where: str) -> str:
    return f"Splits of {where}: {', '.join(f'{name} is {split}' for name, split in splits.items())}."


def _named(names: Iterable[str]) -> str:
    return listed(list(names), NUM_NAMED)
