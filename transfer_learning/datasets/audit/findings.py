"""What is odd about the files and images of a dataset, ahead of any training; nothing is changed.

Every file is one row, used, skipped or ignored, and has any number of findings; each finding is of one of `KINDS`.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from transfer_learning.datasets.audit.label_issues import distances_to_class, find_label_issues, outliers
from transfer_learning.datasets.audit.near_duplicates import (
    FLAT,
    correlations,
    directions,
    groups_of,
    near_by_features,
    near_by_hash,
    perceptual_hashes,
)
from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.prepared import PreparedDataset
from transfer_learning.datasets.sources.folder import OTHER_SUFFIXES
from transfer_learning.errors import MissingExtra

ENLARGED = 4  # times that an image is enlarged, from which it counts as too small
LARGE_PIXELS, LARGE_BYTES = 50e6, 50e6
ELONGATED = 4.0  # times as long as wide
# Near-duplicates. Saved at JPEG quality 50, or at half the size, nine of ten drawn_pills keep within the first two and most
# within the third; among themselves, where no two are alike, no pair comes near: 12 bits, and a similarity of 0.81.
MOST_BITS = 6  # of 64, in which the perceptual hashes differ
LEAST_CORRELATION = 0.985  # of the grey pictures whose hashes are so near
LEAST_SIMILARITY = 0.92  # of the directions of the features
MOST_COMPARED = 100_000  # images, whose features are compared with each other: the time grows with the square

# Kind of finding: what it means for a run. In the order in which a person should look at them.
KINDS = {
    "two classes of one name": "class names that differ in case, accents or width of letters alone: most likely one class",
    "likely label error": "another label is more probable by what the other images teach; decide in corrections.csv",
    "duplicate under another label": "the same picture bears two labels, of which one is wrong; decide in corrections.csv",
    "near-duplicate under another label": "nearly the same picture bears another label; decide in corrections.csv",
    "near-duplicate in another split": "nearly the same picture is trained on and judged; drop one, or declare groups by "
    "--group-by",
    "duplicate in another split": "the same picture belongs to a higher split, which keeps it; skipped here",
    "of a group in another split": "others of its group are in a higher split; skipped here",
    "empty file": "there is nothing in it",
    "truncated file": "it ends too early, as after a broken download",
    "no image inside": "named like an image, and none of a kind that is decoded",
    "too many pixels": "refused before it is decoded, since it could fill the memory",
    "not readable": "missing, not permitted, or fatal to the decoder",
    "dropped": "left out, as corrections asked",
    "outlier": "far from all others of its class; decide in corrections.csv",
    "of one colour": "nothing can be seen in it; decide in corrections.csv",
    "duplicate": "the same picture several times in one class and split: it counts as often",
    "near-duplicate": "nearly the same picture several times in one class and split",
    "elongated": f"more than {ELONGATED:g} times as long as wide, so that little is left of it in a square",
    "too small": f"enlarged more than {ENLARGED} times",
    "too large": f"more than {LARGE_PIXELS / 1e6:g} million pixels or {LARGE_BYTES / 1e6:g} MB, which takes long to decode",
    "named for another format": "decoded as what it is; other programs may go by its name",
    "image under another name": "ignored for its name, yet it begins like an image; rename it to use it",
    "kind that is not decoded": "ignored; convert it to JPEG or PNG to use it",
    "names alike": "differs from another name in case, accents or width of letters alone: some systems take them for one",
    "link out of the folder": "followed; whoever copies the folder does not copy what it leads to",
    "animated or several pages": "the first picture alone is used",
    "turned by EXIF": "turned upright as its camera noted",
    "CMYK": "converted to RGB by the plain formula, without its colour profile",
    "palette": "its colours are looked up",
    "transparent": "laid over white",
    "16 bits": "the upper 8 bits of each value are used",
    "grey": "its one channel is used three times",
    "other colours": "converted to RGB by Pillow",
}
DECIDED = (  # kinds that a person decides on in corrections.csv
    "likely label error",
    "duplicate under another label",
    "near-duplicate under another label",
    "near-duplicate in another split",
    "outlier",
    "of one colour",
)

# Kind of finding by the reason for which `decode` or the manifest left an image out; the first that is found.
PROBLEMS = {
    r"dropped by": "dropped",
    r"the same (file|picture)": "duplicate in another split",
    r"of its group": "of a group in another split",
    r"file is empty": "empty file",
    r"truncated|cut off|too early|broken data stream|[Uu]nexpected end|premature": "truncated file",
    r"none of ": "no image inside",
    r"too many pixels": "too many pixels",
    r"": "not readable",
}
COLOURS = {
    "CMYK": "CMYK",
    "P": "palette",
    "PA": "palette",
    "L": "grey",
    "1": "grey",
    "LA": "grey",
    "RGB": "",
    "RGBA": "",
}
FORMATS = {  # by suffix
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")


class Features(NamedTuple):
    """What a frozen backbone makes of some of the examples."""

    values: np.ndarray  # float32 (k, width)
    examples: np.ndarray  # int64 (k,), their positions in the dataset
    about: str  # in words


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        files: a row a file. id; what: used, skipped or ignored; reason; label; split; width, height; num_bytes;
            remarks of the decoder; duplicates, near_duplicates: the number of the group of equal or nearly equal
            pictures, -1 for none; suggestion and probability of another label; findings.
        findings: a row a finding. position: of the row of `files`; kind; detail.
        num_on_disk: files that were counted on the disk; None for a dataset that is no folder.
        notes: sentences on how it was done, and what was not.
    """

    files: pd.DataFrame
    findings: pd.DataFrame
    num_on_disk: int | None
    notes: tuple[str, ...]

    def of_kind(self, kind: str) -> pd.DataFrame:
        """The rows of `files` with a finding of this kind, and its detail."""
        found = self.findings[self.findings["kind"] == kind]
        return self.files.loc[found["position"]].assign(detail=found["detail"].to_numpy())

    @property
    def counts(self) -> dict[str, int]:
        """The number of files by kind, in the order of KINDS, without zeros."""
        numbers = self.findings.groupby("kind")["position"].nunique()
        return {kind: int(numbers[kind]) for kind in KINDS if kind in numbers}

    def doubtful(self) -> pd.DataFrame:
        """What a person has to decide, most doubtful labels first: id, label, suggestion, probability, why."""
        found = self.findings[self.findings["kind"].isin(DECIDED)]
        why = (found["kind"] + found["detail"].map(lambda detail: f": {detail}" if detail else "")).groupby(
            found["position"]
        )
        rows = self.files.loc[list(why.groups)].assign(why=why.agg("; ".join))
        rows = rows[rows["what"] == "used"]
        return rows.sort_values(["quality", "id"], kind="stable")[["id", "label", "suggestion", "probability", "why"]]


def audit(dataset: Dataset, data: PreparedDataset, features: Features | None = None) -> Audit:
    """Looks for everything that KINDS names.

    Args:
        data: what became of `dataset`.
        features: of as many of the images as there are; None: what needs them is left out, and a note says so.
    """
    files = _files(dataset, data)
    notes: list[str] = []
    found = [
        *_of_names(dataset, files),
        *_of_reasons(dataset, files),
        *_of_files(dataset, files, data.images.pixels.shape[1]),
        *_of_pictures(files, data, features, notes),
    ]
    findings = pd.DataFrame(found, columns=["position", "kind", "detail"])
    order = {kind: number for number, kind in enumerate(KINDS)}
    findings = findings.iloc[np.lexsort((findings["position"], findings["kind"].map(order)))]
    kinds = findings.groupby("position")["kind"].agg(lambda kinds: "; ".join(dict.fromkeys(kinds)))
    files["findings"] = kinds.reindex(files.index).fillna("")
    num_on_disk = count_files(dataset.folder) if dataset.folder else None
    return Audit(files, findings.reset_index(drop=True), num_on_disk, tuple(notes))


def count_files(folder: Path) -> int:
    """Counts what is no folder below `folder` and below linked folders; a link back to a folder that holds it is one."""
    number, waiting = 0, [(str(folder), frozenset({os.path.realpath(folder)}))]
    while waiting:
        place, above = waiting.pop()
        for name in os.listdir(place):
            path = os.path.join(place, name)
            if not os.path.isdir(path) or (real := os.path.realpath(path)) in above:
                number += 1
            else:
                waiting.append((path, above | {real}))
    return number


def _files(dataset: Dataset, data: PreparedDataset) -> pd.DataFrame:
    manifest, facts = data.manifest, data.images.facts
    files = pd.DataFrame(
        {
            "id": manifest["id"],
            "what": np.where(manifest["split"] == "", "skipped", "used"),
            "reason": manifest["problem"],
            "label": manifest["label"],
            "split": manifest["split"],
            "width": facts["width"],
            "height": facts["height"],
            "num_bytes": [_num_bytes(example.source) for example in dataset.examples],
            "remarks": facts["remarks"],
        }
    )
    ignored = pd.DataFrame(data.ignored, columns=["id", "reason"]).assign(
        what="ignored", label="", split="", width=0, height=0, num_bytes=0, remarks=""
    )
    files = pd.concat([files, ignored], ignore_index=True)
    return files.assign(duplicates=-1, near_duplicates=-1, suggestion="", probability=np.nan, quality=1.0)


def _num_bytes(content) -> int:
    if isinstance(content, np.ndarray):
        return content.nbytes
    if not isinstance(content, Path):
        return getattr(content, "length", 0)
    try:
        return content.stat().st_size
    except OSError:
        return 0


# ---------------------------------------------------------------------------------------------------------------------
# Names


def folded(name: str) -> str:
    """A name without case, accents and widths of letters."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def _of_names(dataset: Dataset, files: pd.DataFrame) -> Iterator[tuple[int, str, str]]:
    labels = files["label"].to_numpy()
    for alike in _alike(dataset.class_names):
        positions = np.flatnonzero(np.isin(labels, [dataset.class_names[number] for number in alike]))
        names = " and ".join(dataset.class_names[number] for number in alike)
        yield from ((position, "two classes of one name", names) for position in positions.tolist())
    ids = files["id"].tolist()
    for alike in _alike(ids):
        yield from (
            (position, "names alike", ids[alike[0] if position != alike[0] else alike[1]]) for position in alike
        )
    if dataset.folder:
        yield from _links(dataset)


def _alike(names: Sequence[str]) -> list[list[int]]:
    """The positions of names that differ, and are one when folded."""
    positions = defaultdict(dict)
    for position, name in enumerate(names):
        positions[folded(name)].setdefault(
            name, position
        )  # a dataset that is no folder may say two things of one image
    return [list(alike.values()) for alike in positions.values() if len(alike) > 1]


def _links(dataset: Dataset) -> Iterator[tuple[int, str, str]]:
    root, real = os.path.realpath(dataset.folder), {}
    for position, example in enumerate(dataset.examples):
        if isinstance(example.source, Path):
            above, name = os.path.split(example.source)
            if above not in real:
                real[above] = os.path.realpath(above)
            place = os.path.join(real[above], name)
            if os.path.islink(place):
                place = os.path.realpath(place)
            if os.path.commonpath([root, place]) != root:
                yield position, "link out of the folder", place


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _of_reasons(dataset: Dataset, files: pd.DataFrame) -> Iterator[tuple[int, str, str]]:
    for row in files[files["what"] == "skipped"].itertuples():
        yield row.Index, next(kind for pattern, kind in PROBLEMS.items() if re.search(pattern, row.reason)), row.reason
    for row in files[files["what"] == "ignored"].itertuples():
        if Path(row.id).suffix.lower() in OTHER_SUFFIXES:
            yield row.Index, "kind that is not decoded", Path(row.id).suffix.lower()
        elif dataset.folder and row.reason.startswith("not named") and _begins_like_an_image(dataset.folder / row.id):
            yield row.Index, "image under another name", ""


def _begins_like_an_image(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            beginning = file.read(12)
    except OSError:
        return False
    return beginning.startswith(SIGNATURES) or (beginning[:4] == b"RIFF" and beginning[8:] == b"WEBP")


def _of_files(dataset: Dataset, files: pd.DataFrame, stored_size: int) -> Iterator[tuple[int, str, str]]:
    for row in files[files["width"] > 0].itertuples():
        short, long = sorted((row.width, row.height))
        size = f"{row.width} x {row.height}"
        if short * ENLARGED < stored_size:
            yield row.Index, "too small", size
        if row.width * row.height > LARGE_PIXELS or row.num_bytes > LARGE_BYTES:
            yield row.Index, "too large", f"{size}, {row.num_bytes / 1e6:.0f} MB"
        if long > ELONGATED * short:
            yield row.Index, "elongated", size
        if row.remarks:
            content = dataset.examples[row.Index].source
            suffix = (
                content.suffix.lower() if isinstance(content, Path) else None
            )  # of the file, which an id need not name
            yield from ((row.Index, *remark) for remark in _of_remarks(row.remarks, suffix))


def _of_remarks(remarks: str, suffix: str | None) -> Iterator[tuple[str, str]]:
    kind, mode, *words = remarks.split()
    if suffix is not None and suffix not in FORMATS.get(kind, (suffix,)):
        yield "named for another format", f"{suffix or 'no suffix'}, and {kind} inside"
    if "16-bit" in words:
        yield "16 bits", mode
    elif colour := COLOURS.get(mode, "other colours"):
        yield colour, mode
    if "transparent" in words:
        yield "transparent", mode
    if "animated" in words:
        yield "animated or several pages", kind
    for word in words:
        if word.startswith("turned-"):
            yield "turned by EXIF", f"orientation {word.removeprefix('turned-')}"


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def _of_pictures(
    files: pd.DataFrame, data: PreparedDataset, features: Features | None, notes: list[str]
) -> Iterator[tuple[int, str, str]]:
    """Fills the columns about groups and suggestions in place."""
    digests = data.images.facts["pixels"]
    readable = np.flatnonzero((digests != "") & ~data.manifest["problem"].str.startswith("dropped"))
    yield from _duplicates(files, digests, readable)

    used = np.flatnonzero(files["what"] == "used")
    one_each = used[~digests.iloc[used].duplicated().to_numpy()]  # of equal pictures the first speaks for all
    hashes, contrasts = perceptual_hashes(data.images.pixels, data.images.rows[one_each])
    has_pattern = contrasts >= FLAT
    flat = set(digests.iloc[one_each[~has_pattern]])
    yield from ((position, "of one colour", "") for position in used if digests.iloc[position] in flat)

    compared = one_each[has_pattern]
    near = near_by_hash(hashes[has_pattern], MOST_BITS)
    near = near[correlations(data.images.pixels, data.images.rows[compared], near) >= LEAST_CORRELATION]
    pairs = {"perceptual hash": compared[near]}
    notes.append(
        f"Near-duplicates by perceptual hash: of {len(compared):,} different pictures those whose hashes differ in at most "
        f"{MOST_BITS} of 64 bits and whose grey pictures correlate by {LEAST_CORRELATION:g} or more."
    )
    if features is None:
        notes.append(
            "No features of these images are kept, so near-duplicates are found by perceptual hash alone, and neither "
            "outliers nor likely label errors are looked for; pass --features to compute them, or run first."
        )
    else:
        notes.append(f"Features: {features.about}.")
        is_compared = np.isin(features.examples, one_each)
        examples, values = features.examples[is_compared], features.values[is_compared]
        towards = directions(values)
        if len(examples) <= MOST_COMPARED:
            pairs["features"] = examples[near_by_features(towards, LEAST_SIMILARITY)]
            notes.append(
                f"Near-duplicates by features: {len(examples):,} different pictures whose directions about the mean have a "
                f"cosine of {LEAST_SIMILARITY:g} or more."
            )
        else:
            notes.append(f"{len(examples):,} images are too many to compare the features of any two.")
    yield from _near_duplicates(files, digests, used, pairs)
    if features is not None:
        yield from _doubts(files, data.class_names, examples, values, towards, notes)


def _duplicates(files: pd.DataFrame, digests: pd.Series, readable: np.ndarray) -> Iterator[tuple[int, str, str]]:
    of_digest = digests.iloc[readable]
    repeated = of_digest[of_digest.duplicated(keep=False)]
    numbers = pd.factorize(repeated)[0]
    files.loc[repeated.index, "duplicates"] = numbers
    labels, is_used = pd.factorize(files["label"])[0], (files["what"] == "used").to_numpy()
    for group in _members(repeated.index.to_numpy(), numbers):
        for position in group[is_used[group]]:  # of the others, the reason is a finding already
            elsewhere = group[labels[group] != labels[position]]
            if len(elsewhere):
                yield position, "duplicate under another label", _named(files, elsewhere)
            else:
                yield position, "duplicate", _named(files, group[group != position])


def _near_duplicates(
    files: pd.DataFrame, digests: pd.Series, used: np.ndarray, pairs: Mapping[str, np.ndarray]
) -> Iterator[tuple[int, str, str]]:
    of_first = pd.Series(groups_of(np.concatenate(list(pairs.values())), len(digests)))
    numbers = of_first.iloc[used].groupby(digests.iloc[used].to_numpy()).transform("max").to_numpy()  # equal ones alike
    files.loc[used, "near_duplicates"] = numbers
    pictures, labels, splits = (pd.factorize(column)[0] for column in (digests, files["label"], files["split"]))
    for group in _members(used[numbers >= 0], numbers[numbers >= 0]):
        for position in group:
            others = group[pictures[group] != pictures[position]]
            kinds = {
                "near-duplicate under another label": others[labels[others] != labels[position]],
                "near-duplicate in another split": others[splits[others] != splits[position]],
            }
            kinds = {kind: which for kind, which in kinds.items() if len(which)}
            for kind, which in (kinds or {"near-duplicate": others}).items():
                yield position, kind, _named(files, which)


def _with_its_copies(files: pd.DataFrame, position: int) -> list[int]:
    """An image and those in use with the same pixels and the same label."""
    row = files.loc[position]
    if row["duplicates"] < 0:
        return [position]
    is_copy = (files["duplicates"] == row["duplicates"]) & (files["label"] == row["label"]) & (files["what"] == "used")
    return files.index[is_copy].tolist()


def _members(positions: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    """The positions of each group, where `numbers` are those of the groups."""
    order = np.argsort(numbers, kind="stable")
    return np.split(positions[order], np.flatnonzero(np.diff(numbers[order])) + 1)


def _named(files: pd.DataFrame, positions: np.ndarray) -> str:
    id, label, split = (files.at[positions[0], column] for column in ("id", "label", "split"))
    more = f" and {len(positions) - 1:,} more" if len(positions) > 1 else ""
    return f"{id} ({label}, {split or 'skipped'}){more}"


def _doubts(
    files: pd.DataFrame,
    class_names: tuple[str, ...],
    examples: np.ndarray,
    values: np.ndarray,
    towards: np.ndarray,
    notes: list[str],
) -> Iterator[tuple[int, str, str]]:
    number = {name: place for place, name in enumerate(class_names)}
    is_learnt = files["label"].iloc[examples].isin(number).to_numpy()  # and of no class that is held out
    examples, values, towards = examples[is_learnt], values[is_learnt], towards[is_learnt]
    labels = files["label"].iloc[examples].map(number).to_numpy()
    if len(examples) > MOST_COMPARED:
        notes.append(f"{len(examples):,} images are too many to look for likely label errors and outliers.")
        return
    try:
        doubts = find_label_issues(values, labels, files["near_duplicates"].iloc[examples].to_numpy())
    except MissingExtra as error:
        notes.append(f"Likely label errors and outliers were not looked for. {error}")
        return
    judged = np.flatnonzero(doubts.suggestion >= 0)
    columns = ["suggestion", "probability", "quality"]
    suggested = np.array(class_names, object)[doubts.suggestion[judged]]
    for column, values in zip(columns, (suggested, doubts.probability[judged], doubts.quality[judged]), strict=True):
        files.loc[examples[judged], column] = values
    for place in np.flatnonzero(doubts.is_doubtful).tolist():
        likely = f"{class_names[doubts.suggestion[place]]} {doubts.probability[place]:.0%}"
        for position in _with_its_copies(files, examples[place]):
            files.loc[position, columns] = files.loc[examples[place], columns]
            yield position, "likely label error", likely
    is_sure = files["suggestion"].iloc[examples].to_numpy() == files["label"].iloc[examples].to_numpy()
    files.loc[examples[is_sure], ["suggestion", "probability"]] = ["", np.nan]
    distances = distances_to_class(towards, labels)
    for place in np.flatnonzero(outliers(distances, labels) & ~doubts.is_doubtful).tolist():
        yield from ((position, "outlier", "") for position in _with_its_copies(files, examples[place]))
    right = (doubts.suggestion[judged] == labels[judged]).mean() if len(judged) else 0
    notes.append(
        f"Likely label errors: {len(judged):,} images, each judged by a logistic regression on the features of others, which "
        f"agrees with {right:.1%} of the labels; cleanlab names those whose label is less probable than is usual for it."
    )
    if doubts.too_small:
        names = ", ".join(class_names[label] for label in doubts.too_small[:4])
        notes.append(
            f"{len(doubts.too_small)} classes hold too few different images to judge their labels, such as {names}."
        )
