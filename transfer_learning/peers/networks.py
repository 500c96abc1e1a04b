"""The Keras network that our side and the Keras peer both compute: a backbone with pooling, preprocessing inside."""

import keras

from transfer_learning.models.backbones import build_backbone

WEIGHTS = {"efficientnet_lite0": "imagenet", "resnet50": "none"}  # ImageNet's for ResNet50 would need a download


def extractor(name: str, size: int) -> keras.Model:
    """Images 0..255 (n, size, size, 3) -> features (n, width)."""
    backbone = build_backbone(name, size, WEIGHTS[name])
    return keras.Model(backbone.input, keras.layers.GlobalAveragePooling2D()(backbone.output))
