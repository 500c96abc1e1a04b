"""A folder with a folder of images for each class, with or without train, val and test folders above them."""

import os
from collections.abc import Iterator
from pathlib import Path

from transfer_learning.datasets.dataset import Dataset, Example, with_class_names
from transfer_learning.datasets.decoding.decode import IMAGE_SUFFIXES
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

# Images of other kinds. Pillow decodes some of them, by libraries that were attacked more often than they were needed.
OTHER_SUFFIXES = frozenset(
    {
        ".heic",
        ".heif",
        ".avif",
        ".jxl",
        ".jp2",
        ".j2k",
        ".svg",
        ".psd",
        ".xcf",
        ".tga",
        ".ico",
        ".eps",
        ".raw",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".orf",
        ".rw2",
    }
)
LINK_BACK = "a link back to a folder that holds it, in which its files are found anyway"


def read(root: Path) -> Dataset:
    """Lists every file below `root`: each becomes an example or is ignored for a reason; nothing is opened.

    A class is the first folder below `root` (or below a split's folder) and holds all images under it. Where `root`
    holds nothing but one folder, as an unpacked archive often does, that folder is taken for it.

    Raises:
        UserError: images lie beside the class folders, where their class is unknown; folders named after splits lie
            beside others; or a class folder holds no image.
    """
    top = _top_folder(root)
    split_of = {entry.name: SPLIT_FOLDERS.get(entry.name.lower(), "") for entry in _folders(top)}
    has_splits = bool(split_of) and all(split_of.values())
    if not has_splits and "train" in split_of.values() and len(set(split_of.values()) - {""}) > 1:
        others = ", ".join(name for name, split in split_of.items() if not split)
        raise UserError(
            f"{top} holds folders named after splits and others ({others}); either splits or classes were expected, "
            "so move the others away."
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
            raise UserError(
                f"{path} lies beside the class folders of {root}; each image was expected in a folder named after "
                "its class, so move it into one."
            )
        examples.append(Example(name, folders[0], split, path))
    class_folders = [folder for split in _folders(top) for folder in _folders(split)] if has_splits else _folders(top)
    empty = sorted({folder.name for folder in class_folders} - {example.label for example in examples})
    if examples and empty:
        raise UserError(
            f"The folder {empty[0]} in {root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}), as a class has to; "
            "add some, or take the folder away."
        )
    return with_class_names(str(root), examples, ignored, root)


def files_below(folder: Path) -> Iterator[Path]:
    """All files below `folder`, however deep, in the order of their names; folders that are links are followed.

    A link back to a folder that holds it would lead round for ever: it is named like a file, for `reason_to_ignore`.
    """
    folders, above, listings = [folder], [_place(folder)], [_entries(folder)]
    while listings:
        if (entry := next(listings[-1], None)) is None:
            for levels in (folders, above, listings):
                levels.pop()
            continue
        path = folders[-1] / entry.name
        # A link to itself is no folder for Path, and an error for an entry of a listing, which else knows without asking.
        if not (path.is_dir() if entry.is_symlink() else entry.is_dir()) or (place := _place(path)) in above:
            yield path
        else:
            folders.append(path)
            above.append(place)
            listings.append(_entries(path))


def _place(folder: Path) -> tuple[int, int]:
    """What a folder is, by whatever links it was reached."""
    facts = folder.stat()
    return facts.st_dev, facts.st_ino


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


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
    if path.exists() and not path.is_file():  # to read a pipe would wait for ever; a broken link is named by `decode`
        return LINK_BACK if path.is_dir() else "neither a file nor a folder"
    if path.suffix.lower() in OTHER_SUFFIXES:
        return f"an image of a kind that is not decoded ({path.suffix.lower()}); convert it to JPEG or PNG to use it"
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        suffix = path.suffix.encode(errors="replace").decode()  # which is printed, and need be no text
        return f"not named like an image ({suffix or 'no suffix'})"
    return ""
