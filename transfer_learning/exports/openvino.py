"""OpenVINO: a folder of two files for Intel's processors and OpenVINO Model Server."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer_learning.errors import needs_extra
from transfer_learning.exports.metadata import KEY, Loaded, Metadata

if TYPE_CHECKING:
    from transfer_learning.exports.network import Network

FILE = "model.xml"  # the weights are in model.bin beside it
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}  # some processors would compute in bfloat16

SNIPPET = """
import json
import numpy as np
import openvino
from PIL import Image, ImageOps

model = openvino.Core().read_model("{file}/model.xml")
names = json.loads(model.get_rt_info(["transfer_learning", "class_names"]).value)
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
image = np.asarray({resize})
run = openvino.compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
probabilities = run(image[None])[0][0]
print(names[probabilities.argmax()], probabilities.max())
"""


def write(network: "Network", path: Path) -> None:
    """Writes the folder.

    Raises:
        MissingExtra: openvino is not installed.
    """
    openvino = _without_telemetry()
    model = openvino.convert_model(network.function.get_concrete_function())
    model.input(0).get_tensor().set_names({"image"})
    model.output(0).get_tensor().set_names({"probabilities"})
    names = network.metadata.class_names
    model.set_rt_info("Classification", ["model_info", "model_type"])  # the keys of OpenVINO's Model API,
    labels = " ".join("_".join(name.split()) or "_" for name in names)  # which are separated by spaces
    model.set_rt_info(labels, ["model_info", "labels"])
    model.set_rt_info(json.dumps(names), [KEY, "class_names"])
    model.set_rt_info(network.metadata.to_json(), [KEY, "metadata"])
    path.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, path / FILE, compress_to_fp16=False)  # 16 bits would change probabilities by up to 1e-3


def load(path: Path, threads: int) -> Loaded:
    """Opens the folder, or the .xml file in it, with OpenVINO on the processor.

    Raises:
        MissingExtra: openvino is not installed.
        ValueError: the files are not those of `write`, or are damaged.
    """
    openvino = _without_telemetry()
    try:
        model = openvino.Core().read_model(path if path.suffix == ".xml" else path / FILE)
        if not model.has_rt_info([KEY, "metadata"]):
            raise ValueError(f"it has no {KEY} in its rt_info")
        metadata = Metadata.from_json(str(model.get_rt_info([KEY, "metadata"]).value))
        compiled = openvino.compile_model(model, "CPU", EXACT | {"INFERENCE_NUM_THREADS": threads})
    except RuntimeError as error:
        raise ValueError(str(error)) from None

    def run(images: np.ndarray) -> np.ndarray:
        return compiled.create_infer_request().infer([images])[0]  # a request per call: threads share none

    return Loaded(metadata, run)


def _without_telemetry() -> Any:
    """Imports OpenVINO, which would report every import and conversion to Google if its telemetry could be imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    with needs_extra("export"):
        import openvino

    return openvino
