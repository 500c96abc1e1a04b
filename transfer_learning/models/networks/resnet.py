"""ResNet18 and ResNet50 as in PyTorch, and the names of their layers there.

He et al., 2015, arXiv:1512.03385. In a bottleneck that halves the resolution, the authors and Keras have the stride in
the first convolution (1x1), PyTorch in the 3x3 (version 1.5: Goyal et al., 2017, arXiv:1706.02677). The arrays have
equal shapes, so the weights of one network would load into the other and silently give worse results; the files differ
in the biases of the convolutions, which only Keras has.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

# Per convolution of a block: kernel, filters as a multiple of the stage's, whether it has the stride of the block.
BASIC = ((3, 1, True), (3, 1, False))
BOTTLENECK_V1_5 = ((1, 1, False), (3, 1, True), (1, 4, False))


def resnet18(input_tensor: "keras.KerasTensor") -> "keras.Model":
    """Returns ResNet18 up to its last feature map as a `keras.Model`; 11.2 million parameters.

    input_tensor: Keras tensor (n, height, width, 3), normalised by the mean and standard deviation of ImageNet.
    The output has shape (n, ceil(height / 32), ceil(width / 32), 512) and the dtype of the policy in force.
    """
    return _resnet("resnet18", input_tensor, BASIC, (2, 2, 2, 2))


def resnet50v1_5(input_tensor: "keras.KerasTensor") -> "keras.Model":
    """As `resnet18`, with bottlenecks and 2048 channels at the end; 23.6 million parameters."""
    return _resnet("resnet50v1_5", input_tensor, BOTTLENECK_V1_5, (3, 4, 6, 3))


def _resnet(network_name, input_tensor, convolutions, num_blocks):
    from keras import Model, initializers, layers
    from keras.utils import get_source_inputs

    def pad(x, pixels, name):
        # The same on all sides, as in PyTorch; at stride 2, "same" pads less at the top and on the left.
        return layers.ZeroPadding2D(pixels, name=f"{name}_pad")(x)

    def convolve(x, filters, kernel, stride, name):
        if stride > 1 and kernel > 1:
            x = pad(x, kernel // 2, name)
        values = initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")
        options = dict(padding="valid" if stride > 1 else "same", use_bias=False, kernel_initializer=values)
        x = layers.Conv2D(filters, kernel, stride, name=f"{name}_conv", **options)(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)

    x = convolve(input_tensor, 64, 7, 2, "conv1")
    x = layers.ReLU(name="conv1_relu")(x)
    # PyTorch pads with minus infinity; zero gives the same maxima, because no value is negative after a ReLU.
    x = layers.MaxPooling2D(3, 2, name="pool1_pool")(pad(x, 1, "pool1"))
    for stage, repeats in enumerate(num_blocks, start=2):
        filters = 32 * 2 ** (stage - 1)
        for block in range(1, repeats + 1):
            name, shortcut = f"conv{stage}_block{block}", x
            stride = 2 if block == 1 and stage > 2 else 1
            for number, (kernel, multiple, has_stride) in enumerate(convolutions, start=1):
                x = convolve(x, filters * multiple, kernel, stride if has_stride else 1, f"{name}_{number}")
                if number < len(convolutions):
                    x = layers.ReLU(name=f"{name}_{number}_relu")(x)
            if shortcut.shape[-1] != x.shape[-1] or stride > 1:
                shortcut = convolve(shortcut, x.shape[-1], 1, stride, f"{name}_0")
            x = layers.Add(name=f"{name}_add")([shortcut, x])
            x = layers.ReLU(name=f"{name}_out")(x)
    return Model(get_source_inputs(input_tensor), x, name=network_name)


def pytorch_module(layer_name: str) -> str:
    """Returns the name of a layer with weights in torchvision and timm: "conv3_block1_2_bn" is "layer2.0.bn2"."""
    match = re.fullmatch(r"conv(\d)_(?:block(\d)_(\d)_)?(conv|bn)", layer_name)
    assert match, layer_name
    stage, block, number, kind = match.groups()
    if block is None:
        return f"{kind}1"
    pytorch_block = f"layer{int(stage) - 1}.{int(block) - 1}"
    if number == "0":
        return f"{pytorch_block}.downsample.{('conv', 'bn').index(kind)}"
    return f"{pytorch_block}.{kind}{number}"
