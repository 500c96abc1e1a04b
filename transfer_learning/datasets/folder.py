"""A folder with a folder of images for each class, with or without train, val and test folders above them."""

from pathlib import Path

from transfer_learning.datasets.dataset import Dataset, Example, with_class_names
from transfer_learning.datasets.decode import IMAGE_SUFFIXES
from transfer_learning.errors import UserError

SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def read(root: Path) -> Dataset:
    """Lists every file below `root`: each becomes an example or is ignored for a reason; nothing is opened.

    A class is the first folder below `root` (or below a split's folder) and holds all images under it. Where `root`
    holds nothing but one folder, as an unpacked archive often does, that folder is taken for it.

    Raises:
        UserError: images lie beside the class folders, where their class is unknown.
    """
    top = _top_folder(root)
    split_of = {entry.name: SPLIT_FOLDERS.get(entry.name.lower(), "") for entry in _folders(top)}
    has_splits = bool(split_of) and all(split_of.values())
    examples, ignored = [], []
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            continue
        name = path.relative_to(root).as_posix()
        if reason := reason_to_ignore(path, root):
            ignored.append((name, reason))
            continue
        parts = path.relative_to(top).parts if path.is_relative_to(top) else ()
        split = split_of.get(parts[0], "") if has_splits and parts else ""
        folders = parts[1 if split else 0 : -1]
        if not folders:
            raise UserError(
                f"{path} lies beside the class folders of {root}; each image was expected in a folder named after "
                "its class, so move it into one."
            )
        examples.append(Example(name, folders[0], split, path))
    return with_class_names(str(root), examples, ignored)


def _top_folder(root: Path) -> Path:
    """The folder that holds the class (or split) folders: `root`, or below it where one folder wraps all the others."""
    top = root
    while True:
        folders = _folders(top)
        if len(folders) != 1 or any(not reason_to_ignore(path, root) for path in top.iterdir() if path.is_file()):
            return top
        if not _folders(folders[0]):  # a single class: its images lie right inside
            return top
        top = folders[0]


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not _is_rubbish(entry.name))


def _is_rubbish(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def reason_to_ignore(path: Path, root: Path) -> str:
    """Why `path` is no image of the dataset, or nothing."""
    if any(_is_rubbish(part) for part in path.relative_to(root).parts):
        return "hidden, or left behind by a zip program or the system"
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return f"not named like an image ({path.suffix or 'no suffix'})"
    return ""
