"""What is held in the memory of a GPU, and what is copied to and from it while it computes."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
import pynvml
import tensorflow as tf

from transfer_learning.machine import gpus

GPU = "/GPU:0"  # the one that trains alone
STEPS_AHEAD = 2  # that a GPU has to compute while the results of an earlier one are read


class DeviceRows:
    """`Rows` in the memory of a device; what is read from them stays there."""

    def __init__(self, rows: np.ndarray, device: str):
        self.device, self.shape, self.dtype = device, rows.shape, rows.dtype
        with tf.device(device):
            self._values = tf.constant(rows)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> tf.Tensor:
        """Returns a tensor (k, ...) on the device for integers (k,)."""
        with tf.device(self.device):
            return tf.gather(self._values, rows)


@cache
def gpu_bytes() -> int:
    """Memory of the smallest GPU that TensorFlow uses, all of it; 0 without a GPU, or if the driver does not say."""
    if not (names := tf.config.list_physical_devices("GPU")):
        return 0
    try:
        with gpus.visible_gpus(len(names)) as found:
            return int(min(gpu.sample()["memory_total_mb"] or 0 for gpu in found) * 1e6)
    except pynvml.NVMLError:
        return 0


def results(steps: Iterable[Sequence[tf.Tensor]]) -> Iterator[list[np.ndarray]]:
    """The results of steps as arrays; those of a GPU are read when it has later steps to compute, so it never waits."""
    ahead = STEPS_AHEAD if tf.config.list_physical_devices("GPU") else 0
    waiting: deque[Sequence[tf.Tensor]] = deque()
    for step in steps:
        waiting.append(step)
        if len(waiting) > ahead:
            yield [np.asarray(tensor) for tensor in waiting.popleft()]
    for step in waiting:
        yield [np.asarray(tensor) for tensor in step]
