"""The messages of the Open Inference Protocol, version 2, which KServe, Triton and OpenVINO Model Server speak, too.

https://github.com/kserve/open-inference-protocol, and Triton's extension for binary tensors: behind the JSON, whose
length ``Inference-Header-Content-Length`` is, follow the contents of the tensors; texts each with their length.
"""

import base64
import binascii
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transfer_learning.serving.guard import Refused

ENCODED, PIXELS = "image_bytes", "image"  # the inputs, of which a request has one
OUTPUTS = {"probabilities": "FP32", "confidence": "FP32", "label": "BYTES", "rejected": "BOOL"}
VERSION = "1"
JSON_LENGTH = "Inference-Header-Content-Length"
TEXT_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class InferRequest:
    """What a client asks."""

    id: str
    images: list[bytes] | np.ndarray  # encoded images, or pixels uint8 (n, size, size, 3)
    outputs: dict[str, bool] = field(default_factory=dict)  # name -> whether in binary


def model_metadata(name: str, size: int, num_classes: int) -> dict[str, Any]:
    """What ``GET /v2/models/M`` answers."""
    shapes = {"probabilities": [-1, num_classes]}
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "transfer-learning",
        "inputs": [
            {"name": ENCODED, "datatype": "BYTES", "shape": [-1]},
            {"name": PIXELS, "datatype": "UINT8", "shape": [-1, size, size, 3]},
        ],
        "outputs": [{"name": key, "datatype": kind, "shape": shapes.get(key, [-1])} for key, kind in OUTPUTS.items()],
    }


def read_request(body: bytes, json_length: str | None, size: int) -> InferRequest:
    """Reads the body of ``POST /v2/models/M/infer``.

    Args:
        json_length: the header JSON_LENGTH, if there is one.
        size: side of the pixels that the input PIXELS takes.

    Raises:
        Refused: it is not a request of the protocol, or asks for something that the model does not have.
    """
    length = len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdecimal() and int(json_length) <= length):
            raise Refused(400, f"{JSON_LENGTH} must be the number of bytes of the JSON at the beginning of the body.")
        length = int(json_length)
    request = json_object(body[:length])
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refused(400, f"Expected one tensor in inputs, {ENCODED} or {PIXELS}; see the metadata of the model.")
    images = _read_input(inputs[0], body[length:], size)
    binary_by_default = _parameters(request).get("binary_data_output") is True
    asked = request.get("outputs") or [{"name": name} for name in OUTPUTS]
    if not isinstance(asked, list) or not all(isinstance(output, dict) for output in asked):
        raise Refused(400, "outputs must be a list of objects with a name; leave it out for all of them.")
    outputs = {}
    for output in asked:
        name = output.get("name")
        if not isinstance(name, str) or name not in OUTPUTS:
            raise Refused(400, f"The model has no output {_short(name)}; known: {', '.join(OUTPUTS)}.")
        outputs[name] = bool(_parameters(output).get("binary_data", binary_by_default))
    request_id = request.get("id", "")
    return InferRequest(request_id if isinstance(request_id, str) else "", images, outputs)


def write_response(request: InferRequest, model: str, values: Mapping[str, Sequence]) -> tuple[bytes, int | None]:
    """Returns the body of the answer, and the length of its JSON if tensors follow behind it.

    Args:
        values: by the name of an output, one row per image.
    """
    outputs, tensors = [], []
    for name, is_binary in request.outputs.items():
        kind, array = OUTPUTS[name], np.asarray(values[name], None if OUTPUTS[name] != "BYTES" else object)
        output: dict[str, Any] = {"name": name, "datatype": kind, "shape": list(array.shape)}
        if is_binary:
            tensors.append(_texts_as_bytes(array) if kind == "BYTES" else array.tobytes())
            output["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    answer = {"model_name": model, "model_version": VERSION, "outputs": outputs}
    text = json.dumps(answer | ({"id": request.id} if request.id else {})).encode()
    return b"".join([text, *tensors]), len(text) if tensors else None


def json_object(content: bytes) -> dict[str, Any]:
    """Reads a JSON object; Refused if it is something else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise Refused(400, "The body is not JSON.") from None
    if not isinstance(value, dict):
        raise Refused(400, "The body is JSON, but not an object.")
    return value


def from_base64(text: Any) -> bytes:
    """The bytes of a text in base64, with or without the beginning of a data URI; Refused if it is something else."""
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (AttributeError, TypeError, ValueError, binascii.Error):
        raise Refused(400, "An image in JSON must be a text in base64.") from None


def _read_input(tensor: dict[str, Any], binary: bytes, size: int) -> list[bytes] | np.ndarray:
    name, kind, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    if (name, kind) not in ((ENCODED, "BYTES"), (PIXELS, "UINT8")):
        raise Refused(400, f"The model has no input {_short(name)} of that datatype; see its metadata.")
    if not isinstance(shape, list) or not all(type(side) is int and 0 < side < 2**31 for side in shape) or not shape:
        raise Refused(400, "The shape of a tensor must be a list of positive integers.")
    num_bytes = _parameters(tensor).get("binary_data_size")
    if num_bytes is not None and (type(num_bytes) is not int or num_bytes != len(binary)):
        raise Refused(400, "binary_data_size must be the number of bytes behind the JSON.")
    data = None if num_bytes is not None else _flat(tensor.get("data"))
    if name == ENCODED:
        images = list(_texts(binary)) if data is None else [from_base64(text) for text in data]
        if math.prod(shape) != len(images):
            raise Refused(400, f"The shape of {ENCODED} must be [n] or [n, 1] for n images.")
        return images
    if shape[1:] != [size, size, 3]:
        raise Refused(400, f"The shape of {PIXELS} must be [n, {size}, {size}, 3].")
    if data is not None and not all(type(value) is int and 0 <= value <= 255 for value in data):
        raise Refused(400, f"The data of {PIXELS} must be integers from 0 to 255.")
    pixels = np.frombuffer(binary, np.uint8) if data is None else np.array(data, np.uint8)
    if pixels.size != math.prod(shape):
        raise Refused(400, f"The data of {PIXELS} must be as many values as its shape says.")
    return pixels.reshape(shape)


def _parameters(item: dict[str, Any]) -> dict[str, Any]:
    parameters = item.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _flat(data: Any, depth: int = 0) -> list:
    """The values of nested lists, which the protocol allows, row by row."""
    if not isinstance(data, list) or depth > 4:
        raise Refused(400, "The data of a tensor must be a list.")
    if not any(isinstance(value, list) for value in data):
        return data
    return [value for row in data for value in _flat(row, depth + 1)]


def _texts(content: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(content):
        end = at + TEXT_LENGTH.size
        length = TEXT_LENGTH.unpack(content[at:end])[0] if end <= len(content) else len(content)
        if end + length > len(content):
            raise Refused(400, "A text in a binary tensor must follow its length, 4 bytes in little-endian order.")
        yield content[end : end + length]
        at = end + length


def _texts_as_bytes(texts: np.ndarray) -> bytes:
    encoded = [text.encode(errors="replace") for text in texts.ravel()]
    return b"".join(part for text in encoded for part in (TEXT_LENGTH.pack(len(text)), text))


def _short(name: Any) -> str:
    return repr(name)[:50]
