"""Peer: Ultralytics, task classify.

It follows the page "Image Classification" (docs.ultralytics.com): `train` on a folder with train/ and val/.
The model is the smallest of the newest family, from its yaml file and so with random weights, since the pretrained ones
are a download: its accuracy means nothing, its time does. The network is smaller than that of the other tools. All its
layers but the last are frozen; augmentation, mixed precision, plots and warm-up are off, so that all tools do equal
work.
"""

import os
from argparse import Namespace
from typing import Any

# No downloads of updates, fonts or weights
os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}

import torch

from benchmarks import (
    job,
    torchvision_without_cuda,  # noqa: F401  (ahead of torchvision, which ultralytics imports)
)

# isort: split
from ultralytics import YOLO


def frozen(flags: Namespace) -> dict[str, Any]:
    """The last layer alone, on images."""
    torch.set_num_threads(flags.threads)
    model = YOLO("yolo26n-cls.yaml", task="classify")
    model.train(
        data=str(flags.images),
        epochs=flags.epochs,
        imgsz=flags.size,
        batch=flags.batch_size,
        workers=2,
        device="cpu",
        freeze=len(model.model.model) - 1,
        optimizer="Adam",
        lr0=flags.learning_rate,
        lrf=1.0,
        warmup_epochs=0,
        weight_decay=0.0,
        dropout=0.2,
        nbs=flags.batch_size,
        amp=False,
        pretrained=False,
        plots=False,
        patience=0,
        scale=0.0,
        fliplr=0.0,
        hsv_h=0.0,
        hsv_s=0.0,
        hsv_v=0.0,
        erasing=0.0,
        auto_augment=None,
        verbose=False,
        project=str(flags.scratch),
        name="run",
        exist_ok=True,
    )
    return job.trained(flags, model.trainer.metrics["metrics/accuracy_top1"])


if __name__ == "__main__":
    job.run_job({"frozen": frozen})
