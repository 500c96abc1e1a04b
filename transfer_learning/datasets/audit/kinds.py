"""The kinds of findings of an audit, and what each means for a run."""

from transfer_learning.datasets import dataset

ENLARGED = 4  # an image counts as too small if it is enlarged more than so many times
LARGE_PIXELS, LARGE_BYTES = 50e6, 50e6
ELONGATED = 4.0  # ratio of the sides

# In the order in which a person should look at them.
KINDS = {
    "similar class names": "class names that differ only in case, accents, spaces or the like: probably one class",
    "label issue": "another label is more probable; review it in corrections.csv",
    "duplicate with another label": "the same picture has two labels; review it in corrections.csv",
    "near-duplicate with another label": "nearly the same picture has another label; review it in corrections.csv",
    "near-duplicate in another split": "nearly the same picture is in another split; drop one, or use --group-by",
    dataset.DUPLICATE_IN_OTHER_SPLIT: "the same picture is in val or test, so it is skipped here",
    dataset.GROUP_IN_OTHER_SPLIT: "images of the same group are in val or test, so it is skipped here",
    dataset.EMPTY_FILE: "the file has no content",
    dataset.TRUNCATED_FILE: "the file ends too early, as after an interrupted download",
    dataset.NOT_AN_IMAGE: "named like an image, but the content has no supported format",
    dataset.TOO_MANY_PIXELS: "not decoded, because it could fill the memory",
    dataset.UNREADABLE_FILE: "missing, without permission to read, damaged, or it crashes the decoder",
    dataset.MISSING_EXTRA: "HEIC needs the package pillow-heif: pip install 'transfer-learning[heic]'",
    dataset.DROPPED: "left out, as --corrections says",
    "outlier": "far from all other images of its class; review it in corrections.csv",
    "single colour": "all pixels have the same colour; review it in corrections.csv",
    "duplicate": "the same picture is several times in one class and split; each copy is used",
    "near-duplicate": "nearly the same picture is several times in one class and split; each copy is used",
    "elongated": f"more than {ELONGATED:g} times as long as wide, so little of it is left in a square",
    "too small": f"enlarged more than {ENLARGED} times",
    "too large": f"more than {LARGE_PIXELS / 1e6:g} million pixels or {LARGE_BYTES / 1e6:g} MB: slow to decode",
    "wrong suffix": "decoded by its content; other programs may rely on the suffix",
    "image without image suffix": "ignored because of its name; rename it to use it",
    "unsupported format": "ignored; convert it to JPEG or PNG to use it",
    "similar file names": "names that differ only in case, accents or letter width: some file systems treat them as one",
    "link outside the folder": "followed; a copy of the folder would not contain its target",
    "animated or multi-page": "only the first frame is used",
    "EXIF rotation": "rotated as its EXIF orientation says",
    "CMYK": "converted to RGB without its colour profile",
    "palette": "converted to RGB",
    "transparent": "shown on white",
    "more than 8 bits": "scaled to 8 bits by the value range of all such images",
    "grey": "its one channel is used as red, green and blue",
    "other colours": "converted to RGB by Pillow",
}
REVIEWED = (  # kinds that `prepare` lists in corrections.csv
    "label issue; duplicate with another label; near-duplicate with another label; near-duplicate in another split; "
    "outlier; single colour"
).split("; ")
