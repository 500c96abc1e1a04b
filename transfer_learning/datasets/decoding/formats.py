"""Which files are images: by suffix, or by content where there is no suffix; and what other files are."""

import re
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

SUFFIXES = {  # by Pillow's name of the format; an allow-list: Pillow knows 40 more, some of them old
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),  # decoded with the extra `heic`
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
# Image formats that are not decoded; some of their decoders have a long history of security holes.
OTHER_SUFFIXES = frozenset(
    ".jxl .jp2 .j2k .jpx .svg .psd .xcf .tga .ico .eps .exr .hdr .dcm .fits .mha .nii .raw .dng .cr2 .cr3 .nef .arw "
    ".orf .rw2 .raf .pef .srw".split()
)
NUM_NAMED = 5  # suffixes per message
NUM_BYTES = 64  # of a file, that `format_of` needs
SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "BMP": rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF.{4}WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "PPM": rb"P[1-6Ff]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s|P[1-6Ff]\s+#",
    "AVIF": rb".{4}ftyp(.{4})*?avi[fs]",
    "HEIF": rb".{4}ftyp(.{4})*?(hei[cxms]|hev[cx]|mif1|msf1)",
}
PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, pattern in SIGNATURES.items()}


def suffix_of(name: str | PurePath) -> str:
    """The suffix in lower case, in UTF-8; "" for none, or for one without a letter, as in ``1.2.840``."""
    suffix = (name if isinstance(name, PurePath) else PurePath(name)).suffix.lower()
    return suffix.encode(errors="replace").decode() if any(letter.isalpha() for letter in suffix) else ""


def format_of(beginning: bytes) -> str:
    """The format of an image whose first NUM_BYTES are given, a key of SUFFIXES; "" if it is none."""
    if beginning[4:8] == b"ftyp":  # only the list of brands is looked at
        beginning = beginning[: max(12, int.from_bytes(beginning[:4], "big"))]
    return next((name for name, pattern in PATTERNS.items() if pattern.match(beginning)), "")


def begins_like_an_image(path: Path) -> bool:
    """Whether a file begins like one of the formats; no link to a pipe or device is opened."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return bool(format_of(file.read(NUM_BYTES)))
    except OSError:
        return False


def count_by_suffix(names: Iterable[str | PurePath]) -> str:
    """``24 .dcm, 3 .txt, 1 without suffix`` of file names, the most frequent first."""
    counts = Counter(suffix_of(name) for name in names).most_common()
    shown = [f"{count:,} {suffix or 'without suffix'}" for suffix, count in counts[:NUM_NAMED]]
    if rest := sum(count for _, count in counts[NUM_NAMED:]):
        shown.append(f"{rest:,} others")
    return ", ".join(shown)


class _Other(NamedTuple):
    """A kind of file that is given in place of a dataset."""

    what: str
    advice: str
    suffixes: tuple[str, ...]
    signature: bytes = b""


_UNPACK = "unpack it, and pass the folder"
_SAVE_AS_CSV = "save the sheet as a CSV file with the columns path,label, and pass that"
_AS_CSV = "write its paths and labels to a CSV file with the columns path,label, and pass that"
_AS_FOLDER = "write the images into one folder per class, and pass the folder above"
_OTHERS = (
    _Other("a 7z archive", _UNPACK, (".7z",), b"7z\xbc\xaf\x27\x1c"),
    _Other("a RAR archive", _UNPACK, (".rar",), b"Rar!\x1a\x07"),
    _Other("a compressed file", "unpack it, and pass what is inside", (".gz", ".bz2", ".xz"), b"\x1f\x8b"),
    _Other("an archive of a kind that is not read", _UNPACK, (".zst", ".lz4", ".lzma", ".cab", ".iso", ".dmg")),
    _Other("an Excel table", _SAVE_AS_CSV, (".xlsx", ".xlsm", ".xls", ".xlsb")),
    _Other("a table of an office program", _SAVE_AS_CSV, (".ods", ".numbers")),
    _Other("a JSON file", _AS_CSV, (".json", ".jsonl", ".ndjson")),
    _Other("an XML or YAML file", _AS_CSV, (".xml", ".yaml", ".yml"), b"<?xml"),
    _Other("a document", _AS_FOLDER, (".pdf", ".docx", ".doc", ".odt", ".pptx", ".ppt"), b"%PDF-"),
    _Other("an Office document", _SAVE_AS_CSV, (), b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    _Other("a zip archive", "rename it so that its name ends in .zip", (), b"PK\3\4"),
    _Other("a Parquet file", "pass the folder of such files as hf:FOLDER", (".parquet", ".arrow", ".feather"), b"PAR1"),
    _Other("a NumPy file", _AS_FOLDER, (".npy", ".npz"), b"\x93NUMPY"),
    _Other("an HDF5 or MATLAB file", _AS_FOLDER, (".h5", ".hdf5", ".mat"), b"\x89HDF\r\n\x1a\n"),
    _Other("a pickle, which could run code", _AS_FOLDER, (".pkl", ".pickle", ".pt", ".pth")),
    _Other("a TFRecord or LMDB file", _AS_FOLDER, (".tfrecord", ".tfrecords", ".mdb", ".lmdb")),
    _Other("a database", _AS_FOLDER, (".db", ".sqlite", ".sqlite3"), b"SQLite format 3\0"),
    _Other(
        "a video",
        "save some of its frames as images in one folder per class",
        (".mp4", ".mov", ".avi", ".mkv", ".webm"),
    ),
)


def explain_other_file(path: Path) -> tuple[str, str] | None:
    """What a file is that was given as a dataset and is no table or archive, and what to do; None if unknown.

    An image is known by its content, too, whatever its name; a file of an office program is a zip archive inside.
    """
    try:
        with open(path, "rb") as file:
            beginning = file.read(NUM_BYTES)
    except OSError:
        return None
    suffix = suffix_of(path)
    if format_of(beginning) or (suffix in IMAGE_SUFFIXES | OTHER_SUFFIXES):
        return (
            "a single image",
            "give a folder with one subfolder of images per class; to classify this image with a finished run, use "
            f"transfer-learning predict RUN_DIR {shlex.quote(str(path))}",
        )
    by_suffix = [other for other in _OTHERS if suffix in other.suffixes]
    by_content = [other for other in _OTHERS if other.signature and beginning.startswith(other.signature)]
    return next(((other.what, other.advice) for other in (*by_suffix, *by_content)), None)
