"""What each format promises to the programs of others."""

import ast
import io
import json
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import transfer_learning as tl
from tests.exports.conftest import CLASSES
from transfer_learning.datasets.decoding.decode import decode
from transfer_learning.evaluation import predictions
from transfer_learning.experiments import export
from transfer_learning.exports.formats import FORMATS
from transfer_learning.exports.metadata import Metadata
from transfer_learning.exports.saved_model import _opened
from transfer_learning.models.classifier import build_classifier


def saved(image, kind, **options):
    """The bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_a_saved_model_takes_encoded_images_as_tensorflow_serving_sends_them(files, recorded, photos_folder):
    import tensorflow as tf

    model = tf.saved_model.load(str(files["saved_model"]))
    table, expected = recorded
    content = [(photos_folder / id).read_bytes() for id in table["id"]]
    signature = model.signatures["image_bytes"]
    assert signature.structured_input_signature[1]["image_bytes"].dtype == tf.string
    result = {name: value.numpy() for name, value in signature(image_bytes=tf.constant(content)).items()}
    assert abs(result["probabilities"] - expected).max() < 0.02
    labels = [label.decode() for label in result["label"]]
    names = predictions.class_names(table)
    assert labels == [names[place] for place in result["probabilities"].argmax(axis=1)]
    assert (result["confidence"] == result["probabilities"].max(axis=1)).all()
    jpegs = [saved(Image.open(io.BytesIO(one)), "JPEG", quality=95) for one in content]
    found = tl.Predictor(files["saved_model"]).predict(jpegs)
    result = signature(image_bytes=tf.constant(jpegs))
    assert abs(result["confidence"].numpy() - found["confidence"]).max() < 0.02
    assert set(model.signatures["serving_default"].structured_outputs) == {"probabilities", "label", "confidence"}


def test_onnx_has_the_keys_of_others_a_dynamic_batch_and_plain_names(files):
    import onnx

    model = onnx.load(files["onnx"])
    onnx.checker.check_model(model)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert sorted(ast.literal_eval(properties["names"]).values()) == sorted(CLASSES)
    assert sorted(json.loads(properties["class_names"])) == sorted(CLASSES)
    for value, name in ((model.graph.input[0], "image"), (model.graph.output[0], "probabilities")):
        assert value.name == name and value.type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("name", ["litert", "litert-int8"])
def test_litert_has_official_metadata_labels_and_built_in_operators_only(name, files):
    from ai_edge_litert import schema_py_generated as schema

    content = files[name].read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    assert {code.builtinCode for code in model.operatorCodes} and all(
        not code.customCode for code in model.operatorCodes
    )
    (entry,) = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    described = bytes(model.buffers[entry.buffer].data)
    assert described[4:8] == b"M001" and b"labels.txt" in described
    (given,) = [model.subgraphs[0].tensors[place] for place in model.subgraphs[0].inputs]
    assert given.type == schema.TensorType.UINT8
    with zipfile.ZipFile(files[name]) as archive:
        labels = archive.read("labels.txt").split(b"\n")
        assert len(labels) == len(CLASSES) and b"two lines" in labels  # a line per class


def test_int8_weights_have_a_scale_per_channel_and_activations_are_int8(files):
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(str(files["litert-int8"])).get_tensor_details()
    assert max(len(tensor["quantization_parameters"]["scales"]) for tensor in details) >= 16
    assert np.int8 in {tensor["dtype"] for tensor in details}
    # Dynamic quantization would have float32 in and out of each layer.
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(files["litert-int8"].read_bytes(), 0))
    kinds = schema.BuiltinOperator
    layers, (graph,) = (kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D, kinds.FULLY_CONNECTED), model.subgraphs
    found = [one for one in graph.operators if model.operatorCodes[one.opcodeIndex].builtinCode in layers]
    tensors = [graph.tensors[place] for one in found for place in (one.inputs[0], one.inputs[1], one.outputs[0])]
    assert len(found) >= 6 and {tensor.type for tensor in tensors} == {schema.TensorType.INT8}
    assert all(len(tensor.quantization.scale) for tensor in tensors)


def test_int8_is_calibrated_on_images_of_the_train_split_only(run, photos_folder, monkeypatch):
    manifest = pd.read_csv(run.run_dir.manifest)
    train = manifest.loc[manifest["split"] == "train", "id"]
    pixels = {decode(photos_folder / id, run.config.stored_size, run.config.resize).pixels.tobytes() for id in train}
    assert len(pixels) == len(train) > 10
    for most in (export.CALIBRATION_IMAGES, 10):
        monkeypatch.setattr(export, "CALIBRATION_IMAGES", most)
        images = [image.tobytes() for image in export.load_network(run.run_dir).calibration_images()]
        assert len(images) == min(most, len(train)) and set(images) <= pixels


def test_openvino_has_the_labels_of_its_model_api(files):
    import openvino

    model = openvino.Core().read_model(files["openvino"] / "model.xml")
    assert model.get_rt_info(["model_info", "model_type"]).value == "Classification"
    assert len(model.get_rt_info(["model_info", "labels"]).value.split()) == len(CLASSES)
    assert "two_lines" in model.get_rt_info(["model_info", "labels"]).value
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]  # nothing is reported


@pytest.fixture(scope="module")
def thousand(small_config):
    """A network of a thousand classes without training."""
    names = tuple(f"class {number}, \"'\n🦉" for number in range(1000))
    metadata = Metadata(names, small_config.stored_size, "crop", 1.5, 0.4, "0" * 64, {"uint16": (0.0, 4095.0)})
    return export.Network(build_classifier(small_config, names), metadata, lambda: np.zeros(0))


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if row.is_float])
def test_a_file_holds_a_thousand_class_names_of_any_kind(name, thousand, tmp_path):
    path = tmp_path / FORMATS[name].path
    FORMATS[name].write(thousand, path)
    predictor = tl.Predictor(path)
    assert predictor.metadata == thousand.metadata and len(predictor.class_names) == 1000
    image = np.zeros((1, *[predictor.image_size] * 2, 3), np.uint8)
    assert predictor.probabilities(image).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": []},
        {"class_names": "ab"},
        {"class_names": [1]},
        {"image_size": 0},
        {"image_size": 10**9},
        {"image_size": True},
        {"resize": "../x"},
        {"temperature": "1"},
        {"value_ranges": {"uint16": [0]}},
        {"rejection_threshold": float("nan")},
    ],
)
def test_metadata_of_a_stranger_is_checked(change):
    values = json.loads(Metadata(("a", "b"), 16, "pad").to_json())
    assert Metadata.from_json(json.dumps(values | {"unknown": 1}))
    with pytest.raises(ValueError, match="its "):
        Metadata.from_json(json.dumps(values | change))


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_tensorflow_resizes_encoded_images_as_pillow_does(resize):
    rng = np.random.default_rng(0)
    for shape, kind in (((20, 24), "PNG"), ((300, 401), "PNG"), ((33, 16), "PNG"), ((20, 24), "JPEG")):
        content = saved(Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)), kind)
        there = decode(content, 16, resize).pixels.astype(int)
        difference = abs(_opened(content, 16, resize).numpy() - there)
        assert difference.mean() < 0.5, (shape, kind)
