"""Lets torchvision be imported beside a CPU build of PyTorch; to be imported ahead of it.

PyPI has torchvision for CUDA alone. Its compiled operators cannot be loaded then, and its Python part stops at two
of them that it wants to know by name. They are declared here; both belong to object detection and none of the jobs calls
them. Everything that classification needs (ImageFolder, transforms, models) is Python over Pillow and PyTorch.
"""

import torch

if not torch.backends.cuda.is_built():
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
