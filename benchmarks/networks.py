"""The network of job extraction for this package and for Keras: a backbone with preprocessing and pooling."""

import keras
import numpy as np

from transfer_learning.models.backbones import build_backbone

WEIGHTS = {"efficientnet_lite0": "imagenet", "resnet50": "none"}  # ImageNet's for ResNet50 would need a download


def extractor(name: str, size: int) -> keras.Model:
    """Images 0..255 (n, size, size, 3) -> features (n, width).

    Random weights get random BatchNorm shifts, as trained ones have: adding zeros would be optimised away.
    """
    backbone = build_backbone(name, size, WEIGHTS[name])
    if WEIGHTS[name] == "none":
        random = np.random.default_rng(0)
        for layer in backbone.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.beta.assign(random.normal(scale=0.1, size=layer.beta.shape))
    return keras.Model(backbone.input, keras.layers.GlobalAveragePooling2D()(backbone.output))
