"""Writes an audit: a page with images, a table of every file, and a table of images to review."""

import base64
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from transfer_learning.cli.parser import command_line
from transfer_learning.config import RESIZES, RunConfig
from transfer_learning.datasets.audit.findings import COLOURS, Audit
from transfer_learning.datasets.audit.kinds import KINDS
from transfer_learning.datasets.corrections import COLUMNS, Corrections
from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.decoding.workers import DecodeWorkers
from transfer_learning.datasets.prepared import PreparedDataset
from transfer_learning.errors import UserError
from transfer_learning.reports.page import counts_by_class, unseen_class_counts, write_page
from transfer_learning.storage.files import check_writable, write_text

PAGE, TABLE, CORRECTIONS = "audit.html", "audit.csv", "corrections.csv"
NUM_SEEN = 12  # images, in the section on what the network sees
NUM_PICTURES, NUM_GROUPS, NUM_OF_GROUP, NUM_NAMED = 30, 12, 8, 50
THUMBNAIL = 112  # pixels


class Written(NamedTuple):
    """The files of an audit, and the number of images to review."""

    page: Path
    table: Path
    corrections: Path
    num_to_review: int = 0


def new_audit_dir(path: str | None, dataset: str) -> Path:
    """Returns `path`, which must be new or empty, or for None a new ``runs/audit-photos-20260131-120000``."""
    if path is None:
        name = Path(dataset.rstrip("/").replace(":", "-")).stem
        folder = Path("runs") / f"audit-{name}-{datetime.now():%Y%m%d-%H%M%S}"
        names = itertools.chain([folder], (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2)))
        folder = next(folder for folder in names if not folder.exists())
    else:
        folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problem = "holds files" if folder.is_dir() else "is a file"
        raise UserError(f"--out {path} {problem}; give a new or empty directory.")
    check_writable(folder, "--out")
    return folder


def write_audit(
    audit: Audit,
    dataset: Dataset,
    data: PreparedDataset,
    config: RunConfig,
    folder: Path,
    flags: Sequence[str],
    corrections: Corrections | None = None,
) -> Written:
    """Writes the page and both tables into `folder`. `flags` of `run` name the dataset without corrections; those that
    `data` has applied begin the new table, which does not list their images again.
    """
    written = Written(folder / PAGE, folder / TABLE, folder / CORRECTIONS)
    folder.mkdir(parents=True, exist_ok=True)
    table = audit.files.drop(columns=["quality"]).rename(columns={"num_bytes": "bytes"})
    write_text(written.table, table.to_csv(index=False, lineterminator="\n", float_format="%.3f"))
    actions, to_review = corrections.actions if corrections else {}, audit.to_review()
    to_review = to_review[~to_review["id"].isin(actions.keys())]
    before = audit.files[audit.files["id"].isin(actions.keys())]
    before = before.assign(why="reviewed before", action=before["id"].map(actions))
    rows = pd.concat([before, to_review.assign(action="keep")], ignore_index=True)
    contents = dict(zip(data.manifest["id"], data.manifest["sha256"], strict=True))
    rows = rows.assign(sha256=rows["id"].map(contents))[list(COLUMNS)]
    write_text(written.corrections, rows.to_csv(index=False, lineterminator="\n", float_format="%.3f"))
    content = page_content(audit, dataset, data, config, to_review)
    corrected = command_line("run", *flags, "--corrections", str(written.corrections))
    write_page(PAGE, content | {"command": command_line("run", *flags), "corrected": corrected}, written.page)
    return written._replace(num_to_review=len(to_review))


def describe_crop(audit: Audit) -> str:
    """``--resize crop discards 25.0% of the pixels of the median image, and 96.7% of the worst.``"""
    lost = _shares_lost(audit.files)
    share = f"{lost.median():.1%} of the pixels of the median image, and {lost.max():.1%} of the worst"
    return f"--resize crop discards {share}."


def file_counts(audit: Audit) -> str:
    """``1,263 files on disk = 1,190 used + 10 skipped + 63 ignored``; a remark if their number on disk has changed."""
    parts = audit.files["what"].value_counts()
    named = " + ".join(f"{parts.get(what, 0):,} {what}" for what in ("used", "skipped", "ignored"))
    total = len(audit.files)
    if audit.num_on_disk is None:
        return f"{total:,} images and other entries = {named}"
    if audit.num_on_disk != total:
        return f"{total:,} files = {named}; {audit.num_on_disk:,} are on disk now, so run `prepare` again"
    return f"{total:,} files on disk = {named}"


def page_content(
    audit: Audit, dataset: Dataset, data: PreparedDataset, config: RunConfig, to_review: pd.DataFrame
) -> dict[str, Any]:
    """The values of the template."""
    files = audit.files
    pictures = Pictures(data, files)
    kinds = [
        {"kind": kind, "count": count, "meaning": KINDS[kind], "rows": _named_rows(audit.of_kind(kind).head(NUM_NAMED))}
        for kind, count in audit.counts.items()
    ]
    likely = audit.of_kind("label issue")
    likely = likely[likely["id"].isin(to_review["id"])].sort_values("quality", kind="stable")
    odd = audit.findings[audit.findings["kind"].isin(("outlier", "single colour", "elongated"))]
    odd = files.loc[odd["position"].drop_duplicates()]
    ignored = files[files["what"] == "ignored"].groupby("reason")["id"]
    return {
        "dataset": dataset.name,
        "num_classes": len(data.class_names),
        "parts": {what: int((files["what"] == what).sum()) for what in ("used", "skipped", "ignored")},
        "total": len(files),
        "is_folder": audit.num_on_disk is not None,
        "sum": file_counts(audit),
        "kinds": kinds,
        "num_named": NUM_NAMED,
        "counts": counts_by_class(data.manifest, data.class_names),
        "unseen_classes": unseen_class_counts(data.manifest),
        "formats": list(files.loc[files["remarks"] != "", "remarks"].str.split().str[0].value_counts().items()),
        "colours": _colours(files),
        "ignored": sorted(((len(ids), reason, ids.iloc[0]) for reason, ids in ignored), reverse=True),
        "seen": _seen(files, dataset, data, config),
        "resizes": _resizes(files, config),
        "image_size": config.image_size,
        "stored_size": config.stored_size,
        "resize": config.resize,
        "likely": [pictures.suggestion(row) for row in likely.head(NUM_PICTURES).itertuples()],
        "num_likely": len(likely),
        "num_to_review": len(to_review),
        "duplicates": list(_groups(audit, pictures, "duplicates")),
        "near_duplicates": list(_groups(audit, pictures, "near_duplicates")),
        "odd": [pictures.card(row, row.label, row.findings) for row in odd.head(NUM_PICTURES).itertuples()],
        "num_odd": len(odd),
        "thumbnail": THUMBNAIL,
        "notes": audit.notes,
        "files": Written(Path(PAGE), Path(TABLE), Path(CORRECTIONS)),
    }


class Pictures:
    """Thumbnails of the images at the model's input, as data URLs."""

    def __init__(self, data: PreparedDataset, files: pd.DataFrame):
        self._data, self._files = data, files

    def card(self, row, title: str, text: str) -> dict[str, str]:
        return {"picture": self.of(row.Index), "title": title, "text": text, "id": row.id}

    def suggestion(self, row) -> dict[str, str]:
        confidence = f"{row.probability:.0%}, given label {row.quality:.0%}"
        return self.card(row, f"{row.label} → {row.suggestion}", confidence)

    def of(self, position: int) -> str:
        """``data:image/jpeg;base64,...``; "" for an image that cannot be decoded."""
        row = self._data.images.rows[position]
        return as_text(self._data.images.pixels[np.array([row])][0]) if row >= 0 else ""


def as_text(pixels: np.ndarray, side: int = THUMBNAIL) -> str:
    """An image, uint8 (height, width, 3), as a data URL: PNG if it is smaller than `side`, else JPEG."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    if max(image.size) < side:
        image.save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _named_rows(rows: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {"id": row.id, "where": ", ".join(filter(None, (row.label, row.split or row.what))), "detail": row.detail}
        for row in rows.itertuples()
    ]


def _colours(files: pd.DataFrame) -> list[tuple[str, int, str]]:
    """Mode, count and conversion to RGB."""
    words = files.loc[files["remarks"] != "", "remarks"].str.split()
    shown = ("16-bit", "transparent")
    modes = words.map(lambda words: " ".join([words[1], *(word for word in words if word in shown)]))
    rows = []
    for mode, count in modes.value_counts().items():
        kinds = [
            "more than 8 bits" if "16-bit" in mode or mode == "F" else COLOURS.get(mode.split()[0], "other colours")
        ]
        kinds += ["transparent"] if "transparent" in mode else []
        rows.append((mode, count, ", ".join(KINDS[kind] for kind in kinds if kind) or "as it is"))
    return rows


def _resizes(files: pd.DataFrame, config: RunConfig) -> list[dict[str, Any]]:
    lost = _shares_lost(files)
    if lost.empty:
        return []
    stretch = 1 / (1 - lost)
    worst_id = files.loc[lost.idxmax(), "id"] if lost.max() > lost.min() else ""
    of = {
        "crop": ("of the pixels are discarded", f"{lost.median():.1%}", f"{lost.max():.1%}"),
        "squash": ("change of the aspect ratio (factor)", f"{stretch.median():.2f}", f"{stretch.max():.2f}"),
        "pad": ("of the input is black bars", f"{lost.median():.1%}", f"{lost.max():.1%}"),
    }
    names = ("resize", "is_chosen", "worst_id", "what", "median", "worst")
    return [dict(zip(names, (name, name == config.resize, worst_id, *of[name]), strict=True)) for name in RESIZES]


def _shares_lost(files: pd.DataFrame) -> pd.Series:
    """The fraction, 0 to 1, of the pixels of each used image outside of its central square."""
    known = files[(files["what"] == "used") & (files["width"] > 0)]
    return 1 - known[["width", "height"]].min(axis=1) / known[["width", "height"]].max(axis=1)


def _seen(files: pd.DataFrame, dataset: Dataset, data: PreparedDataset, config: RunConfig) -> list[dict[str, Any]]:
    """Some images with their crop, and at the model's input; the most elongated first."""
    lost, side = _shares_lost(files), 2 * THUMBNAIL
    order = lost.sort_values(ascending=False, kind="stable").index.to_numpy()
    chosen = order[np.unique(np.linspace(0, max(0, len(order) - 1), min(NUM_SEEN, len(order))).astype(int))]
    with DecodeWorkers(side, "pad", ranges=data.images.ranges) as workers:
        originals = workers.map(dataset.examples[position].source for position in chosen)
    seen = []
    for position, (_, (pixels, *_)) in zip(chosen, originals, strict=True):
        if pixels is None:  # deleted meanwhile, or too thin for this size
            continue
        row = files.loc[position]
        full = row[["width", "height"]]
        width, height = (round(side * value / full.max()) for value in full)
        left, top = (side - width) // 2, (side - height) // 2
        across, down = (100 * full.min() / full).astype(float)
        frame = {"left": 50 - across / 2, "top": 50 - down / 2, "width": across, "height": down}
        network = Image.fromarray(data.images.pixels[data.images.rows[[position]]][0])
        network = network.resize((config.image_size,) * 2, Image.Resampling.BILINEAR)
        seen.append(
            {
                "id": row["id"],
                "size": f"{row['width']} x {row['height']}",
                "original": as_text(pixels[top : top + height, left : left + width], side),
                "network": as_text(np.asarray(network), side),
                "frame": frame if config.resize == "crop" else None,
                "lost": f"{lost[position]:.1%}",
            }
        )
    return seen


def _groups(audit: Audit, pictures: Pictures, column: str) -> Iterator[dict[str, Any]]:
    """Groups of duplicates or near-duplicates, those across labels or splits first."""
    files = audit.files[audit.files[column] >= 0]
    groups = [group for _, group in files.groupby(column)]
    groups.sort(key=lambda group: (not _crossed(group)["labels"], not _crossed(group)["splits"], -len(group)))
    for group in groups[:NUM_GROUPS]:
        rows = group.head(NUM_OF_GROUP).itertuples()
        cards = [pictures.card(row, row.label, row.split or f"skipped: {row.reason}") for row in rows]
        yield {**_crossed(group), "count": len(group), "cards": cards, "num_groups": len(groups)}


def _crossed(group: pd.DataFrame) -> Mapping[str, bool]:
    splits = set(group["split"]) - {""}
    return {"labels": group["label"].nunique() > 1, "splits": len(splits) > 1 or bool((group["split"] == "").any())}
