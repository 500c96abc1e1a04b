"""The variants that `compare` trains without --config: a pretrained network and one trained from scratch."""

import dataclasses

from transfer_learning.config import Phase, RunConfig


def pretrained_or_scratch(recipe: RunConfig) -> dict[str, RunConfig]:
    """``compare --dataset ANY``: the recipe's pretrained backbone against a small CNN with random weights.

    Both variants see the same images at the recipe's size, with padded random crops and flips, have one linear layer
    as head, and train all layers by Adam at a constant learning rate for the same number of epochs. They differ in
    network, weights and learning rate only. --learning-rates 1e-4,1e-3,1e-2 chose these rates on drawn_pills.
    """
    training = Phase(epochs=10, learning_rate=1e-4, unfreeze="all", augmentation="padded_crop")
    pretrained = dataclasses.replace(
        recipe, head=(), head_features="last", refit=False, dropout=0.0, frozen=Phase(), fine_tune=training
    )
    scratch = dataclasses.replace(
        pretrained, backbone="small_cnn", weights="none", fine_tune=dataclasses.replace(training, learning_rate=1e-3)
    )
    return {"pretrained": pretrained, "scratch": scratch}


def cifar10_variants(recipe: RunConfig) -> dict[str, RunConfig]:
    """``compare --dataset cifar10 --learning-rates 1e-4,1e-3,1e-2``: pretrained ResNet18 against a small CNN.

    ResNet18 with ImageNet weights (11 M parameters) against a small CNN with max-pooling and random weights (1.2 M),
    each with a linear head; official split; 32 x 32 pixels, padded random crop, random horizontal flip; Adam, the
    learning rate searched by factors of 10; learning curves, convergence speed, accuracy, size. The weights are
    PyTorch's, or timm's with ``--weights model.safetensors``.

    Its author reports that the pretrained network converges faster and ends higher, and that the small one is smaller,
    slower and lower. Not measured here: neither images nor weights can be downloaded; see `drawn_pills_variants`.
    """
    own_pixels = dataclasses.replace(recipe, backbone="resnet18", image_size=32, input_size=0, batch_size=128)
    return pretrained_or_scratch(own_pixels)


def drawn_pills_variants(recipe: RunConfig) -> dict[str, RunConfig]:
    """``compare --dataset drawn_pills``: the comparison of `cifar10_variants`, offline.

    EfficientNet-Lite0 with ImageNet weights from a Python package (3.4 M parameters) against the small CNN. Measured on
    two cores without a GPU, 10 epochs, seeds 0, 1 and 2: test accuracy 84.8 % (84.1 to 85.4) against 63.6 % (56.9 to
    67.9), a difference of 21.3 points (95 % interval 16.0 to 26.6, n = 246); 50 % validation accuracy after epoch 2
    against 4, 80 % after epoch 6 against never.
    """
    return pretrained_or_scratch(dataclasses.replace(recipe, image_size=96))


# By dataset; any other dataset gets `pretrained_or_scratch` of its own recipe.
VARIANTS = {"cifar10": cifar10_variants, "drawn_pills": drawn_pills_variants}
