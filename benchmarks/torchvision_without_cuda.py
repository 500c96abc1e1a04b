"""Makes torchvision importable with a CPU build of PyTorch; import this module before torchvision.

PyPI has torchvision for CUDA only. Its compiled operators cannot be loaded then, and importing it fails at two of them,
which are declared here; both belong to object detection, and no job calls them. What classification needs (ImageFolder,
transforms, models) is written in Python on Pillow and PyTorch.
"""

import torch

if not torch.backends.cuda.is_built():
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
