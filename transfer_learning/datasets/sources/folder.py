"""A folder with one subfolder of images per class, optionally inside train, val and test folders."""

import os
from collections.abc import Iterator
from pathlib import Path

from transfer_learning.datasets.dataset import Dataset, Example, with_class_names
from transfer_learning.datasets.decoding.formats import IMAGE_SUFFIXES, OTHER_SUFFIXES, begins_like_an_image, suffix_of
from transfer_learning.errors import UserError

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

LINK_BACK = "a link to one of its parent folders"


def read(root: Path) -> Dataset:
    """Lists every file below `root`, as an example or as ignored with a reason; only files without suffix are opened.

    A class is a folder right below `root` (or below a split folder), with all images in it at any depth. If `root`
    holds nothing but one folder, as an unpacked archive often does, that folder is used.

    Raises:
        UserError: images lie beside the class folders; split folders lie beside other folders; or a class folder has no
            image.
    """
    top = _top_folder(root)
    split_of = {entry.name: SPLIT_FOLDERS.get(entry.name.lower(), "") for entry in _folders(top)}
    has_splits = bool(split_of) and all(split_of.values())
    if not has_splits and "train" in split_of.values() and len(set(split_of.values()) - {""}) > 1:
        others = ", ".join(name for name, split in split_of.items() if not split)
        raise UserError(
            f"{top} has split folders and other folders ({others}); either splits or classes were expected, so move "
            "the others away."
        )
    examples, ignored = [], []
    for path in files_below(root):
        name = path.relative_to(root).as_posix()
        if reason := reason_to_ignore(path, root):
            ignored.append((name, reason))
            continue
        parts = path.relative_to(top).parts if path.is_relative_to(top) else ()
        split = split_of.get(parts[0], "") if has_splits and parts else ""
        folders = parts[1 if split else 0 : -1]
        if not folders:
            raise UserError(f"{path} lies beside the class folders of {root}; move it into the folder of its class.")
        examples.append(Example(name, folders[0], split, path))
    class_folders = [folder for split in _folders(top) for folder in _folders(split)] if has_splits else _folders(top)
    empty = sorted({folder.name for folder in class_folders} - {example.label for example in examples})
    if examples and empty:
        raise UserError(
            f"The folder {empty[0]} in {root} has no image ({', '.join(sorted(IMAGE_SUFFIXES))}); add images, or "
            "remove the folder."
        )
    return with_class_names(str(root), examples, ignored, root)


def files_below(folder: Path) -> Iterator[Path]:
    """All files below `folder`, at any depth, in the order of their names; links to folders are followed.

    A link to one of its parent folders is yielded like a file, for `reason_to_ignore`.
    """
    folders, above, listings = [folder], [_place(folder)], [_entries(folder)]
    while listings:
        if (entry := next(listings[-1], None)) is None:
            for levels in (folders, above, listings):
                levels.pop()
            continue
        path = folders[-1] / entry.name
        # entry.is_dir() is faster, but raises for a link to itself.
        if not (path.is_dir() if entry.is_symlink() else entry.is_dir()) or (place := _place(path)) in above:
            yield path
        else:
            folders.append(path)
            above.append(place)
            listings.append(_entries(path))


def _place(folder: Path) -> tuple[int, int]:
    """Identifies a folder, whatever links lead to it."""
    facts = folder.stat()
    return facts.st_dev, facts.st_ino


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


def _top_folder(root: Path) -> Path:
    """The folder of the class (or split) folders: `root`, or a single folder below it."""
    top = root
    while True:
        folders = _folders(top)
        if len(folders) != 1 or any(not reason_to_ignore(path, root) for path in top.iterdir() if path.is_file()):
            return top
        if not _folders(folders[0]):  # a single class folder
            return top
        top = folders[0]


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or left behind by a zip program or an operating system."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def reason_to_ignore(path: Path, root: Path) -> str:
    """Why `path` is not an image of the dataset; "" if it is."""
    if any(is_hidden(part) for part in path.relative_to(root).parts):
        return "hidden, or left behind by a zip program or the system"
    if path.exists() and not path.is_file():  # reading a pipe would block; `decode` reports a broken link
        return LINK_BACK if path.is_dir() else "neither a file nor a folder"
    suffix = suffix_of(path)
    if suffix in OTHER_SUFFIXES:
        return f"unsupported image format ({suffix}); convert it to JPEG or PNG to use it"
    if suffix in IMAGE_SUFFIXES or not suffix and begins_like_an_image(path):
        return ""
    printable = path.suffix.encode(errors="replace").decode()  # a name need not be UTF-8
    return f"not named like an image ({printable})" if printable else "no suffix, and no image inside"
