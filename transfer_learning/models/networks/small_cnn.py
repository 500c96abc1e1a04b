"""A small convolutional network to train from scratch, as the baseline of a pretrained backbone."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

NUM_FILTERS = (32, 64, 128, 256, 352)


def small_cnn(input_tensor: "keras.KerasTensor") -> "keras.Model":
    """Returns five blocks of convolution, batch normalisation, ReLU and 2x2 max-pooling as a `keras.Model`.

    Simplified from VGG (Simonyan and Zisserman, 2014, arXiv:1409.1556): one convolution per block, and batch
    normalisation (Ioffe and Szegedy, 2015, arXiv:1502.03167). 1.2 million parameters.

    input_tensor: Keras tensor (n, height, width, 3), scaled to -1..1, with at least 16 pixels per side.
    The output has shape (n, ceil(height / 32), ceil(width / 32), 352) and the dtype of the policy in force.
    """
    from keras import Model, layers
    from keras.utils import get_source_inputs

    x = input_tensor
    for block, num_filters in enumerate(NUM_FILTERS, start=1):
        options = dict(padding="same", use_bias=False, kernel_initializer="he_normal")
        x = layers.Conv2D(num_filters, 3, name=f"block{block}_conv", **options)(x)
        # 0.9 instead of 0.99, so that the moving averages settle in the few hundred train steps of a small dataset.
        x = layers.BatchNormalization(momentum=0.9, name=f"block{block}_bn")(x)
        x = layers.ReLU(name=f"block{block}_relu")(x)
        # "same" keeps the last pixel of an odd side, so that the map has at least 1x1 pixels.
        x = layers.MaxPooling2D(2, padding="same", name=f"block{block}_pool")(x)
    return Model(get_source_inputs(input_tensor), x, name="small_cnn")
