"""SavedModel: a folder for TensorFlow Serving and KServe, with the labels as strings in its outputs.

Signatures: ``serving_default`` takes uint8 batches, ``image_bytes`` encoded images (JPEG, PNG, GIF, BMP), as TensorFlow
Serving's REST interface sends them. TensorFlow decodes and resizes these: pixels may differ from the run's by a grey
level or two, and EXIF rotations are not applied.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer_learning.exports.metadata import Loaded, Metadata

if TYPE_CHECKING:
    from transfer_learning.exports.network import Network

MOST_PIXELS = 2**26  # of an encoded image, decoded by TensorFlow, which has no limit of its own

SNIPPET = """
import tensorflow as tf

model = tf.saved_model.load("{file}")
with open("photo.jpg", "rb") as file:  # decoded and resized inside
    result = model.signatures["image_bytes"](image_bytes=tf.constant([file.read()]))
print(result["label"][0].numpy().decode(), float(result["confidence"][0]))
"""


def write(network: "Network", path: Path) -> None:
    """Writes the folder."""
    import tensorflow as tf

    metadata = network.metadata
    class_names = tf.constant(list(metadata.class_names))

    def outputs(probabilities: Any) -> dict[str, Any]:
        return {
            "probabilities": probabilities,
            "label": tf.gather(class_names, tf.argmax(probabilities, axis=1)),
            "confidence": tf.reduce_max(probabilities, axis=1),
        }

    @tf.function(autograph=False, input_signature=network.function.input_signature)
    def serving_default(image):
        return outputs(network.function(image))

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None,), tf.string, name="image_bytes")])
    def image_bytes(image_bytes):
        size = metadata.image_size
        image = tf.map_fn(
            lambda content: _opened(content, size, metadata.resize),
            image_bytes,
            fn_output_signature=tf.TensorSpec((size, size, 3), tf.uint8),
        )
        return outputs(network.function(image))

    @tf.function(autograph=False, input_signature=[])
    def described():
        return {"class_names": class_names, "metadata": tf.constant(metadata.to_json())}

    signatures = {"serving_default": serving_default, "image_bytes": image_bytes, "metadata": described}
    tf.saved_model.save(tf.Module(), str(path), signatures=signatures)


def _opened(content: Any, size: int, resize: str) -> Any:
    """Decodes and resizes as `datasets.decoding.decode` does, as far as TensorFlow can; uint8 (size, size, 3)."""
    import tensorflow as tf

    def as_pixels(values):
        return tf.cast(tf.clip_by_value(tf.round(values), 0, 255), tf.uint8)

    def resized(pixels, height, width):
        return as_pixels(tf.image.resize(pixels, (height, width), method="bicubic", antialias=True))

    pixels = tf.cond(
        tf.io.is_jpeg(content),  # by decode_image they differ from Pillow's by up to seven grey levels
        lambda: tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(content, channels=3, expand_animations=False),
    )
    height, width = tf.shape(pixels)[0], tf.shape(pixels)[1]
    tf.debugging.assert_less_equal(height * width, MOST_PIXELS, "The image has too many pixels.")
    if resize == "crop":  # one resampling, since the corner may be half a pixel from a whole one
        side = tf.minimum(height, width)
        scale = size / side
        corner = [tf.cast(margin, tf.float64) / 2 * scale for margin in (height - side, width - side)]
        pixels = tf.raw_ops.ScaleAndTranslate(
            images=tf.cast(pixels[None], tf.float32),
            size=(size, size),
            scale=tf.cast([scale, scale], tf.float32),
            translation=-tf.cast(corner, tf.float32),
            kernel_type="keyscubic",
            antialias=True,
        )[0]
        return as_pixels(pixels)
    if resize == "pad":
        scale = size / tf.maximum(height, width)
        new = [
            tf.maximum(1, tf.cast(tf.round(tf.cast(side, tf.float64) * scale), tf.int32)) for side in (height, width)
        ]
        down, right = (tf.cast(tf.round((size - side) / 2), tf.int32) for side in new)  # half to even, as Pillow
        return tf.image.pad_to_bounding_box(resized(pixels, *new), down, right, size, size)
    return resized(pixels, size, size)


def load(path: Path, threads: int) -> Loaded:
    """Opens the folder with TensorFlow, which uses its own number of threads.

    Raises:
        ValueError: the folder is not one of `write`, or is damaged.
    """
    import tensorflow as tf

    try:
        model = tf.saved_model.load(str(path))
        metadata = Metadata.from_json(model.signatures["metadata"]()["metadata"].numpy())
    except (OSError, KeyError, tf.errors.OpError) as error:
        raise ValueError(str(error)) from None
    signature = model.signatures["serving_default"]

    def run(images: np.ndarray) -> np.ndarray:
        return signature(image=tf.constant(images))["probabilities"].numpy()

    return Loaded(metadata, run)
