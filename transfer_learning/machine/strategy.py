"""The devices and worker processes that train a run together.

Every process holds all weights as plain variables. It computes the gradients of its part of each batch, and all apply the
sum over all parts, so all weights stay equal. TensorFlow's strategies run a function on each device of a process and sum
tensors over devices and processes (NCCL on GPUs); only this file knows them.
"""

import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import tensorflow as tf

from transfer_learning.errors import UserError, WorkerLost
from transfer_learning.machine.cluster import Cluster

logger = logging.getLogger(__name__)

PREPARING_SECONDS = 24 * 3600.0  # to wait for a worker that decodes images or computes features; a dead one is noticed
Tensors = list[tf.Tensor]


@dataclass(frozen=True)
class Workers:
    """The processes that train a run, as one of them sees them; as it is, one process with one device."""

    index: int = 0
    count: int = 1
    num_devices: int = 1  # of this process that compute parts of a batch
    strategy: tf.distribute.Strategy | None = None  # None: one process with one device
    seconds: float = 600.0  # to wait for another worker in a train step

    @property
    def is_chief(self) -> bool:
        """Whether this process writes checkpoints and results."""
        return self.index == 0

    def part(self, num_examples: int) -> slice:
        """The examples of a batch, or of another sequence, that this worker computes."""
        return slice(self.index * num_examples // self.count, (self.index + 1) * num_examples // self.count)

    def summed(self, function: Callable[..., Tensors], *tensors: tf.Tensor) -> Tensors:
        """Calls `function` on each device with a part of `tensors`, (n, ...); returns the sums over all workers' devices."""
        return self._run(
            lambda number: function(*(self._device_part(tensor, number) for tensor in tensors)), self.seconds
        )

    def sum_tensors(self, tensors: Sequence[tf.Tensor], seconds: float | None = None) -> Tensors:
        """The sums over all workers of tensors float32, float64, int32 or int64, which have the same shapes in all."""
        if self.count == 1 or not tensors:
            return list(tensors)
        own = [tf.convert_to_tensor(tensor) for tensor in tensors]
        signature = tuple((tuple(tensor.shape), tensor.dtype) for tensor in own)
        return self._sum_function(seconds or self.seconds, signature)(own)

    @cache  # noqa: B019 (there is one such object in a process)
    def _sum_function(self, seconds: float, signature: tuple) -> Callable[[Tensors], Tensors]:
        """A compiled function per signature. It is a partial, whose compilations TensorFlow counts one by one; those of
        several functions with the same code are a reason to warn.
        """
        return tf.function(partial(self._sum, seconds), autograph=False)

    def _sum(self, seconds: float, own: Tensors) -> Tensors:
        def once(number: tf.Tensor) -> Tensors:  # not for each device of the process
            return [tf.where(number == 0, tensor, tf.zeros_like(tensor)) for tensor in own]

        return self._run(once, seconds)

    def sum(self, array: np.ndarray, seconds: float | None = None) -> np.ndarray:
        """As `sum_tensors`, of one array and outside of TensorFlow's functions."""
        return np.asarray(self.sum_tensors([array], seconds)[0])

    def any(self, is_so: bool) -> bool:
        """Whether it is so for any worker."""
        return bool(self.sum(np.array([is_so], np.int32))[0])

    def wait(self) -> None:
        """Returns when all workers have come here; for work that takes long."""
        self.sum(np.zeros(1, np.int32), PREPARING_SECONDS)

    def from_chief(self, data: bytes) -> bytes:
        """The `data` of worker 0, for all."""
        if self.count == 1:
            return data
        size = int(self.sum(np.array([len(data) if self.is_chief else 0], np.int64), PREPARING_SECONDS)[0])
        padded = np.zeros(-(-size // 8), np.int64)
        if self.is_chief:
            padded.view(np.uint8)[:size] = np.frombuffer(data, np.uint8)
        return self.sum(padded).view(np.uint8)[:size].tobytes()

    def check_equal(self, digests: Mapping[str, str]) -> None:
        """Raises UserError, for all workers, if one has other digests (hexadecimal, by what they are of) than worker 0."""
        for name, digest in digests.items():
            rows = np.zeros((self.count, 64), np.int32)
            rows[self.index, : len(digest)] = [ord(character) for character in digest[:64]]
            rows = self.sum(rows, PREPARING_SECONDS)
            if different := [str(index) for index in range(self.count) if (rows[index] != rows[0]).any()]:
                raise UserError(
                    f"Worker {', '.join(different)} has another {name} than worker 0; give all workers the same files."
                )

    def _run(self, function: Callable[[tf.Tensor], Tensors], seconds: float) -> Tensors:
        """The sums, over all devices, of what `function` returns for the number of a device of this process."""
        assert self.strategy is not None
        options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=seconds)

        def on_device() -> Tensors:
            context = tf.distribute.get_replica_context()
            number = context.replica_id_in_sync_group % self.num_devices
            found = [tf.identity(tensor) for tensor in function(number)]  # now placed on the device
            return context.all_reduce(tf.distribute.ReduceOp.SUM, found, options)

        return [self.strategy.experimental_local_results(total)[0] for total in self.strategy.run(on_device)]

    def _device_part(self, tensor: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        size = tf.shape(tensor)[0]
        return tensor[number * size // self.num_devices : (number + 1) * size // self.num_devices]


ALONE = Workers()


def form_workers(strategy: str, cluster: Cluster | None, seconds: float) -> Workers:
    """Chooses and logs what trains together: the `cluster` if there is one, else several GPUs, else one device.

    It has to be called before anything is computed with TensorFlow.

    Raises:
        UserError: `strategy` is "mirrored" and there is only one device.
        WorkerLost: a worker has ended since they met.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if cluster:
        workers = _connect(cluster, len(gpus), seconds)
        logger.info(
            f"Strategy multi-worker ({cluster.found_in}): this is worker {cluster.index} of {workers.count}, on "
            f"{cluster.addresses[cluster.index]}; worker 0 writes the run."
        )
        return workers
    if strategy == "mirrored" or (strategy == "auto" and len(gpus) > 1):
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        if len(devices) < 2:
            raise UserError("--strategy mirrored needs several GPUs, and there are fewer than two; leave the flag out.")
        reason = "--strategy" if strategy == "mirrored" else "several GPUs; --strategy one uses the first alone"
        logger.info(f"Strategy mirrored ({reason}): {len(devices)} devices share the images of a batch.")
        return Workers(num_devices=len(devices), strategy=_mirrored(tuple(device.name for device in devices)))
    logger.info(f"Strategy one ({'--strategy' if strategy == 'one' else 'one device, and no other workers'}).")
    return ALONE


@cache  # two of one process give their sums the same numbers, and TensorFlow mixes these up
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(devices)


def _connect(cluster: Cluster, num_gpus: int, seconds: float) -> Workers:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.index,
        num_accelerators={"GPU": num_gpus},
        rpc_layer="grpc",
    )
    count = len(cluster.addresses)
    ignore_errors_of_deletion()
    try:
        with _killed_after(seconds):
            strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except tf.errors.UnknownError as error:
        if "gRPC server" not in str(error):
            raise
        raise UserError(
            f"Worker {cluster.index} cannot listen on {cluster.addresses[cluster.index]}; another program may have the port: "
            f"end that one, or give another port in {cluster.found_in}."
        ) from None
    return Workers(cluster.index, count, max(1, num_gpus), strategy, seconds)


def ignore_errors_of_deletion() -> None:
    """From now on Python does not print errors of TensorFlow that come while an object is deleted.

    A deleted function is deleted on all workers, and at the end of a run some of them may have ended already.
    """
    report, of_tensorflow = sys.unraisablehook, tf.errors.OpError
    sys.unraisablehook = lambda found: None if isinstance(found.exc_value, of_tensorflow) else report(found)


@contextmanager
def _killed_after(seconds: float) -> Iterator[None]:
    """Ends the process if the block takes longer.

    TensorFlow waits for other workers for an hour, without giving Python the chance to run a thread or to handle a signal,
    so another process watches.
    """
    reading, writing = os.pipe()
    watched = os.getpid()
    watcher = os.fork()
    if watcher == 0:
        os.close(writing)
        if not select.select([reading], [], [], seconds)[0]:
            os.write(
                2,
                f"error: Another worker has ended, or could not be reached for {seconds:g} s; start all again.\n".encode(),
            )
            os.kill(watched, signal.SIGKILL)
        os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)  # the watcher sees it
        os.waitpid(watcher, 0)


@contextmanager
def lost_worker_as_user_error(count: int, seconds: float) -> Iterator[None]:
    """Turns TensorFlow's errors about other workers, of `count`, into WorkerLost."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.CancelledError) as error:
        if count == 1:
            raise
        named = re.search(r"/job:worker/(?:replica:0/)?task:(\d+)", str(error))
        worker = f"Worker {named[1]}" if named else "A worker"
        is_late = isinstance(error, tf.errors.DeadlineExceededError)
        what = f"has not answered for {seconds:g} s" if is_late else "has ended or does not answer"
        raise WorkerLost(
            f"{worker} {what}, so this one ends too; see the messages of that worker, then start all again to continue the "
            "run from its last checkpoint."
        ) from None
