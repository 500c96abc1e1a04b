"""Batches: what is waiting, in fixed shapes."""

import asyncio
import threading

import numpy as np
import pytest

from transfer_learning.serving.batching import MANY, Batcher, padded


def image(value):
    return np.full((2, 2, 3), value, np.uint8)


class Network:
    """Returns the value of each image; the first batch waits for `go`."""

    def __init__(self):
        self.sizes, self.go = [], threading.Event()

    def __call__(self, batch):
        self.sizes.append(len(batch))
        assert self.go.wait(20)
        return batch[:, 0, 0, 0].tolist()


def test_a_lone_image_does_not_wait_and_the_others_share_a_batch():
    network, observed = Network(), []

    async def run():
        batcher = Batcher(network, observed.append)
        first = asyncio.create_task(batcher.predict(image(1)))
        while not network.sizes:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.predict(image(value))) for value in range(2, 45)]
        await asyncio.sleep(0)
        network.go.set()
        results = await asyncio.gather(first, *others)
        batcher.close()
        return results

    assert asyncio.run(run()) == list(range(1, 45))
    assert observed == [1, 32, 11] and network.sizes == [1, 32, 16]


def test_a_lone_image_waits_for_no_large_request_and_both_take_turns():
    network, ended = Network(), []

    async def run():
        batcher = Batcher(network)

        async def one(value, is_lone):
            ended.append(await batcher.predict(image(value), is_lone))

        several = [asyncio.create_task(one(value, False)) for value in range(9)]
        while not network.sizes:
            await asyncio.sleep(0.001)
        lone = [asyncio.create_task(one(value, True)) for value in (100, 101)]
        await asyncio.sleep(0)
        network.go.set()
        await asyncio.gather(*several, *lone)
        batcher.close()

    asyncio.run(run())
    assert ended == [0, 1, 2, 3, 100, 101, 4, 5, 6, 7, 8] and network.sizes == [MANY, 2, MANY, 1]


def test_an_error_reaches_all_of_its_batch_and_the_next_image_is_predicted():
    calls = []

    def network(batch):
        calls.append(len(batch))
        if len(calls) == 1:
            raise ValueError("damaged")
        return [7] * len(batch)

    async def run():
        batcher = Batcher(network)
        both = await asyncio.gather(*(batcher.predict(image(0)) for _ in range(2)), return_exceptions=True)
        assert [type(error) for error in both] == [ValueError, ValueError]
        return await batcher.predict(image(0))

    assert asyncio.run(run()) == 7


def test_an_image_that_is_given_up_is_not_predicted():
    network = Network()

    async def run():
        batcher = Batcher(network)
        first, second, third = (asyncio.create_task(batcher.predict(image(value))) for value in (1, 2, 3))
        await asyncio.sleep(0)
        second.cancel()
        network.go.set()
        with pytest.raises(asyncio.CancelledError):
            await second
        return await first, await third

    assert asyncio.run(run()) == (1, 3)
    assert network.sizes[0] in (2, 4)


def test_batches_are_padded_with_black_images():
    batch = padded([image(5)] * 3)
    assert (
        batch.shape == (4, 2, 2, 3)
        and batch.dtype == np.uint8
        and batch[2:].reshape(2, -1).max(axis=1).tolist() == [5, 0]
    )
