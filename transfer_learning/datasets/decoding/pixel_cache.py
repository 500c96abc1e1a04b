"""The decoded images of datasets: every content is decoded once, and its pixels are kept for every later run."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import PIL

from transfer_learning.cli.progress import count_progress
from transfer_learning.datasets.dataset import UNREADABLE_FILE, Dataset, Example, Source
from transfer_learning.datasets.decoding.decode import (
    JPEG_QUALITY,
    Decoded,
    content_hash,
    decode,
    failed,
    from_jpeg,
    to_jpeg,
)
from transfer_learning.datasets.decoding.workers import DecodeWorkers, usable_cores
from transfer_learning.storage.rows import Rows
from transfer_learning.storage.array_cache import ArrayCache, CachedRows
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.cache_index import PIXELS, EntrySpec

logger = logging.getLogger(__name__)

VERSION = 3  # part of the cache entry's name: raise it when `decode` changes its output
UNREADABLE = "unreadable"  # no hash begins like this
CHUNK = 128  # images that are kept at a time, while as many again are decoded: what a kill loses and memory holds
# Of each example: SHA-256 of its content; size in pixels; problem, "" if decoded; hash of the decoded pixels, "" for none;
# remarks of `decode`; kind of the problem.
FACTS = ("sha256", "width", "height", "problem", "pixels", "remarks", "kind")
JPEG_BYTES_PER_PIXEL = 0.7  # photos at 160 and 224 pixels take 0.5 to 0.7: to speak of, and to make room by


@dataclass(frozen=True)
class CachedImages:
    """Pixels and facts of the examples of a dataset."""

    pixels: Rows  # uint8 (records, size, size, 3), RGB, read-only: of this dataset and of others
    rows: np.ndarray  # int64 (examples,), which of `pixels` is an example's; -1 where `problem` says why there is none
    facts: pd.DataFrame  # a row an example, in their order; its columns are FACTS
    pixel_key: str  # what decides the pixels of an image besides its content: size, resizing, versions
    cached_in: EntrySpec  # the cache entry of the pixels


class JpegPixels:
    """Images that are kept as JPEGs, read like `CachedRows` of pixels, by any number of threads at once.

    Each access decodes, to the same pixels every time and on every machine with this version of Pillow.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, jpegs: CachedRows, size: int):
        self._jpegs, self._size = jpegs, size
        self._threads = ThreadPoolExecutor(usable_cores(), "decode")  # Pillow decodes outside of Python's lock

    def __len__(self) -> int:
        return len(self._jpegs)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), self._size, self._size, 3

    def __getitem__(self, positions: int | np.ndarray) -> np.ndarray:
        """Returns a new uint8 array (k, size, size, 3) for integers (k,); (size, size, 3) for one integer.

        Raises:
            IndexError, OSError: as `CachedRows` does.
        """
        if isinstance(positions, int | np.integer):
            return from_jpeg(self._jpegs[positions])
        pixels = np.empty((len(positions), *self.shape[1:]), np.uint8)

        def decode_part(start: int) -> None:
            for index, jpeg in enumerate(self._jpegs[positions[start : start + part]], start):
                pixels[index] = from_jpeg(jpeg)

        part = max(1, -(-len(positions) // (4 * usable_cores())))  # tasks of some images: each costs Python a little
        list(self._threads.map(decode_part, range(0, len(positions), part)))
        return pixels


def cached_images(dataset: Dataset, size: int, resize: str, cache: Cache, decoded_gb: float = 16.0) -> CachedImages:
    """Opens the store of `dataset`; what no earlier run has decoded, of this dataset or another one, is decoded first.

    Every file is read from the disk once: a chunk of them is hashed while the chunk before it is decoded, which finds
    its files in the memory where the system keeps what was just read. So how many have to be decoded is known only at
    the end. What cannot be decoded is not kept, and is tried again each time: its reason may be gone.

    Args:
        size: side of the kept images in pixels.
        resize: how they become square, as `decode` takes it.
        cache: where the decoded images are found and stored.
        decoded_gb: a dataset whose decoded images, copies included, take more (in 10^9 bytes) is kept as JPEGs.

    Raises:
        UserError: there is no space for the images, neither on disk nor in memory.
    """
    examples = dataset.examples
    stored = pixel_format(len(examples), size, resize, decoded_gb)
    as_jpeg, record_bytes = stored.as_jpeg, stored.record_bytes
    if as_jpeg:
        logger.info(
            f"Decoded, the {len(examples):,} images would take {len(examples) * size**2 * 3 / 1e9:,.2f} GB, more than "
            f"--decoded-gb {decoded_gb:g} allows; so they are kept as JPEGs of {size} x {size} pixels, quality "
            f"{JPEG_QUALITY}, about {len(examples) * record_bytes / 1e9:,.2f} GB, which every access decodes; `predict`, "
            "which reads the files themselves, may differ from the test in the last digits."
        )
    with cache.disk_full_as_user_error("decoded images", len(examples) * record_bytes):
        kept = cache.open(stored.entry)
    progress = count_progress("Reading images")
    names: list[str] = []
    with kept, _Decoders(size, resize, as_jpeg) as decoders:
        filling = _Filling(kept, len(examples), record_bytes, cache)
        hashes = decoders.hash(examples[:CHUNK])
        images: dict[str, Future[Decoded]] = {}  # of the chunk before
        for start in range(0, len(examples) + CHUNK, CHUNK):  # the last turn has no chunk of its own
            chunk = examples[start : start + CHUNK]
            # Examples of the same content share a record; one that cannot even be read has a name of its own.
            chunk_names = [digest or f"{UNREADABLE} {start + index}" for index, digest in enumerate(hashes)]
            hashes = decoders.hash(examples[start + CHUNK : start + 2 * CHUNK])
            sources = {name: example.source for name, example in zip(chunk_names, chunk, strict=True)}
            following = decoders.decode({name: sources[name] for name in filling.find_missing(chunk_names)})
            filling.keep({name: image.result() for name, image in images.items()})
            images = following
            names += chunk_names
            if start:
                progress(min(start, len(examples)), len(examples))
        pixels = JpegPixels(kept.rows, size) if as_jpeg else kept.rows
    if filling.num_missing:
        num_kept = sum(name in filling.found for name in names)
        logger.info(f"Decoded {filling.num_added:,} images; {num_kept:,} were kept from earlier runs.")
    known = [filling.known[name] for name in names]
    facts = [
        ("" if name.startswith(UNREADABLE) else name, *facts) for name, (_, *facts) in zip(names, known, strict=True)
    ]
    facts = pd.DataFrame(facts, columns=list(FACTS))
    return CachedImages(pixels, np.array([row for row, *_ in known], np.int64), facts, stored.entry.name, stored.entry)


class _Known(NamedTuple):
    """What is known of a content."""

    row: int = -1  # of its pixels, -1 where there are none
    width: int = 0
    height: int = 0
    problem: str = "is being decoded"
    pixels: str = ""
    remarks: str = ""
    kind: str = ""

    @staticmethod
    def from_note(row: int, note: str) -> "_Known":
        width, height, pixels, *words = note.split()
        return _Known(row, int(width), int(height), "", pixels, " ".join(words))

    @property
    def note(self) -> str:
        """The text that is kept with the pixels."""
        return f"{self.width} {self.height} {self.pixels} {self.remarks}"


class PixelFormat(NamedTuple):
    """How the images of a dataset are cached."""

    as_jpeg: bool
    record_bytes: int  # per image; an estimate where `as_jpeg`
    entry: EntrySpec  # its name is `CachedImages.pixel_key`


def pixel_format(num_images: int, size: int, resize: str, decoded_gb: float) -> PixelFormat:
    """Chooses pixels or JPEGs by the size of the decoded dataset; see `cached_images`."""
    as_jpeg = num_images * size**2 * 3 > decoded_gb * 1e9
    facts = {"size": size, "resize": resize, "format": "JPEG" if as_jpeg else "pixels"}
    name = f"{size}-{resize}-{VERSION}-{PIL.__version__}{'-jpeg' if as_jpeg else ''}"
    if as_jpeg:
        return PixelFormat(True, int(size**2 * JPEG_BYTES_PER_PIXEL), EntrySpec(PIXELS, name, None, "", facts))
    return PixelFormat(False, size**2 * 3, EntrySpec(PIXELS, name, (size, size, 3), "uint8", facts))


class _Filling:
    """What is known of the contents that were looked at, and the pool that takes those which are missing."""

    def __init__(self, kept: ArrayCache, num_images: int, record_bytes: int, cache: Cache):
        self._kept, self._num_images, self._record_bytes = kept, num_images, record_bytes
        self._cache = cache
        self._num_looked_at = self._num_with_room = 0
        self.num_missing = self.num_added = 0
        self.known: dict[str, _Known] = {}
        self.found: set[str] = set()  # those that an earlier run has kept

    def find_missing(self, names: Sequence[str]) -> list[str]:
        """Looks the contents of the next images up; returns those that have to be decoded, after making room for them."""
        self._num_looked_at += len(names)
        fresh = [name for name in dict.fromkeys(names) if name not in self.known]
        with self._space_told():
            found = zip(fresh, self._kept.positions(fresh).tolist(), self._kept.notes(fresh), strict=True)
        found = {name: _Known.from_note(row, note) for name, row, note in found if row >= 0 and note}
        self.found.update(found)  # not |=, which copies the whole set for the sake of a view of keys
        missing = [name for name in fresh if name not in found]
        self.known |= found | dict.fromkeys(missing, _Known())
        if missing and not self.num_missing:
            logger.info(f"Decoding those of {self._num_images:,} images that no earlier run has decoded.")
        self.num_missing += len(missing)
        if self.num_missing > self._num_with_room:
            self._num_with_room = self.num_missing + self._num_expected()
            if not self._cache.reserve(self._kept, self._num_bytes_left()):
                self._num_with_room = self._num_images  # nothing else is deleted for what is not written
        return missing

    def keep(self, images: Mapping[str, Decoded]) -> None:
        """Keeps the images without a problem, and what is known of all."""
        known = {
            name: _Known(
                width=image.width,
                height=image.height,
                problem=image.problem,
                pixels=_hash_of_pixels(image.pixels),
                remarks=image.remarks,
                kind=image.kind,
            )
            for name, image in images.items()
        }
        good = [name for name, image in images.items() if not image.problem]
        if good:
            pixels, notes = [images[name].pixels for name in good], [known[name].note for name in good]
            with self._space_told():
                rows = self._kept.add(good, pixels, notes, self._num_bytes_left()).tolist()
            known |= {name: known[name]._replace(row=row) for name, row in zip(good, rows, strict=True)}
        self.num_added += len(good)
        self.known |= known

    def _num_expected(self) -> int:
        """Missing ones among the images that are still to be looked at, if their share stays what it is."""
        num_left = self._num_images - self._num_looked_at
        return -(-num_left * self.num_missing // max(1, self._num_looked_at))

    def _num_bytes_left(self) -> int:
        """What is still to be added, as far as it can be foreseen."""
        return (self.num_missing + self._num_expected() - self.num_added) * self._record_bytes

    def _space_told(self):
        return self._cache.disk_full_as_user_error("decoded images", self._num_bytes_left())


def _hash_of_pixels(pixels: np.ndarray | bytes | None) -> str:
    """32 hexadecimal digits; "" without pixels. Equal pixels make equal JPEGs, so those stand for them."""
    return "" if pixels is None else hashlib.blake2b(pixels, digest_size=16).hexdigest()


class _Decoders:
    """Hashes contents in threads, and decodes files in processes and arrays in threads; a context manager."""

    def __init__(self, size: int, resize: str, as_jpeg: bool):
        self._size, self._resize, self._as_jpeg = size, resize, as_jpeg
        self._threads = ThreadPoolExecutor(usable_cores())
        self._workers = DecodeWorkers(size, resize, as_jpeg)

    def __enter__(self) -> "_Decoders":
        return self

    def __exit__(self, *error) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._workers.close()  # and so no thread waits for one
        self._threads.shutdown()

    def hash(self, examples: Sequence[Example]) -> Iterator[str]:
        """Begins to hash; returns the hashes in their order, waiting for each."""
        return self._threads.map(content_hash, [example.source for example in examples])

    def decode(self, sources: Mapping[str, Source]) -> dict[str, Future[Decoded]]:
        """Begins to decode `sources`, which their hashes name."""
        return {name: self._threads.submit(self._decode, name, source) for name, source in sources.items()}

    def _decode(self, name: str, source: Source) -> Decoded:
        if not isinstance(source, np.ndarray):
            digest, image = self._workers.decode(source)
            if not image.problem and digest != name:
                return failed(UNREADABLE_FILE, "the file changed while it was read")
            return image
        image = decode(source, self._size, self._resize)
        return image._replace(pixels=to_jpeg(image.pixels)) if self._as_jpeg and not image.problem else image
