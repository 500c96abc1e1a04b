"""A folder with one subfolder of images per class, optionally inside train, val and test folders."""

import logging
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from transfer_learning.datasets.dataset import Dataset, Example, Note, with_class_names
from transfer_learning.datasets.decoding.formats import (
    IMAGE_SUFFIXES,
    OTHER_SUFFIXES,
    begins_like_an_image,
    count_by_suffix,
    suffix_of,
)
from transfer_learning.datasets.sources import layout
from transfer_learning.errors import UserError

# What operating systems, network storage, zip programs and Python leave behind.
LEFT_BEHIND = frozenset(
    "__macosx|__pycache__|#recycle|#snapshot|$recycle.bin|~snapshot|@eadir|@recently-snapshot|@recycle|@tmp|desktop.ini|"
    "ehthumbs.db|icon\r|lost+found|lost.dir|network trash folder|recycled|recycler|system volume information|"
    "temporary items|thumbs.db".split("|")
)
TABLE_SUFFIXES = (".csv", ".tsv")
LINK_BACK = "a link to one of its parent folders"


def read(root: Path) -> Dataset:
    """Lists every file below `root`, as an example or as ignored with a reason; only files without suffix are opened.

    A class is a folder right below `root`, or as `layout.understand` says, with all images in it at any depth. If
    `root` holds nothing but one folder, as an unpacked archive often does, that folder is used. A class folder without
    an image is left out.

    Raises:
        UserError: images lie beside the class folders, or the layout is not clear.
    """
    images, ignored = [], []
    for path in files_below(root):
        parts = path.parts[len(root.parts) :]  # takes a tenth of the time of relative_to
        if reason := reason_to_ignore(path, root):
            ignored.append(("/".join(parts), reason))
        else:
            images.append((path, parts[:-1]))
    others = {(Path(name).parent.parts, Path(name).suffix.lower()) for name, _ in ignored}
    tree = layout.tree_of(folder for _, folder in images)
    top, tree = _top_folder(root, tree, others)
    try:
        _refuse_stray_images(root, top, tree, images)
        found = layout.understand(tree, top, str(root.joinpath(*top)))
    except UserError as error:
        raise UserError(f"{error}{name_table(root, ignored)}") from None
    examples = []
    for path, folder in images:
        above = [folder[:depth] for depth in range(len(top) + 1, len(folder) + 1)]
        name = "/".join((*folder, path.name))
        if left_out := [found.left_out[place] for place in above if place in found.left_out]:
            ignored.append((name, left_out[0]))
        elif classes := [found.classes[place] for place in above if place in found.classes]:
            examples.append(Example(name, *classes[0], path))
        else:
            raise _stray(path, root)
    notes = [Note(logging.INFO, text) for text in found.notes]
    notes += [Note(logging.WARNING, text) for text in (*found.warnings, *_empty_classes(root, top, found, ignored))]
    return with_class_names(str(root), examples, sorted(ignored), root, notes)


def name_table(root: Path, ignored: Iterable[tuple[str, str]]) -> str:
    """A sentence about the table beside the images of a folder, which may have their labels; "" for none."""
    tables = sorted(
        (name for name, _ in ignored if suffix_of(name) in TABLE_SUFFIXES), key=lambda name: name.count("/")
    )
    return f" If {tables[0]} has their labels, pass --dataset {shlex.quote(str(root / tables[0]))}." if tables else ""


def _refuse_stray_images(root: Path, top: layout.Folder, tree: layout.Tree, images: list) -> None:
    """Raises UserError if images lie beside the class folders, or if there are no class folders."""
    if tree.num_images and tree.folders:
        raise _stray(next(path for path, folder in images if folder == top), root)
    if tree.num_images:
        raise UserError(
            f"{root.joinpath(*top)} holds {tree.num_images:,} images and no class folders; move each image into a folder "
            "of its class, as in cats/1.jpg, or give a table with the columns path,label."
        )


def _stray(path: Path, root: Path) -> UserError:
    return UserError(f"{path} lies beside the class folders of {root}; move it into the folder of its class.")


def _empty_classes(
    root: Path, top: layout.Folder, found: layout.Layout, ignored: list[tuple[str, str]]
) -> Iterator[str]:
    """A warning for each folder beside the class folders that has no image."""
    known = {label for label, _ in found.classes.values()} | {
        path[len(top)] for path in (*found.classes, *found.left_out)
    }
    beside = {path[:-1] for path in found.classes if path[-1] == found.classes[path][0]} | {top}
    empty = {folder.name: folder for place in sorted(beside) for folder in _folders(root.joinpath(*place))}
    for name in sorted(empty.keys() - known):
        inside = empty[name].relative_to(root).as_posix() + "/"
        holds = count_by_suffix(file for file, _ in ignored if file.startswith(inside)) or "nothing"
        yield (
            f"The folder {name} in {root} has no image (it holds {holds}) and is left out; add images, or remove it."
        )


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


def _top_folder(root: Path, tree: layout.Tree, others: set) -> tuple[layout.Folder, layout.Tree]:
    """The folder of the class (or split) folders: `root`, or the only folder below it that has images.

    Args:
        others: folder and suffix of the files that are no images.
    """
    top: layout.Folder = ()
    while not tree.num_images and len(tree.folders) == 1:
        [(name, inner)] = tree.folders.items()
        beside = [folder.name for folder in _folders(root.joinpath(*top)) if folder.name != name]
        if not inner.folders or not all(_has_only_texts((*top, other), others) for other in beside):
            break  # a class, alone or beside empty ones
        top, tree = (*top, name), inner
    return top, tree


def _has_only_texts(folder: layout.Folder, others: set) -> bool:
    """Whether a folder without images holds files all the same, and none that might be a photo: `annotations`."""
    suffixes = {suffix for place, suffix in others if place[: len(folder)] == folder}
    return bool(suffixes) and suffixes.isdisjoint(OTHER_SUFFIXES)


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or left behind by a zip program or an operating system."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def reason_to_ignore(path: Path, root: Path) -> str:
    """Why `path` is not an image of the dataset; "" if it is."""
    if any(map(is_hidden, path.parts[len(root.parts) :])):
        return "hidden, or left behind by a zip program or the system"
    if not path.is_file() and path.exists():  # reading a pipe would block; `decode` reports a broken link
        return LINK_BACK if path.is_dir() else "neither a file nor a folder"
    suffix = suffix_of(path)
    if suffix in OTHER_SUFFIXES:
        return f"unsupported image format ({suffix}); convert it to JPEG or PNG to use it"
    if suffix in IMAGE_SUFFIXES or not suffix and begins_like_an_image(path):
        return ""
    printable = path.suffix.encode(errors="replace").decode()  # a name need not be UTF-8
    return f"not named like an image ({printable})" if printable else "no suffix, and no image inside"
