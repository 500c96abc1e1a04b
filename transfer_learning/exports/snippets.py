"""The programs of the model card: each classifies photo.jpg with one file; the gate runs exactly these."""

from transfer_learning.exports.formats import Format
from transfer_learning.exports.metadata import Metadata

RESIZES = {
    "squash": "image.resize(({0}, {0}), Image.Resampling.BICUBIC)",
    "crop": "ImageOps.fit(image, ({0}, {0}), Image.Resampling.BICUBIC)",
    "pad": "ImageOps.pad(image, ({0}, {0}), Image.Resampling.BICUBIC)",
}


def snippet_of(format: Format, metadata: Metadata) -> str:
    """Returns the program for a file of this format; it prints the class and its probability."""
    resize = RESIZES[metadata.resize].format(metadata.image_size)
    return format.snippet.format(file=format.path, resize=resize)
