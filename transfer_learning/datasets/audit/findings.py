"""Audits a dataset before any training: every finding about every file, by kind; nothing is changed."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from transfer_learning.datasets.audit import near_duplicates as near
from transfer_learning.datasets.audit.kinds import ELONGATED, ENLARGED, KINDS, LARGE_BYTES, LARGE_PIXELS, REVIEWED
from transfer_learning.datasets.audit.label_issues import distances_to_class, find_label_issues, outliers
from transfer_learning.datasets.dataset import DROPPED, Dataset, Source
from transfer_learning.datasets.decoding.formats import (
    IMAGE_SUFFIXES,
    OTHER_SUFFIXES,
    SUFFIXES,
    begins_like_an_image,
    suffix_of,
)
from transfer_learning.datasets.decoding.value_range import values_in
from transfer_learning.datasets.names import alike, folded_label
from transfer_learning.datasets.prepared import PreparedDataset
from transfer_learning.datasets.sources.folder import files_below, is_hidden
from transfer_learning.errors import MissingExtra

# Thresholds of near-duplicates. Of drawn_pills saved at JPEG quality 50 or at half the size, nine of ten images keep
# within the first two and most within the third; pairs of different images are far off: 12 bits, and a similarity of
# 0.81.
MAX_BITS = 6  # of 64, in which the perceptual hashes may differ
MIN_CORRELATION = 0.985  # of the grey images whose hashes are that close
MIN_SIMILARITY = 0.92  # cosine of the directions of the features
MAX_COMPARED = 100_000  # images whose features are compared with each other: the time is quadratic

# Modes of Pillow: the finding for each, "" for none.
COLOURS = {"CMYK": "CMYK", "RGB": "", "RGBA": ""} | dict.fromkeys(("P", "PA"), "palette")
COLOURS |= dict.fromkeys(("L", "LA", "1"), "grey")
Finding = tuple[int, str, str]  # position of the file in `Audit.files`, kind, detail


class Features(NamedTuple):
    """The output of a frozen backbone for some of the examples."""

    values: np.ndarray  # float32 (k, width)
    examples: np.ndarray  # int64 (k,), their positions in the dataset
    about: str  # description


@dataclass(frozen=True)
class Audit:
    """All files and findings.

    `files` has one row per file: id; what: used, skipped or ignored; reason; label; split; width, height; num_bytes;
    remarks of the decoder; duplicates, near_duplicates: number of the group of equal or nearly equal images, -1 for none;
    suggestion and probability of another label; quality: probability of the given label, 0 to 1; findings.
    """

    files: pd.DataFrame
    findings: pd.DataFrame  # one row per finding; position: of the row of `files`; kind: a key of KINDS; detail
    num_on_disk: int | None  # number of files; None for a dataset that is not a folder
    notes: tuple[str, ...]  # sentences about the methods

    def of_kind(self, kind: str) -> pd.DataFrame:
        """The rows of `files` with a finding of this kind, with its detail."""
        found = self.findings[self.findings["kind"] == kind]
        return self.files.loc[found["position"]].assign(detail=found["detail"].to_numpy())

    @property
    def counts(self) -> dict[str, int]:
        """The number of files per kind, in the order of KINDS, without zeros."""
        numbers = self.findings.groupby("kind")["position"].nunique()
        return {kind: int(numbers[kind]) for kind in KINDS if kind in numbers}

    def to_review(self) -> pd.DataFrame:
        """Images for a person to review, the least probable labels first: id, label, suggestion, probability, why."""
        found = self.findings[self.findings["kind"].isin(REVIEWED)]
        details = found["detail"].map(lambda detail: f": {detail}" if detail else "")
        why = (found["kind"] + details).groupby(found["position"])
        rows = self.files.loc[list(why.groups)].assign(why=why.agg("; ".join))
        rows = rows[rows["what"] == "used"]
        return rows.sort_values(["quality", "id"], kind="stable")[["id", "label", "suggestion", "probability", "why"]]


def audit(dataset: Dataset, data: PreparedDataset, features: Features | None = None) -> Audit:
    """Finds everything that KINDS lists in a dataset and `data`, what `prepare_dataset` made of it. Without features no
    label issues and outliers are looked for.
    """
    files = _files(dataset, data)
    notes: list[str] = []
    found = [
        *_name_findings(dataset, files),
        *_skipped_and_ignored(dataset, data, files),
        *_file_findings(dataset, files, data.images.pixels.shape[1]),
        *_content_findings(files, data, features, notes),
    ]
    findings = pd.DataFrame(found, columns=["position", "kind", "detail"])
    order = {kind: number for number, kind in enumerate(KINDS)}
    findings = findings.iloc[np.lexsort((findings["position"], findings["kind"].map(order)))]
    kinds = findings.groupby("position")["kind"].agg(lambda kinds: "; ".join(dict.fromkeys(kinds)))
    files["findings"] = kinds.reindex(files.index).fillna("")
    num_on_disk = sum(1 for _ in files_below(dataset.folder)) if dataset.folder else None
    return Audit(files, findings.reset_index(drop=True), num_on_disk, tuple(notes))


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
    ignored = pd.DataFrame(data.ignored, columns=["id", "reason"])
    ignored = ignored.assign(what="ignored", label="", split="", width=0, height=0, num_bytes=0, remarks="")
    files = pd.concat([files, ignored], ignore_index=True)
    return files.assign(duplicates=-1, near_duplicates=-1, suggestion="", probability=np.nan, quality=1.0)


def _num_bytes(source: Source) -> int:
    if isinstance(source, np.ndarray):
        return source.nbytes
    if not isinstance(source, Path):
        return source.length
    try:
        return source.stat().st_size
    except OSError:
        return 0


def _name_findings(dataset: Dataset, files: pd.DataFrame) -> Iterator[Finding]:
    labels = files["label"].to_numpy()
    for same in alike(dataset.class_names, folded_label):
        positions = np.flatnonzero(np.isin(labels, [dataset.class_names[number] for number in same]))
        names = " and ".join(dataset.class_names[number] for number in same)
        yield from ((position, "similar class names", names) for position in positions.tolist())
    ids = files["id"].tolist()
    for first, *others in alike(ids):
        yield first, "similar file names", ids[others[0]]
        yield from ((position, "similar file names", ids[first]) for position in others)
    if dataset.folder:
        yield from _links(dataset, dataset.folder)


def _links(dataset: Dataset, folder: Path) -> Iterator[Finding]:
    root, real = os.path.realpath(folder), {}
    for position, example in enumerate(dataset.examples):
        if isinstance(example.source, Path):
            above, name = os.path.split(example.source)
            if above not in real:
                real[above] = os.path.realpath(above)
            place = os.path.join(real[above], name)
            if os.path.islink(place):
                place = os.path.realpath(place)
            if os.path.commonpath([root, place]) != root:
                yield position, "link outside the folder", place


def _skipped_and_ignored(dataset: Dataset, data: PreparedDataset, files: pd.DataFrame) -> Iterator[Finding]:
    skipped = data.manifest[data.manifest["split"] == ""]
    yield from skipped[["kind", "problem"]].itertuples(name=None)
    for position, id in files.loc[files["what"] == "ignored", "id"].items():
        suffix = suffix_of(id)
        if suffix in OTHER_SUFFIXES:
            yield position, "unsupported format", suffix
        elif dataset.folder and suffix not in IMAGE_SUFFIXES and not any(map(is_hidden, Path(id).parts)):
            if begins_like_an_image(dataset.folder / id):
                yield position, "image without image suffix", ""


def _file_findings(dataset: Dataset, files: pd.DataFrame, stored_size: int) -> Iterator[Finding]:
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
            source = dataset.examples[row.Index].source
            suffix = suffix_of(source) if isinstance(source, Path) else None  # the id may have another one
            yield from ((row.Index, *remark) for remark in _remark_findings(row.remarks, suffix))


def _remark_findings(remarks: str, suffix: str | None) -> Iterator[tuple[str, str]]:
    kind, mode, *words = remarks.split()
    if suffix and suffix not in SUFFIXES.get("JPEG" if kind == "MPO" else kind, (suffix,)):
        yield "wrong suffix", f"{suffix}, and {kind} inside"
    if values := values_in(remarks):
        yield "more than 8 bits", f"{mode}, {values.kind}"
    elif "16-bit" in words:
        yield "more than 8 bits", mode
    elif colour := COLOURS.get(mode, "other colours"):
        yield colour, mode
    if "transparent" in words:
        yield "transparent", mode
    if "animated" in words:
        yield "animated or multi-page", kind
    for word in words:
        if word.startswith("turned-"):
            yield "EXIF rotation", f"orientation {word.removeprefix('turned-')}"


def _content_findings(
    files: pd.DataFrame, data: PreparedDataset, features: Features | None, notes: list[str]
) -> Iterator[Finding]:
    """Also fills the columns duplicates, near_duplicates, suggestion, probability and quality in place."""
    digests = data.images.facts["pixels"]
    readable = np.flatnonzero((digests != "") & (data.manifest["kind"] != DROPPED))
    yield from _duplicates(files, digests, readable)

    used = np.flatnonzero(files["what"] == "used")
    one_each = used[~digests.iloc[used].duplicated().to_numpy()]  # one of each set of equal images
    hashes, contrasts = near.perceptual_hashes(data.images.pixels, data.images.rows[one_each])
    has_pattern = contrasts >= near.FLAT
    flat = set(digests.iloc[one_each[~has_pattern]])
    yield from ((position, "single colour", "") for position in used.tolist() if digests.iloc[position] in flat)

    compared = one_each[has_pattern]
    close = near.near_by_hash(hashes[has_pattern], MAX_BITS)
    close = close[near.correlations(data.images.pixels, data.images.rows[compared], close) >= MIN_CORRELATION]
    pairs = {"perceptual hash": compared[close]}
    notes.append(
        f"Near-duplicates by perceptual hash: among {len(compared):,} different images, hashes that differ in at most "
        f"{MAX_BITS} of 64 bits and a correlation of the grey images of at least {MIN_CORRELATION:g}."
    )
    if features is None:
        notes.append(
            "Label issues and outliers need features, and none of these images are in the cache: pass --features, "
            "or train first."
        )
    else:
        notes.append(f"Features: {features.about}.")
        is_compared = np.isin(features.examples, one_each)
        examples, values = features.examples[is_compared], features.values[is_compared]
        towards = near.directions(values)
        if len(examples) <= MAX_COMPARED:
            alike = examples[near.near_by_features(towards, MIN_SIMILARITY)]
            pairs["features"] = alike[np.isin(alike, compared).all(axis=1)]  # images of one colour show nothing
            notes.append(
                f"Near-duplicates by features: among {len(examples):,} different images, a cosine of the centered "
                f"features of at least {MIN_SIMILARITY:g}."
            )
        else:
            notes.append(f"Near-duplicates by features: not for {len(examples):,} images, more than {MAX_COMPARED:,}.")
    yield from _near_duplicates(files, digests, used, pairs)
    if features is not None:
        yield from _label_issues(files, data.class_names, examples, values, towards, notes)


def _duplicates(files: pd.DataFrame, digests: pd.Series, readable: np.ndarray) -> Iterator[Finding]:
    of_digest = digests.iloc[readable]
    repeated = of_digest[of_digest.duplicated(keep=False)]
    numbers = pd.factorize(repeated)[0]
    files.loc[repeated.index, "duplicates"] = numbers
    labels, is_used = pd.factorize(files["label"])[0], (files["what"] == "used").to_numpy()
    for group in _members(repeated.index.to_numpy(), numbers):
        for position in group[is_used[group]]:  # the others have a finding already
            elsewhere = group[labels[group] != labels[position]]
            if len(elsewhere):
                yield position, "duplicate with another label", _named(files, elsewhere)
            else:
                yield position, "duplicate", _named(files, group[group != position])


def _near_duplicates(
    files: pd.DataFrame, digests: pd.Series, used: np.ndarray, pairs: Mapping[str, np.ndarray]
) -> Iterator[Finding]:
    of_first = pd.Series(near.groups_of(np.concatenate(list(pairs.values())), len(digests)))
    numbers = of_first.iloc[used].groupby(digests.iloc[used].to_numpy()).transform("max").to_numpy()  # equal ones alike
    files.loc[used, "near_duplicates"] = numbers
    pictures, labels, splits = (pd.factorize(column)[0] for column in (digests, files["label"], files["split"]))
    for group in _members(used[numbers >= 0], numbers[numbers >= 0]):
        for position in group:
            others = group[pictures[group] != pictures[position]]
            kinds = {
                "near-duplicate with another label": others[labels[others] != labels[position]],
                "near-duplicate in another split": others[splits[others] != splits[position]],
            }
            kinds = {kind: which for kind, which in kinds.items() if len(which)}
            for kind, which in (kinds or {"near-duplicate": others}).items():
                yield position, kind, _named(files, which)


def _with_its_copies(files: pd.DataFrame, position: int) -> list[int]:
    """The position of an image, and those of used images with the same pixels and label."""
    row = files.loc[position]
    if row["duplicates"] < 0:
        return [position]
    is_copy = (files["duplicates"] == row["duplicates"]) & (files["label"] == row["label"]) & (files["what"] == "used")
    return files.index[is_copy].tolist()


def _members(positions: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    """The positions of each group; `numbers` has the number of the group of each position."""
    order = np.argsort(numbers, kind="stable")
    return np.split(positions[order], np.flatnonzero(np.diff(numbers[order])) + 1)


def _named(files: pd.DataFrame, positions: np.ndarray) -> str:
    id, label, split = (files.at[positions[0], column] for column in ("id", "label", "split"))
    more = f" and {len(positions) - 1:,} more" if len(positions) > 1 else ""
    return f"{id} ({label}, {split or 'skipped'}){more}"


def _label_issues(
    files: pd.DataFrame,
    class_names: tuple[str, ...],
    examples: np.ndarray,
    values: np.ndarray,
    towards: np.ndarray,
    notes: list[str],
) -> Iterator[Finding]:
    number = {name: index for index, name in enumerate(class_names)}
    is_trained = files["label"].iloc[examples].isin(number).to_numpy()  # not of an unseen class
    examples, values, towards = examples[is_trained], values[is_trained], towards[is_trained]
    labels = files["label"].iloc[examples].map(number).to_numpy()
    if len(examples) > MAX_COMPARED:
        notes.append(f"Label issues and outliers: not for {len(examples):,} images, more than {MAX_COMPARED:,}.")
        return
    try:
        issues = find_label_issues(values, labels, files["near_duplicates"].iloc[examples].to_numpy())
    except MissingExtra as error:
        notes.append(f"Label issues and outliers were not searched for. {error}")
        return
    rated = np.flatnonzero(issues.suggestion >= 0)
    columns = ["suggestion", "probability", "quality"]
    suggested = np.array(class_names, object)[issues.suggestion[rated]]
    for column, found in zip(columns, (suggested, issues.probability[rated], issues.quality[rated]), strict=True):
        files.loc[examples[rated], column] = found
    for place in np.flatnonzero(issues.is_issue).tolist():
        likely = f"{class_names[issues.suggestion[place]]} {issues.probability[place]:.0%}"
        for position in _with_its_copies(files, examples[place]):
            files.loc[position, columns] = files.loc[examples[place], columns]
            yield position, "label issue", likely
    is_sure = files["suggestion"].iloc[examples].to_numpy() == files["label"].iloc[examples].to_numpy()
    files.loc[examples[is_sure], ["suggestion", "probability"]] = ["", np.nan]
    distances = distances_to_class(towards, labels)
    for place in np.flatnonzero(outliers(distances, labels) & ~issues.is_issue).tolist():
        yield from ((position, "outlier", "") for position in _with_its_copies(files, examples[place]))
    agreement = (issues.suggestion[rated] == labels[rated]).mean() if len(rated) else 0
    notes.append(
        f"Label issues: cleanlab (confident learning) on cross-validated probabilities of a logistic regression on the "
        f"features of {len(rated):,} images; it predicts {agreement:.1%} of the given labels."
    )
    if issues.too_small:
        names = ", ".join(class_names[label] for label in issues.too_small[:4])
        notes.append(f"Label issues: {len(issues.too_small)} classes have too few different images, such as {names}.")
