"""LiteRT (TensorFlow Lite): a file for phones and small machines, float or with 8-bit integers.

It takes uint8 pixels, so MediaPipe and ML Kit need no normalisation metadata, and uses built-in operators only.
"""

import io
import json
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transfer_learning.errors import needs_extra
from transfer_learning.exports.litert_metadata import with_metadata
from transfer_learning.exports.metadata import KEY, Loaded, Metadata

if TYPE_CHECKING:
    from transfer_learning.exports.network import Network

LABELS, CLASS_NAMES, OWN = "labels.txt", "class_names.json", f"{KEY}.json"  # files in the archive behind the network

SNIPPET = """
import json, zipfile
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps

names = json.loads(zipfile.ZipFile("{file}").read("class_names.json"))
run = Interpreter("{file}").get_signature_runner()
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
image = np.asarray({resize})
probabilities = run(image=image[None])["probabilities"][0]
print(names[probabilities.argmax()], probabilities.max())
"""


def write(network: "Network", path: Path) -> None:
    """Writes the file in float32."""
    finish(converted(network), network.metadata, path)


def write_int8(network: "Network", path: Path) -> None:
    """Writes the file with 8-bit weights (a scale per channel) and activations (ranges of the calibration images).

    Static, since dynamic quantization destroys networks with depthwise convolutions. Input and output stay uint8
    pixels and float32 probabilities.
    """
    finish(converted(network, is_int8=True), network.metadata, path)


def load(path: Path, threads: int) -> Loaded:
    """Opens the file with the LiteRT runtime on the processor.

    Raises:
        MissingExtra: ai-edge-litert is not installed.
        ValueError: the file is not one of `write`, or is damaged.
    """
    with needs_extra("export"):
        from ai_edge_litert.interpreter import Interpreter

    try:
        with zipfile.ZipFile(path) as archive:
            metadata = Metadata.from_json(archive.read(OWN))
        interpreter = Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
    except (zipfile.BadZipFile, KeyError, RuntimeError) as error:
        raise ValueError(str(error)) from None
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    lock, shape = threading.Lock(), tuple(given["shape"])  # an interpreter has one set of tensors

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal shape
        with lock:
            if images.shape != shape:
                interpreter.resize_tensor_input(given["index"], images.shape)
                interpreter.allocate_tensors()
                shape = images.shape
            interpreter.set_tensor(given["index"], images)
            interpreter.invoke()
            return interpreter.get_tensor(result["index"])

    return Loaded(metadata, run)


def converted(network: "Network", is_int8: bool = False) -> bytes:
    """The network in LiteRT's format, without names and metadata."""
    import tensorflow as tf

    module = tf.Module()  # with a name for the signature, so that tensors are called image and probabilities
    module.serve = tf.function(
        lambda image: {"probabilities": network.function(image)},
        autograph=False,
        input_signature=network.function.input_signature,
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.serve.get_concrete_function()], module)
    operators = tf.lite.OpsSet.TFLITE_BUILTINS_INT8 if is_int8 else tf.lite.OpsSet.TFLITE_BUILTINS
    converter.target_spec.supported_ops = [operators]
    if is_int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        images = network.calibration_images()
        converter.representative_dataset = lambda: ([image[None]] for image in images)
    return converter.convert()


def finish(model: bytes, metadata: Metadata, path: Path) -> None:
    """Writes a converted model with the official metadata inside and an archive of the class names behind it."""
    archive = io.BytesIO()
    archive.write(model := with_metadata(model, metadata, LABELS))
    with zipfile.ZipFile(archive, "a") as files:
        # One line per class, as MediaPipe reads it; a name with line ends would be two classes.
        lines = "\n".join(" ".join(name.splitlines()) for name in metadata.class_names)
        files.writestr(LABELS, lines)
        files.writestr(CLASS_NAMES, json.dumps(metadata.class_names))
        files.writestr(OWN, metadata.to_json())
    path.write_bytes(archive.getvalue())
