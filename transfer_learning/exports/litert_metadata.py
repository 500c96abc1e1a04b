"""TensorFlow Lite's official metadata, which MediaPipe and ML Kit read: what goes in and out, and where the labels are.

Its writer is in packages that are dead (tflite-support) or large (mediapipe); this is the part that a classifier needs.
The numbers are the positions of the fields in metadata_schema.fbs of MediaPipe.
"""

from collections.abc import Sequence
from typing import Any

import flatbuffers

from transfer_learning.exports.metadata import Metadata

NAME = b"TFLITE_METADATA"  # of the buffer
IDENTIFIER = b"M001"  # of the schema
PARSER = "1.0.0"  # the first version knows all of these fields
IMAGE_PROPERTIES, RGB, AXIS_LABELS = 2, 1, 2  # members of the enumerations


def with_metadata(model: bytes, metadata: Metadata, labels: str) -> bytes:
    """Returns the model with the metadata inside; `labels` is the name of the file in the archive behind it."""
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(_described(metadata, labels))
    entry.name, entry.buffer = NAME, len(tree.buffers)
    tree.buffers.append(buffer)
    tree.metadata = [*(tree.metadata or []), entry]
    builder = flatbuffers.Builder(len(model) + 4096)
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _described(metadata: Metadata, labels: str) -> bytes:
    builder = flatbuffers.Builder(1024)

    def text(value: str) -> tuple[str, int]:
        return "UOffsetT", builder.CreateString(value)

    def table(**fields: tuple[str, int]) -> tuple[str, int]:
        """A table from its fields by position, as `_3=...`."""
        builder.StartObject(max((int(place[1:]) for place in fields), default=0) + 1)
        for place, (kind, value) in fields.items():
            slot = int(place[1:])
            if kind == "UOffsetT":
                builder.PrependUOffsetTRelativeSlot(slot, value, 0)
            else:
                getattr(builder, f"Prepend{kind}Slot")(slot, value, 0)
        return "UOffsetT", builder.EndObject()

    def tables(members: Sequence[tuple[str, int]]) -> tuple[str, int]:
        builder.StartVector(4, len(members), 4)
        for _, place in reversed(members):
            builder.PrependUOffsetTRelative(place)
        return "UOffsetT", builder.EndVector()

    def tensor(name: str, description: str, **more: Any) -> tuple[str, int]:
        return table(_0=text(name), _1=text(description), **more)

    pixels = table(_0=("Int8", RGB))
    image = tensor(
        "image", f"RGB, 0..255, square by {metadata.resize}", _3=table(_0=("Uint8", IMAGE_PROPERTIES), _1=pixels)
    )
    classes = table(_0=text(labels), _1=text("one class per line"), _2=("Int8", AXIS_LABELS))
    result = tensor("probabilities", "one per class, sum 1", _6=tables([classes]))
    graph = table(_2=tables([image]), _3=tables([result]))
    model = table(_0=text("ImageClassifier"), _1=text("made by transfer-learning"), _3=tables([graph]), _7=text(PARSER))
    builder.Finish(model[1], IDENTIFIER)
    return bytes(builder.Output())
