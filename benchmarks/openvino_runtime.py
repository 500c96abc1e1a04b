"""Peer: OpenVINO on the exported networks, as its "Performance Hints" pages recommend for throughput.

The precision is fixed to float32: on processors with bfloat16 instructions OpenVINO would use those, and
compute something else than the other tools.
"""

from argparse import Namespace
from typing import Any

import numpy as np
import openvino

from benchmarks import job


def extraction(flags: Namespace) -> dict[str, Any]:
    """Forward passes over random images in memory, as many concurrent requests as the engine recommends."""
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(flags.onnx / f"{flags.network}.onnx"),
        "CPU",
        {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": flags.threads},
    )
    shape = (flags.batch_size, 3, flags.size, flags.size)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8).astype(np.float32)
    requests = openvino.AsyncInferQueue(compiled)

    def step():
        for _ in range(len(requests)):
            requests.start_async({0: images})
        requests.wait_all()

    return job.images_per_second(step, flags.batch_size * len(requests), flags.seconds)


if __name__ == "__main__":
    job.run_job({"extraction": extraction})
