"""Decodes the sources of a dataset in parallel, and images that are decoded whenever they are read."""

import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

import numpy as np

from transfer_learning.datasets.dataset import UNREADABLE_FILE, Source, is_remote
from transfer_learning.datasets.decoding.decode import Decoded, content_hash, failed, from_jpeg
from transfer_learning.datasets.decoding.value_range import Ranges
from transfer_learning.datasets.decoding.workers import DecodeWorkers
from transfer_learning.errors import UserError
from transfer_learning.machine.resources import usable_cores
from transfer_learning.storage.rows import Rows

FILES_AT_ONCE = 16  # that a thread hashes, since handing over one takes as long as to hash it
READERS = 32  # threads that wait for an object store, which takes some 50 ms per image
ON_READ = 1 << 50  # positions from here on are of images that are decoded on each access


class Decoders:
    """Hashes and decodes in threads, files in processes of `DecodeWorkers`; a context manager.

    Args:
        size: side of the decoded images in pixels.
        resize, as_jpeg, ranges: as `DecodeWorkers` takes them.
        suffix: of the keys in the cache.
        readers: threads; at most one per core decodes at a time, and the others read.
    """

    def __init__(
        self, size: int, resize: str, as_jpeg: bool, ranges: Ranges | None = None, suffix: str = "", readers: int = 0
    ):
        self.suffix, self._readers = suffix, readers
        self._threads = ThreadPoolExecutor(max(readers, usable_cores()))
        self._cores = threading.BoundedSemaphore(usable_cores())
        self._workers = DecodeWorkers(size, resize, as_jpeg, ranges=ranges)

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._workers.close()  # and so no thread waits for one
        self._threads.shutdown()

    def hash(self, sources: Sequence[Source]) -> Iterator[str]:
        """Starts hashing; returns the hashes in order, waiting for each."""
        size = 1 if self._readers else FILES_AT_ONCE
        parts = [sources[start : start + size] for start in range(0, len(sources), size)]
        return chain.from_iterable(self._threads.map(lambda part: list(map(content_hash, part)), parts))

    def decode(self, name: str, source: Source) -> Future[Decoded]:
        """Starts decoding a source of the hash `name`; JPEG bytes for pixels if `as_jpeg`."""
        return self._threads.submit(self._decode, name, source)

    def _decode(self, name: str, source: Source) -> Decoded:
        content = source.read_bytes() if is_remote(source) else source
        with self._cores:
            digest, image = self._workers.decode(content)
        if not image.problem and digest != name.removesuffix(self.suffix):
            return failed(UNREADABLE_FILE, "the file changed while it was read")
        return image


class PixelsOnRead:
    """`Rows` of images of which the cache holds some; the others are decoded on each access, to the same pixels.

    Args:
        cached: the images that the cache holds; the others have positions from `ON_READ` on.
        sources: of the images that are decoded, by position behind `ON_READ`, with their SHA-256.
        decoders: closed with this object.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, cached: Rows, sources: Sequence[tuple[str, Source]], decoders: Decoders):
        self._cached, self._sources, self._decoders = cached, sources, decoders
        weakref.finalize(self, decoders.close)

    def __len__(self) -> int:
        return len(self._cached) + len(self._sources)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self._cached.shape[1:]

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """Returns a new uint8 array (k, size, size, 3) for integers (k,).

        Raises:
            UserError: a file is not what it was when the run began, or cannot be read.
            IndexError, OSError: as `CachedRows` does.
        """
        positions = np.asarray(positions, np.int64)
        behind = np.flatnonzero(positions >= ON_READ)
        asked = [self._sources[positions[index] - ON_READ] for index in behind]
        coming = [self._decoders.decode(*one) for one in asked]
        pixels = np.empty((len(positions), *self.shape[1:]), np.uint8)
        pixels[positions < ON_READ] = self._cached[positions[positions < ON_READ]]
        for index, (_, source), image in zip(behind, asked, map(Future.result, coming), strict=True):
            if image.problem:
                raise UserError(
                    f"{source} cannot be read any more ({image.problem}), and it is needed again in each epoch; restore it, "
                    "then start again: a run continues from its last checkpoint."
                )
            pixels[index] = from_jpeg(image.pixels) if isinstance(image.pixels, bytes) else image.pixels
        return pixels
