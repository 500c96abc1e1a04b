"""Writes `pytorch_vectors/`: the outputs of ResNets in PyTorch with random weights, and small files that PyTorch wrote.

To be run again only to add to it, in an environment with PyTorch and torchvision (benchmarks/requirements.txt) and from the
root of the repository:

    PYTHONPATH=. peers/bin/python tests/support/make_pytorch_vectors.py

The random weights are not kept: `random_array` makes the same from the name and shape of an array, here and in the tests.
"""

import zlib
from pathlib import Path

import numpy as np

VECTORS = Path(__file__).parent / "pytorch_vectors"
IMAGE_SIZES = (64, 49)  # 49 becomes 25, 13, 7, 4, 2: each step down but the last two starts from an odd side
EVERY_CHANNEL = 8  # is kept of the feature maps: each depends on all below


def random_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers for the array `name` of a state dict, such that a network stays in the order of 1 and no two are alike."""
    if name.endswith("num_batches_tracked"):
        return np.array(1000, np.int64)
    values = np.random.default_rng(zlib.crc32(name.encode())).random(shape) * 2 - 1
    if len(shape) > 1:  # of kernels and the classifier: He et al., 2015, arXiv:1502.01852, drawn uniformly
        values *= np.sqrt(6 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        values = 1 + values / 2
    elif name.endswith("weight"):
        values = 0.5 + values / 4
    else:
        values /= 4
    return values.astype(np.float32)


def image(size: int) -> np.ndarray:
    """float32 (1, size, size, 3), RGB, 0..255."""
    return np.random.default_rng(size).integers(0, 256, (1, size, size, 3)).astype(np.float32)


def expected(network: str, size: int) -> np.ndarray:
    """PyTorch's feature map of `image(size)`, float32 (1, height, width, channels / EVERY_CHANNEL)."""
    with np.load(VECTORS / "resnet.npz") as vectors:
        return vectors[f"{network} at {size}"]


def shapes(network: str) -> dict[str, tuple[int, ...]]:
    """The state dict that torchvision has: the shapes of the arrays by their names, in its order."""
    with np.load(VECTORS / "resnet.npz") as vectors:
        lines = [line.split() for line in vectors[f"{network} arrays"].tolist()]
    return {name: tuple(map(int, sides)) for name, *sides in lines}


def write() -> None:
    import torch

    from benchmarks import torchvision_without_cuda  # noqa: F401  (ahead of torchvision)

    # isort: split
    from torchvision import models

    def filled(module):
        arrays = {name: random_array(name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()}
        module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return module.eval()

    VECTORS.mkdir(exist_ok=True)
    vectors = {}
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for name, network in (("resnet18", filled(models.resnet18())), ("resnet50v1_5", filled(models.resnet50()))):
        vectors[f"{name} arrays"] = np.array(
            [" ".join(map(str, (key, *tensor.shape))) for key, tensor in network.state_dict().items()]
        )
        upto_features = torch.nn.Sequential(*list(network.children())[:-2])  # less the pooling and the classifier
        for size in IMAGE_SIZES:
            images = torch.from_numpy((image(size) / 255 - mean) / deviation).permute(0, 3, 1, 2).float()
            with torch.inference_mode():
                features = upto_features(images).permute(0, 2, 3, 1).numpy()
            print(name, size, features.shape, f"mean {features.mean():.3f}, largest {features.max():.3f}")
            vectors[f"{name} at {size}"] = features[..., ::EVERY_CHANNEL]
    np.savez_compressed(VECTORS / "resnet.npz", **vectors)

    small = filled(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1, bias=False), torch.nn.BatchNorm2d(3)))
    parameters = small.state_dict(keep_vars=True)  # as torchvision's weights of 2016 are published: no plain tensors
    torch.save(parameters, VECTORS / "old_format.pth", _use_new_zipfile_serialization=False)
    torch.save(parameters, VECTORS / "new_format.pth")
    torch.save({"epoch": 3, "state_dict": small.state_dict()}, VECTORS / "checkpoint.pth")


if __name__ == "__main__":
    write()
