"""Keras: a file that `keras.models.load_model` reads without this package, with the class names in its archive."""

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transfer_learning.exports.metadata import KEY, Loaded, Metadata

if TYPE_CHECKING:
    from transfer_learning.exports.network import Network

CLASS_NAMES, OWN = "class_names.json", f"{KEY}.json"  # files in the archive, which Keras ignores

SNIPPET = """
import json, zipfile
import keras
import numpy as np
from PIL import Image, ImageOps

names = json.loads(zipfile.ZipFile("{file}").read("class_names.json"))
model = keras.models.load_model("{file}")
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
image = np.asarray({resize})
probabilities = model.predict(image[None], verbose=0)[0]
print(names[probabilities.argmax()], probabilities.max())
"""


def write(network: "Network", path: Path) -> None:
    """Writes the file: the run's ``model.keras`` with uint8 pixels as its input."""
    import keras

    from transfer_learning.models.classifier import exported_model

    size = network.metadata.image_size
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    as_float = keras.layers.Rescaling(1.0, dtype="float32", name="as_float")
    keras.Model(image, exported_model(network.classifier)(as_float(image)), name="classifier").save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(CLASS_NAMES, json.dumps(network.metadata.class_names))
        archive.writestr(OWN, network.metadata.to_json())


def load(path: Path, threads: int) -> Loaded:
    """Opens the file with Keras, which uses its own number of threads.

    It may hold code of the layers that it names, and Keras' loader had vulnerabilities: open files that you trust.

    Raises:
        ValueError: the file is not one of `write`, or is damaged.
    """
    import keras

    try:
        with zipfile.ZipFile(path) as archive:
            metadata = Metadata.from_json(archive.read(OWN))
        model = keras.models.load_model(path, compile=False)
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(str(error)) from None

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict_on_batch(images))

    return Loaded(metadata, run)
