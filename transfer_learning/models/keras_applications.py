"""The classification networks of `keras.applications`, described without importing Keras.

A test compares every row with Keras: names, sizes, parameters, weights files, digests, stages and preprocessing.
"""

from typing import NamedTuple

_STORAGE = "https://storage.googleapis.com/tensorflow/keras-applications"
_BY_DIMENSION = "{}_weights_tf_dim_ordering_tf_kernels_notop.h5"


class Family(NamedTuple):
    """What the networks of one paper have in common; ``{}`` in a file name stands for the network."""

    paper: str
    preprocessing: str  # a key of `backbones.PREPROCESSING`
    stages: tuple[str, ...]  # prefixes of layer names, first to last; see `Backbone.stage_of`
    weights_file: str  # file name in the folder of Keras' downloads
    weights_folder: str  # URL
    published_as: str = ""  # file name at the URL, where it is another
    licence: str = ""  # of the ImageNet weights; "": not stated
    minimum_size: int = 32  # pixels
    scaling_is_optional: bool = False  # the network takes ``include_preprocessing=False``


class Application(NamedTuple):
    """One network, without its classifier."""

    family: Family
    million_parameters: float
    image_size: int  # side in pixels that Keras uses by default
    weights_name: str  # takes the place of {} in the family's file name
    weights_digest: str | None  # md5 or sha256 of the file; None: Keras publishes none


_CONV_1_TO_5 = tuple(f"conv{stage}" for stage in range(1, 6))
_RESNET = Family(
    "He et al., 2015, arXiv:1512.03385", "caffe", _CONV_1_TO_5, _BY_DIMENSION, f"{_STORAGE}/resnet", licence="MIT"
)
_RESNET_V2 = Family(
    "He et al., 2016, arXiv:1603.05027",
    "minus_one_to_one",
    (*_CONV_1_TO_5, "post"),
    _BY_DIMENSION,
    f"{_STORAGE}/resnet",
)
_VGG16 = Family(
    "Simonyan and Zisserman, 2014, arXiv:1409.1556",
    "caffe",
    tuple(f"block{stage}" for stage in range(1, 6)),
    _BY_DIMENSION,
    f"{_STORAGE}/vgg16",
    licence="CC BY 4.0",
)
_VGG19 = _VGG16._replace(weights_folder=f"{_STORAGE}/vgg19")
_DENSENET = Family(
    "Huang et al., 2016, arXiv:1608.06993",
    "imagenet_standard",
    ("conv1", "conv2", "pool2", "conv3", "pool3", "conv4", "pool4", "conv5", "bn"),
    _BY_DIMENSION,
    f"{_STORAGE}/densenet",
    licence="BSD-3-Clause",
)
_EFFICIENTNET = Family(
    "Tan and Le, 2019, arXiv:1905.11946",
    "imagenet_standard",
    ("stem", *(f"block{stage}" for stage in range(1, 8)), "top"),
    "efficientnet{}_notop.h5",
    "https://storage.googleapis.com/keras-applications",
    licence="Apache-2.0",
)
_EFFICIENTNET_V2_B = Family(
    "Tan and Le, 2021, arXiv:2104.00298",
    "imagenet_standard",
    ("stem", *(f"block{stage}" for stage in range(1, 7)), "top"),
    "efficientnetv2-{}_notop.h5",
    f"{_STORAGE}/efficientnet_v2",
    licence="Apache-2.0",
    scaling_is_optional=True,
)
_EFFICIENTNET_V2_S = _EFFICIENTNET_V2_B._replace(preprocessing="divided_by_128")
_EFFICIENTNET_V2_M_L = _EFFICIENTNET_V2_S._replace(stages=_EFFICIENTNET.stages)
_CONVNEXT = Family(
    "Liu et al., 2022, arXiv:2201.03545",
    "imagenet_standard",
    tuple(
        "stem stage_0 downsampling_block_0 stage_1 downsampling_block_1 stage_2 downsampling_block_2 stage_3".split()
    ),
    "convnext_{}_notop.h5",
    f"{_STORAGE}/convnext",
    licence="MIT",
    scaling_is_optional=True,
)
_MOBILENET = Family(
    "Howard et al., 2017, arXiv:1704.04861",
    "minus_one_to_one",
    ("conv1", *(f"conv_{kind}_{block}" for block in range(1, 14) for kind in ("dw", "pw"))),
    "mobilenet_{}_tf_no_top.h5",
    f"{_STORAGE}/mobilenet",
    licence="Apache-2.0",
)
_MOBILENET_V2 = Family(
    "Sandler et al., 2018, arXiv:1801.04381",
    "minus_one_to_one",
    ("Conv1", "bn_Conv1", "expanded_conv", *(f"block_{block}" for block in range(1, 17)), "Conv_1"),
    "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{}_no_top.h5",
    f"{_STORAGE}/mobilenet_v2",
    licence="Apache-2.0",
)
_MOBILENET_V3_SMALL = Family(
    "Howard et al., 2019, arXiv:1905.02244",
    "minus_one_to_one",
    ("conv", "expanded_conv", *(f"expanded_conv_{block}" for block in range(1, 11)), "conv_1"),
    "weights_mobilenet_v3_{}_float_no_top_v2.h5",
    f"{_STORAGE}/mobilenet_v3",
    licence="Apache-2.0",
    scaling_is_optional=True,
)
_MOBILENET_V3_LARGE = _MOBILENET_V3_SMALL._replace(
    stages=("conv", "expanded_conv", *(f"expanded_conv_{block}" for block in range(1, 15)), "conv_1")
)
_INCEPTION = Family(
    "Szegedy et al., 2015, arXiv:1512.00567",
    "minus_one_to_one",
    tuple(f"mixed{block}" for block in range(10)),  # mixed9 is the last two blocks, by the names of their branches
    _BY_DIMENSION,
    f"{_STORAGE}/inception_v3",
    licence="Apache-2.0",
    minimum_size=75,
)
_INCEPTION_RESNET = Family(
    "Szegedy et al., 2016, arXiv:1602.07261",
    "minus_one_to_one",
    ("mixed_5b", "block35", "mixed_6a", "block17", "mixed_7a", "block8", "conv_7b"),
    _BY_DIMENSION,
    f"{_STORAGE}/inception_resnet_v2",
    licence="Apache-2.0",
    minimum_size=75,
)
_NASNET = Family(
    "Zoph et al., 2017, arXiv:1707.07012",
    "minus_one_to_one",
    (),  # each cell takes the outputs of the two before it, so the network has no place to divide it
    "nasnet_{}_no_top.h5",
    f"{_STORAGE}/nasnet",
    published_as="NASNet-{}-no-top.h5",
    licence="Apache-2.0",
)
_XCEPTION = Family(
    "Chollet, 2016, arXiv:1610.02357",
    "minus_one_to_one",
    tuple(f"block{stage}" for stage in range(1, 15)),
    _BY_DIMENSION,
    f"{_STORAGE}/xception",
    licence="MIT",
    minimum_size=71,
)

APPLICATIONS: dict[str, Application] = {
    "ResNet50": Application(_RESNET, 23.6, 224, "resnet50", "4d473c1dd8becc155b73f8504c6f6626"),
    "ResNet101": Application(_RESNET, 42.7, 224, "resnet101", "88cf7a10940856eca736dc7b7e228a21"),
    "ResNet152": Application(_RESNET, 58.4, 224, "resnet152", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    "ResNet50V2": Application(_RESNET_V2, 23.6, 224, "resnet50v2", "fac2f116257151a9d068a22e544a4917"),
    "ResNet101V2": Application(_RESNET_V2, 42.6, 224, "resnet101v2", "c0ed64b8031c3730f411d2eb4eea35b5"),
    "ResNet152V2": Application(_RESNET_V2, 58.3, 224, "resnet152v2", "ed17cf2e0169df9d443503ef94b23b33"),
    "VGG16": Application(_VGG16, 14.7, 224, "vgg16", "6d6bbae143d832006294945121d1f1fc"),
    "VGG19": Application(_VGG19, 20.0, 224, "vgg19", "253f8cb515780f3b799900260a226db6"),
    "DenseNet121": Application(_DENSENET, 7.0, 224, "densenet121", "30ee3e1110167f948a6b9946edeeb738"),
    "DenseNet169": Application(_DENSENET, 12.6, 224, "densenet169", "b8c4d4c20dd625c148057b9ff1c1176b"),
    "DenseNet201": Application(_DENSENET, 18.3, 224, "densenet201", "c13680b51ded0fb44dff2d8f86ac8bb1"),
    "EfficientNetB0": Application(_EFFICIENTNET, 4.0, 224, "b0", "50bc09e76180e00e4465e1a485ddc09d"),
    "EfficientNetB1": Application(_EFFICIENTNET, 6.6, 240, "b1", "74c4e6b3e1f6a1eea24c589628592432"),
    "EfficientNetB2": Application(_EFFICIENTNET, 7.8, 260, "b2", "111f8e2ac8aa800a7a99e3239f7bfb39"),
    "EfficientNetB3": Application(_EFFICIENTNET, 10.8, 300, "b3", "af6d107764bb5b1abb91932881670226"),
    "EfficientNetB4": Application(_EFFICIENTNET, 17.7, 380, "b4", "ebc24e6d6c33eaebbd558eafbeedf1ba"),
    "EfficientNetB5": Application(_EFFICIENTNET, 28.5, 456, "b5", "38879255a25d3c92d5e44e04ae6cec6f"),
    "EfficientNetB6": Application(_EFFICIENTNET, 41.0, 528, "b6", "9ecce42647a20130c1f39a5d4cb75743"),
    "EfficientNetB7": Application(_EFFICIENTNET, 64.1, 600, "b7", "cbcfe4450ddf6f3ad90b1b398090fe4a"),
    "EfficientNetV2B0": Application(_EFFICIENTNET_V2_B, 5.9, 224, "b0", "893217f2bb855e2983157299931e43ff"),
    "EfficientNetV2B1": Application(_EFFICIENTNET_V2_B, 6.9, 240, "b1", "0e80663031ca32d657f9caa404b6ec37"),
    "EfficientNetV2B2": Application(_EFFICIENTNET_V2_B, 8.8, 260, "b2", "1dfe2e7a5d45b6632553a8961ea609eb"),
    "EfficientNetV2B3": Application(_EFFICIENTNET_V2_B, 12.9, 300, "b3", "f6abf7b5849ac99a89b50dd3fd532856"),
    "EfficientNetV2S": Application(_EFFICIENTNET_V2_S, 20.3, 384, "s", "af0682fb74e8c54910f2d4393339c070"),
    "EfficientNetV2M": Application(_EFFICIENTNET_V2_M_L, 53.2, 480, "m", "1b8dc055df72dde80d614482840fe342"),
    "EfficientNetV2L": Application(_EFFICIENTNET_V2_M_L, 117.7, 480, "l", "b0b66b5c863aef5b46e8608fe1711615"),
    "ConvNeXtTiny": Application(
        _CONVNEXT, 27.8, 224, "tiny", "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1"
    ),
    "ConvNeXtSmall": Application(
        _CONVNEXT, 49.5, 224, "small", "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab"
    ),
    "ConvNeXtBase": Application(
        _CONVNEXT, 87.6, 224, "base", "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45"
    ),
    "ConvNeXtLarge": Application(
        _CONVNEXT, 196.2, 224, "large", "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd"
    ),
    "ConvNeXtXLarge": Application(
        _CONVNEXT, 348.1, 224, "xlarge", "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05"
    ),
    "MobileNet": Application(_MOBILENET, 3.2, 224, "1_0_224", None),
    "MobileNetV2": Application(_MOBILENET_V2, 2.3, 224, "1.0_224", None),
    "MobileNetV3Small": Application(_MOBILENET_V3_SMALL, 0.9, 224, "small_224_1.0", "d3e8ec802a04aa4fc771ee12a9a9b836"),
    "MobileNetV3Large": Application(_MOBILENET_V3_LARGE, 3.0, 224, "large_224_1.0", "07fb09a5933dd0c8eaafa16978110389"),
    "InceptionV3": Application(_INCEPTION, 21.8, 299, "inception_v3", "bcbd6486424b2319ff4ef7d526e38f63"),
    "InceptionResNetV2": Application(
        _INCEPTION_RESNET, 54.3, 299, "inception_resnet_v2", "d19885ff4a710c122648d3b5c3b684e4"
    ),
    "NASNetMobile": Application(_NASNET, 4.3, 224, "mobile", "1ed92395b5b598bdda52abe5c0dbfd63"),
    "NASNetLarge": Application(_NASNET, 84.9, 331, "large", "d81d89dc07e6e56530c4e77faddd61b5"),
    "Xception": Application(_XCEPTION, 20.9, 299, "xception", "b0042744bf5b25fce3cb969f33bebb97"),
}
