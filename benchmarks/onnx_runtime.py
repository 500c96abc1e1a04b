"""Peer: ONNX Runtime on the exported networks, with all graph optimisations, as its "Performance" pages recommend."""

from argparse import Namespace
from typing import Any

import numpy as np
import onnxruntime

from benchmarks import job


def extraction(flags: Namespace) -> dict[str, Any]:
    """Forward passes over random images in memory, float32, on the CPU provider."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = flags.threads
    session = onnxruntime.InferenceSession(
        flags.onnx / f"{flags.network}.onnx", options, providers=["CPUExecutionProvider"]
    )
    shape = (flags.batch_size, 3, flags.size, flags.size)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8).astype(np.float32)
    return job.images_per_second(lambda: session.run(None, {"images": images}), flags.batch_size, flags.seconds)


if __name__ == "__main__":
    job.run_job({"extraction": extraction})
