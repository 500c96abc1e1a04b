"""ResNet18 and ResNet50 v1.5 compute what PyTorch does from the same weights, which fit no other network."""

import dataclasses
import functools
import hashlib
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from tests.models.test_backbones import save_as_keras_applications
from tests.models.test_state_dict import Parameter, Storage, Tensor, old_format, state_dict, zip_format
from tests.support.make_pytorch_vectors import EVERY_CHANNEL, expected, image, random_array, shapes
from transfer_learning.errors import UserError
from transfer_learning.models import pytorch_weights
from transfer_learning.models.backbones import BACKBONES, build_backbone, find_backbone
from transfer_learning.models.inference_graph import inference_graph
from transfer_learning.models.networks.resnet import pytorch_module
from transfer_learning.models.pytorch_weights import load_state_dict
from transfer_learning.models.weights import weights_digest


@functools.cache
def random_state(network):
    """The whole state dict of torchvision's network, as arrays."""
    return {name: random_array(name, shape) for name, shape in shapes(network).items()}


def write_published(state, path):
    """As torchvision publishes resnet18-f37072fd.pth: parameters beside tensors, no counters, in the new format."""
    entries = {}
    for name, array in state.items():
        if not name.endswith("num_batches_tracked"):
            entries[name] = tensor_of(name, array)
            if not name.endswith(("running_mean", "running_var")):
                entries[name] = Parameter(entries[name])
    path.write_bytes(zip_format(state_dict(**entries)))


def write_old(state, path):
    path.write_bytes(old_format(state_dict(**{name: tensor_of(name, array) for name, array in state.items()})))


def tensor_of(name, array):
    kind = "LongStorage" if array.dtype == np.int64 else "FloatStorage"
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return Tensor(Storage(kind, name, array), 0, array.shape, strides)


WRITERS = {"published.pth": write_published, "old.pth": write_old, "timm.safetensors": save_file}


@pytest.fixture
def weights_file(tmp_path):
    """Writes a state dict; the file goes at once when the test is over, being 100 MB."""
    paths = []

    def write(state, file_name):
        paths.append(tmp_path / file_name)
        WRITERS[file_name](state, paths[-1])
        return paths[-1]

    yield write
    for path in paths:
        path.unlink()


@functools.cache  # changed by a test that loads weights into it, and not otherwise
def built(network):
    return build_backbone(network, 32, "none", seed=3)


@pytest.mark.parametrize(
    ("network", "size", "file_name"),
    [
        ("resnet18", 64, "published.pth"),
        ("resnet18", 49, "timm.safetensors"),
        ("resnet50v1_5", 64, "timm.safetensors"),
        pytest.param("resnet50v1_5", 49, "published.pth", marks=pytest.mark.long),
    ],
)
def test_with_pytorchs_weights_it_computes_what_pytorch_computes(network, size, file_name, weights_file):
    path = weights_file(random_state(network), file_name)
    backbone = build_backbone(network, size, str(path))
    assert 0.1 < expected(network, size).mean() < 10
    features = np.asarray(backbone(image(size)))[..., ::EVERY_CHANNEL]
    np.testing.assert_allclose(features, expected(network, size), rtol=0, atol=1e-4)


def test_so_does_the_graph_that_a_frozen_phase_sees(weights_file):
    """In it TensorFlow has folded BatchNorm into the convolutions."""
    path = weights_file(random_state("resnet18"), "old.pth")
    compute = inference_graph(build_backbone("resnet18", 64, str(path)), 1)
    features = np.asarray(compute(tf.constant(image(64))))[..., ::EVERY_CHANNEL]
    np.testing.assert_allclose(features, expected("resnet18", 64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("network", ["resnet18", "resnet50v1_5"])
def test_each_file_format_brings_the_same_weights(network, weights_file):
    row, digests = find_backbone(network), []
    for file_name in WRITERS:
        path = weights_file(random_state(network), file_name)
        for variable in built(network).weights:
            variable.assign(np.zeros(variable.shape))
        load_state_dict(built(network), path, row.pytorch_weights, row.weights_advice)
        digests.append(weights_digest(built(network).weights))
    assert len(digests) == 3 and len(set(digests)) == 1


def test_with_the_stride_where_keras_has_it_the_same_weights_compute_something_else(monkeypatch):
    state = random_state("resnet50v1_5")
    original = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 3))
    for layer in original.layers:
        if layer.weights:
            module = pytorch_module(layer.name)
            if isinstance(layer, keras.layers.Conv2D):
                kernel = state[f"{module}.weight"].transpose(2, 3, 1, 0)
                layer.set_weights([kernel, np.zeros(kernel.shape[-1])])
            else:
                layer.set_weights(
                    [state[f"{module}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")]
                )
    backbone = build_backbone("resnet50v1_5", 64, "none")
    monkeypatch.setattr(pytorch_weights, "read_state_dict", lambda path: state)
    load_state_dict(backbone, Path("state.pth"), find_backbone("resnet50v1_5").pytorch_weights, "")
    names = ["conv2_block3_out", "conv3_block1_out", "conv5_block3_out"]
    ours = keras.Model(backbone.input, [backbone.get_layer("preprocessing").output, *map(output_of(backbone), names)])
    normalised, *v1_5 = ours(image(64))
    v1 = keras.Model(original.input, list(map(output_of(original), names)))(normalised)
    differences = [float(np.abs(np.subtract(one, other)).max()) for one, other in zip(v1_5, v1, strict=True)]
    assert differences[0] < 1e-3, "up to the first stride inside a block they are one network"
    assert differences[1] > 0.1 and differences[2] > 0.1
    assert np.abs(np.asarray(v1[-1])[..., ::EVERY_CHANNEL] - expected("resnet50v1_5", 64)).max() > 0.1


def output_of(model):
    return lambda name: model.get_layer(name).output


def test_published_weights_are_taken_from_where_they_are_downloaded_to(tmp_path, monkeypatch, weights_file):
    row = find_backbone("resnet18")
    path = weights_file(random_state("resnet18"), "published.pth")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / row.weights_file).symlink_to(path)
    with pytest.raises(UserError, match="is damaged.*delete it and run again"):  # it is not the published file
        build_backbone("resnet18", 32, "imagenet")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(BACKBONES, "resnet18", dataclasses.replace(row, weights_digest=digest))
    loaded = build_backbone("resnet18", 32, "imagenet")
    kernel = random_state("resnet18")["conv1.weight"]
    assert np.array_equal(loaded.get_layer("conv1_conv").kernel, kernel.transpose(2, 3, 1, 0))


@pytest.mark.parametrize("network", ["resnet18", "resnet50v1_5"])
def test_the_name_of_a_published_file_holds_its_digest(network):
    row = find_backbone(network)
    assert row.weights_url == f"https://download.pytorch.org/models/{row.weights_file}"
    assert row.weights_file == f"{network.removesuffix('v1_5')}-{row.weights_digest[:8]}.pth"
    assert len(row.weights_digest) == 64


# ---------------------------------------------------------------------------------------------------------------------
# Of another network


def deep_stem(state):
    """resnet18d, resnet50d, ResNet-C, gluon's v1c and v1d: three convolutions in place of the first."""
    del state["conv1.weight"]
    for position, shape in ((0, (32, 3, 3, 3)), (3, (32, 32, 3, 3)), (6, (64, 32, 3, 3))):
        state[f"conv1.{position}.weight"] = zeros(shape)


def squeeze_and_excitation(state):
    state["layer1.0.se.fc1.weight"] = zeros((8, 256, 1, 1))


def group_normalisation(state):
    for name in [name for name in state if "running" in name or "tracked" in name]:
        del state[name]


def twice_as_wide(state):
    state["layer1.0.conv2.weight"] = zeros((128, 128, 3, 3))


def grouped(state):
    state["layer1.0.conv2.weight"] = zeros((64, 2, 3, 3))


def data_parallel(state):
    for name in list(state):
        state[f"module.{name}"] = state.pop(name)


def zeros(shape, dtype=np.float32):
    return np.broadcast_to(dtype(0), shape)  # needs no memory


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (deep_stem, r"1 missing \(the first: conv1.weight\); 3 unknown \(the first: conv1.0.weight\)"),
        (squeeze_and_excitation, r"1 unknown \(the first: layer1.0.se.fc1.weight\)"),
        (group_normalisation, r"missing \(the first: bn1.running_mean\); give"),
        (twice_as_wide, r"layer1.0.conv2.weight, \(128, 128, 3, 3\) in place of \(64, 64, 3, 3\)"),
        (grouped, r"layer1.0.conv2.weight, \(64, 2, 3, 3\) in place of \(64, 64, 3, 3\)"),
        (data_parallel, r"missing .*unknown \(the first: module.conv1.weight\)"),
    ],
)
@pytest.mark.parametrize("network", ["resnet18", "resnet50v1_5"])
def test_a_variant_of_timm_is_refused_untouched(network, change, answer, monkeypatch):
    state = {
        name: zeros(shape, np.int64 if "tracked" in name else np.float32) for name, shape in shapes(network).items()
    }
    monkeypatch.setattr(pytorch_weights, "read_state_dict", lambda path: state)
    row, backbone = find_backbone(network), built(network)
    before = weights_digest(backbone.weights)
    change(state)
    with pytest.raises(UserError, match=f"arrays of {row.pytorch_weights.name}, found .*{answer}"):
        load_state_dict(backbone, Path("variant.pth"), row.pytorch_weights, row.weights_advice)
    assert weights_digest(backbone.weights) == before


@pytest.mark.parametrize(
    ("network", "other", "answer"),
    [
        ("resnet18", "resnet50v1_5", r"found \d+ unknown \(the first: layer1.0.conv3.weight\); \d+ of another shape"),
        (
            "resnet50v1_5",
            "resnet18",
            r"found 165 missing \(the first: layer1.0.downsample.0.weight\); \d+ of another shape",
        ),
    ],
)
def test_a_state_dict_of_the_other_depth_is_refused(network, other, answer, monkeypatch):
    state = {name: zeros(shape, np.int64 if "tracked" in name else np.float32) for name, shape in shapes(other).items()}
    monkeypatch.setattr(pytorch_weights, "read_state_dict", lambda path: state)
    row = find_backbone(network)
    with pytest.raises(UserError, match=answer):
        load_state_dict(built(network), Path("other.pth"), row.pytorch_weights, row.weights_advice)


@pytest.mark.parametrize("file_name", ["resnet50-0676ba61.pth", "model.safetensors"])
def test_weights_of_pytorchs_resnet50_are_refused_by_that_of_keras(file_name, tmp_path):
    (tmp_path / file_name).touch()  # what is in it does not matter
    with pytest.raises(UserError, match="need --backbone resnet50v1_5"):
        build_backbone("resnet50", 32, str(tmp_path / file_name))


@pytest.mark.parametrize(
    ("network", "other", "file_name"),
    [("resnet50", "resnet50v1_5", "x.weights.h5"), ("resnet50v1_5", "resnet50", "x.h5")],
)
def test_keras_files_of_one_resnet50_are_refused_by_the_other(network, other, file_name, tmp_path):
    path = tmp_path / file_name
    if file_name.endswith(".weights.h5"):
        built(other).save_weights(path)
    else:
        save_as_keras_applications(built(other), path)
    try:
        with pytest.raises(UserError, match=f"found: {len(built(other).weights)} arrays; .*need --backbone {other}"):
            build_backbone(network, 32, str(path))
    finally:
        path.unlink()
