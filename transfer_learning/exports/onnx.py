"""ONNX: a file for ONNX Runtime on any platform and in browsers, with the class names in its metadata properties."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer_learning.errors import needs_extra
from transfer_learning.exports.metadata import KEY, Loaded, Metadata

if TYPE_CHECKING:
    from transfer_learning.exports.network import Network

OPSET = 15  # tf2onnx tests 14 to 18; 15 is read by every runtime since 2021

SNIPPET = """
import json
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{file}")
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
image = np.asarray({resize})
probabilities = session.run(["probabilities"], {{"image": image[None]}})[0][0]
print(names[probabilities.argmax()], probabilities.max())
"""


def write(network: "Network", path: Path) -> None:
    """Writes the file.

    Raises:
        MissingExtra: onnx or tf2onnx is not installed.
    """
    with needs_extra("export"):
        import onnx
        import tf2onnx  # noqa: F401

    model = _converted(network)
    names = network.metadata.class_names
    properties = {
        "names": repr(dict(enumerate(names))),  # the key and the form of Ultralytics, whose tools read it
        "class_names": json.dumps(names),
        KEY: network.metadata.to_json(),
    }
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)


def _converted(network: "Network") -> Any:
    """Returns the ONNX model: the only place that knows tf2onnx, which has no maintainer and is pinned.

    Keras patches it for NumPy 2 and the attributes of recent versions of TensorFlow.
    """
    import tf2onnx
    from keras.src.export.onnx import patch_tf2onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the patch asks NumPy for names that it no longer has
        patch_tf2onnx()
        model, _ = tf2onnx.convert.from_function(network.function, network.function.input_signature, opset=OPSET)
    graph = model.graph
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    before, name = graph.output[0].name, "probabilities"  # tf2onnx calls it Identity:0
    graph.output[0].name = name
    for node in graph.node:
        node.output[:] = [name if output == before else output for output in node.output]
        node.input[:] = [name if given == before else given for given in node.input]
    return model


def load(path: Path, threads: int) -> Loaded:
    """Opens the file with ONNX Runtime on the processor.

    Raises:
        MissingExtra: onnxruntime is not installed.
        ValueError: the file is not one of `write`, or is damaged.
    """
    with needs_extra("export"):
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes of errors have no common base but this
        raise ValueError(str(error)) from None
    properties = session.get_modelmeta().custom_metadata_map
    if KEY not in properties:
        raise ValueError(f"it has no metadata property {KEY}")
    (name,) = (value.name for value in session.get_inputs())

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(["probabilities"], {name: images})[0]

    return Loaded(Metadata.from_json(properties[KEY]), run)
