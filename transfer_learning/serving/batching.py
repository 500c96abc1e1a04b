"""Predicts images in batches of whatever is waiting, in the one thread that uses the network."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

BATCH_SIZES = (1, 2, 4, 8, 16, 32)  # the network sees no others: a shape is compiled, or measured, once
MANY = 4  # images per batch of requests with several: what a lone image waits for; on a CPU, more gain little


class Batcher:
    """Collects images and predicts them together; all methods belong to the thread of the event loop.

    A batch takes what is waiting when the network is free: a lone image does not wait for others, and under load the
    batches grow by themselves. Requests with one image and those with several take turns, and a batch holds at most MANY
    images of the latter: a lone image never waits for all of a large request.

    Args:
        predict: uint8 (n, size, size, 3), n one of BATCH_SIZES -> a sequence with a result per image.
        observe: called with the number of images of each batch.
    """

    def __init__(self, predict: Callable[[np.ndarray], Any], observe: Callable[[int], object] = lambda count: None):
        self._predict, self._observe = predict, observe
        self._lone: deque[tuple[np.ndarray, asyncio.Future]] = deque()
        self._several: deque[tuple[np.ndarray, asyncio.Future]] = deque()
        self._thread = ThreadPoolExecutor(1, "network")
        self._task: asyncio.Task | None = None

    async def predict(self, pixels: np.ndarray, is_lone: bool = True) -> Any:
        """Returns the result for one image, uint8 (size, size, 3), which may be one of several in its request."""
        result = asyncio.get_running_loop().create_future()
        (self._lone if is_lone else self._several).append((pixels, result))
        if self._task is None:
            self._task = asyncio.create_task(self._predict_all())
        return await result

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function between two batches, in the thread of the network."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """Ends the thread after the batch that it computes."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _predict_all(self) -> None:
        try:
            was_lone = False
            while self._lone or self._several:
                was_lone = bool(self._lone) and not (was_lone and self._several)  # in turns
                waiting, most = (self._lone, BATCH_SIZES[-1]) if was_lone else (self._several, MANY)
                taken = [waiting.popleft() for _ in range(min(most, len(waiting)))]
                batch = [(pixels, result) for pixels, result in taken if not result.done()]  # not given up meanwhile
                if not batch:
                    continue
                self._observe(len(batch))
                try:
                    rows = await self.run(self._predict, padded([pixels for pixels, _ in batch]))
                except Exception as error:
                    for _, result in batch:
                        if not result.done():
                            result.set_exception(error)
                else:
                    for (_, result), row in zip(batch, rows, strict=False):  # the last rows are of the padding
                        if not result.done():
                            result.set_result(row)
        finally:
            self._task = None


def padded(images: list[np.ndarray]) -> np.ndarray:
    """Returns uint8 (n, size, size, 3), where n is the next of BATCH_SIZES; the images that are added are black."""
    count = next(size for size in BATCH_SIZES if size >= len(images))
    batch = np.zeros((count, *images[0].shape), np.uint8)
    batch[: len(images)] = images
    return batch
