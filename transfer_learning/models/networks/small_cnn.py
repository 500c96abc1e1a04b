"""A small convolutional network to train from scratch: what a pretrained backbone has to beat."""

NUM_FILTERS = (32, 64, 128, 256, 352)


def small_cnn(input_tensor):
    """Returns five blocks of convolution, batch normalisation, ReLU and 2x2 max-pooling as a `keras.Model`.

    Simplified from VGG (Simonyan and Zisserman, 2014, arXiv:1409.1556): one convolution a block, and batch
    normalisation (Ioffe and Szegedy, 2015, arXiv:1502.03167). 1.2 million parameters.

    input_tensor: Keras tensor (n, height, width, 3), scaled to -1..1, 16 pixels a side or more.
    The output has shape (n, ceil(height / 32), ceil(width / 32), 352) and the dtype of the policy in force.
    """
    from keras import Model, layers
    from keras.utils import get_source_inputs

    x = input_tensor
    for block, num_filters in enumerate(NUM_FILTERS, start=1):
        x = layers.Conv2D(
            num_filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"block{block}_conv"
        )(x)
        # 0.9 and not 0.99: the moving averages must have arrived after the few hundred updates of a small dataset.
        x = layers.BatchNormalization(momentum=0.9, name=f"block{block}_bn")(x)
        x = layers.ReLU(name=f"block{block}_relu")(x)
        # "same" keeps the last pixel of an odd side, so that the map never shrinks below 1x1.
        x = layers.MaxPooling2D(2, padding="same", name=f"block{block}_pool")(x)
    return Model(get_source_inputs(input_tensor), x, name="small_cnn")
