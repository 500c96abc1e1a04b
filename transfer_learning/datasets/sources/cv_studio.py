"""Projects of IBM's CV Studio and Cloud Annotations: images, and an `_annotations.json` with their labels.

``{"version": "1.0", "type": "localization", "labels": ["stop", "other"], "annotations": {"1.jpg": [{"label": "stop",
"x": 0.1, "y": 0.2, "x2": 0.4, "y2": 0.8}]}}``; in a project of type "classification" the labels have no boxes. Source:
Cloud Annotations, "Uploading images/labels via API".

Images lie beside the file, or in its folder `images`. `read` gives an image the one label that it has, in any number of
boxes; images with several labels or none are ignored. `read_boxes` cuts out each box with its own label. Coordinates
are fractions of the image's sides, or pixels if one of them is above 2; boxes are clipped to the image, and empty boxes
and labels that the project does not list are ignored. Everything ignored is reported with its reason.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from transfer_learning.datasets.dataset import Dataset, Example, left_out, with_class_names
from transfer_learning.datasets.decoding.decode import content_hash, decode, full_size, read_file, upright
from transfer_learning.datasets.sources import s3
from transfer_learning.datasets.sources.folder import files_below, reason_to_ignore
from transfer_learning.errors import UserError
from transfer_learning.machine.resources import usable_cores
from transfer_learning.storage.files import written_atomically

ANNOTATIONS = "_annotations.json"
IMAGES = "images/"  # the folder that CV Studio's client creates
SIDES = ("x", "y", "x2", "y2")  # of a box: left, top, right, bottom
LARGEST_FRACTION = 2.0  # larger coordinates are pixels: a box may extend beyond the edge, but not that far
FARTHEST = 1e9  # in pixels


class AnnotatedImage(NamedTuple):
    """A labelled image of the project."""

    name: str  # the path below the project's folder
    path: Path
    annotations: dict[int, dict[str, Any]]  # by number from 1 on; without those of unlisted labels


def read(place: str, data_dir: Path) -> Dataset:
    """Reads the whole images of a project.

    Args:
        place: its folder, or ``s3://BUCKET/PREFIX``.

    Raises:
        UserError: the project is missing, or its annotations are damaged.
    """
    images, ignored = _annotated_images(place, data_dir)
    examples = []
    for image in images:
        labels = sorted({annotation["label"] for annotation in image.annotations.values()})
        if len(labels) == 1:
            examples.append(Example(image.name, labels[0], "", image.path))
        else:
            ignored.append((image.name, f"has the labels {', '.join(labels)}; one was expected"))
    return _dataset(f"cv_studio:{place}", examples, ignored)


def read_boxes(place: str, data_dir: Path) -> Dataset:
    """Reads the boxes of a project, cut out of their images into files below ``data_dir/cv_studio_boxes``.

    All boxes of an image share a split. Arguments and errors: as `read`.
    """
    images, ignored = _annotated_images(place, data_dir)
    examples = []
    threads = ThreadPoolExecutor(usable_cores())  # Pillow releases Python's lock
    try:
        cuts = threads.map(lambda image: _cut(image, data_dir / "cv_studio_boxes"), images)
        for image, crops in zip(images, cuts, strict=True):
            for (number, annotation), crop in zip(image.annotations.items(), crops, strict=True):
                name = f"{image.name}#{number}"
                if isinstance(crop, Path):
                    examples.append(Example(name, annotation["label"], "", crop, group=image.name))
                else:
                    ignored.append((name, crop))
    finally:
        threads.shutdown(cancel_futures=True)
    return _dataset(f"cv_studio_boxes:{place}", examples, ignored)


def _dataset(name: str, examples: list[Example], ignored: list[tuple[str, str]]) -> Dataset:
    if not examples:
        raise UserError(f"{name} has no image with one label; images with labels were expected.{left_out(ignored)}")
    return with_class_names(name, examples, ignored)


def _annotated_images(place: str, data_dir: Path) -> tuple[list[AnnotatedImage], list[tuple[str, str]]]:
    """The labelled images in the order of their names; the ignored files and annotations with reasons."""
    ignored: list[tuple[str, str]] = []
    if place.startswith(s3.SCHEME):
        root, ignored = s3.fetch(place, data_dir / "cv_studio", also=ANNOTATIONS)
    else:
        root = Path(place)
    labels, annotations = _annotations(root / ANNOTATIONS)
    names = {path.relative_to(root).as_posix(): path for path in files_below(root)}
    images, found, used = [], set(), set()
    for name, path in names.items():
        inner = name.removeprefix(IMAGES)
        key = inner if name not in annotations and inner not in names else name
        found.add(key)
        if name in (ANNOTATIONS, s3.INDEX):
            continue
        if reason := reason_to_ignore(path, root):
            ignored.append((name, reason))
        elif not annotations.get(key):
            ignored.append((name, "has no label"))
        else:
            on_image = {annotation["label"] for annotation in annotations[key]}
            used |= on_image
            unlisted = sorted(on_image - labels)
            ignored += [(name, f"has the label {label}, which the project does not list") for label in unlisted]
            if on_image & labels:
                numbered = enumerate(annotations[key], start=1)
                listed = {number: annotation for number, annotation in numbered if annotation["label"] in labels}
                images.append(AnnotatedImage(name, path, listed))
    ignored += [(name, "is annotated, but not there") for name in annotations if name not in found]
    ignored += [(ANNOTATIONS, f"lists the label {label}, which no image has") for label in sorted(labels - used)]
    return images, ignored


def _annotations(path: Path) -> tuple[set[str], dict[str, list[dict[str, Any]]]]:
    """The labels that the project lists, or all that it uses, and the annotations by the name of the image."""
    try:
        project = json.loads(path.read_bytes())
        json.dumps(project, ensure_ascii=False).encode()  # lone surrogates could not be written
        annotations = project["annotations"]
        used = {annotation["label"] for image in annotations.values() for annotation in image}
        labels = set(project.get("labels", used))
        are_texts = all(isinstance(label, str) and label for label in used | labels)
        if isinstance(project.get("labels"), str) or not are_texts:
            raise TypeError("labels that are not strings")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(
            f"{path} does not exist; name a folder with the {ANNOTATIONS} of a CV Studio project and its images, or "
            "s3://BUCKET/PREFIX."
        ) from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "a part is missing or has another type"
        raise UserError(
            f"{path} is not an annotation file of CV Studio ({reason}); an object with labels, and annotations with "
            "a list of labels per image, was expected, so export it again."
        ) from None
    return labels, annotations


def _cut(image: AnnotatedImage, folder: Path) -> Sequence[Path | str]:
    """The PNG file of each annotation's box, or the reason why there is none."""
    try:
        content = read_file(image.path)
    except (OSError, ValueError):
        return [image.path] * len(image.annotations)  # whose problem `decode` reports
    # The folder's name holds the hash of the image and the file's name the box, so existing files are right.
    folder = folder / f"{image.path.stem[:80]}-{content_hash(image.name.encode() + content)[:16]}"
    picture: Image.Image | None = None
    crops: list[Path | str] = []
    try:
        size = full_size(content)
        for annotation in image.annotations.values():
            box = _pixels(annotation, *size)
            if isinstance(box, str):
                crops.append(box)
                continue
            crop = folder / f"{'-'.join(map(str, box))}.png"
            if not crop.exists():
                picture = picture or upright(content)
                with written_atomically(crop) as temporary:
                    picture.crop(box).save(temporary)
            crops.append(crop)
    except Exception as error:  # as in `decode`
        if isinstance(error, OSError) and error.errno:  # of the disk, not of the image
            raise
        # For an unreadable image, its own file stands for each box, so that it is reported like any unreadable image.
        is_unreadable = bool(decode(content, 8, "squash").problem)
        reason = f"cannot be cut out ({str(error) or type(error).__name__})"[:200]
        return [image.path if is_unreadable else reason] * len(image.annotations)
    return crops


def _pixels(annotation: dict[str, Any], width: int, height: int) -> tuple[int, int, int, int] | str:
    """The box in pixels: left, top, right, bottom; or the reason why there is none."""
    sides: list[Any] = [annotation.get(side) for side in SIDES]
    if all(side is None for side in sides):
        return "has no box"
    if not all(type(side) in (int, float) and abs(side) < FARTHEST for side in sides):  # also false for NaN
        return f"has a box whose {', '.join(SIDES)} are not numbers"
    if max(sides) <= LARGEST_FRACTION:
        sides = [side * length for side, length in zip(sides, (width, height) * 2, strict=True)]
    left, right = (round(min(max(side, 0), width)) for side in sorted(sides[::2]))
    top, bottom = (round(min(max(side, 0), height)) for side in sorted(sides[1::2]))
    is_empty = left >= right or top >= bottom
    return "has a box that covers no pixel of the image" if is_empty else (left, top, right, bottom)
