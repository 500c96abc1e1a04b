"""The pixel cache: every image content is decoded once, and its pixels are cached for all later runs."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import PIL

from transfer_learning.cli.formatting import counted
from transfer_learning.cli.formatting import size as in_bytes
from transfer_learning.cli.progress import count_progress
from transfer_learning.datasets.dataset import Dataset, Source, is_remote
from transfer_learning.datasets.decoding.decode import JPEG_QUALITY, Decoded, from_jpeg
from transfer_learning.datasets.decoding.decoders import ON_READ, READERS, Decoders, PixelsOnRead
from transfer_learning.datasets.decoding.value_range import Ranges, Values, describe, is_plain, ranges_of, values_in
from transfer_learning.machine.resources import available_bytes, usable_cores
from transfer_learning.storage.array_cache import ArrayCache
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.cache_index import PIXELS, EntrySpec
from transfer_learning.storage.records import CachedBytes, num_bytes_of
from transfer_learning.storage.rows import Rows

logger = logging.getLogger(__name__)

FLAT = 0.05  # of a value range: 13 grey levels
ON_READ_SHARE = 0.5  # of the cache, for pixels, where it cannot hold all: features need a place, too
FACT_BYTES = 300  # of an image in the index of an entry

VERSION = 3  # part of the cache entry's name: raise it when `decode` changes its output
UNREADABLE = "unreadable"  # prefix of the keys of unreadable files; no hexadecimal digest begins like this
CHUNK = 128  # images that are written at once, while the next chunk is decoded
# Of each example: SHA-256 of its content; size in pixels; problem, "" if decoded; hash of the decoded pixels, "" for
# none; remarks of `decode`; kind of the problem.
FACTS = ("sha256", "width", "height", "problem", "pixels", "remarks", "kind")
JPEG_BYTES_PER_PIXEL = 0.7  # an upper estimate: photos at 160 and 224 pixels take 0.5 to 0.7


@dataclass(frozen=True)
class CachedImages:
    """Pixels and facts of the examples of a dataset."""

    pixels: Rows  # uint8 (records, size, size, 3), RGB, of this dataset and of others
    rows: np.ndarray  # int64 (examples,), the row of each example in `pixels`; -1 for one with a problem
    facts: pd.DataFrame  # one row per example, with the columns FACTS
    pixel_key: str  # what decides the pixels of an image besides its content: size, resizing, versions, value ranges
    cached_in: EntrySpec  # the cache entry of the pixels
    ranges: Ranges  # of values with more than 8 bits, by type of number


class JpegPixels:
    """`Rows` of images that are cached as JPEGs and decoded on each access, with the same pixels every time."""

    dtype = np.dtype(np.uint8)

    def __init__(self, jpegs: CachedBytes, size: int):
        self._jpegs, self._size = jpegs, size
        self._threads = ThreadPoolExecutor(usable_cores(), "decode")  # Pillow releases Python's lock

    def __len__(self) -> int:
        return len(self._jpegs)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), self._size, self._size, 3

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """Returns a new uint8 array (k, size, size, 3) for integers (k,); raises what `CachedRows` does."""
        pixels = np.empty((len(positions), *self.shape[1:]), np.uint8)

        def decode_part(start: int) -> None:
            for index, jpeg in enumerate(self._jpegs[positions[start : start + part]], start):
                pixels[index] = from_jpeg(jpeg)

        part = max(1, math.ceil(len(positions) / (4 * usable_cores())))  # several images per task
        list(self._threads.map(decode_part, range(0, len(positions), part)))
        return pixels


def cached_images(
    dataset: Dataset,
    size: int,
    resize: str,
    cache: Cache,
    decoded_gb: float = 16.0,
    ranges: Ranges | None = None,
    of: int | None = None,
) -> CachedImages:
    """Returns the decoded images of `dataset`; those that are not in the cache are decoded first.

    Every file is read from the disk once: a chunk is hashed while the chunk before it is decoded from the system's page
    cache. Images that cannot be decoded are not cached, and are tried again each time.

    Where neither the cache nor the memory can hold all images, or they are in an object store and the cache cannot, it is
    filled up to `ON_READ_SHARE` and nothing in it is replaced: in the random order of training, replacing would lose as
    many hits as it wins (Mohan et al., "Analyzing and Mitigating Data Stalls in DNN Training", VLDB 2021, call this
    MinIO). Of the other images it holds the facts alone, and they are decoded whenever they are read.

    Args:
        size: side of the cached images in pixels.
        resize: how images become square, see `decode`.
        decoded_gb: datasets that are larger when decoded (in 10^9 bytes) are cached as JPEGs.
        ranges: of values with more than 8 bits, those of the run; None: they are those of this dataset, for which its
            images of more than 8 bits are decoded twice when they are first seen.
        of: number of images in the whole dataset, of which these are a part; None: they are all.

    Raises:
        UserError: there is no space for the images, neither on disk nor in memory.
    """
    examples = dataset.examples
    num_images = len(examples) if of is None else of
    stored = pixel_format(num_images, size, resize, decoded_gb)
    as_jpeg, record_bytes = stored.as_jpeg, stored.record_bytes
    if as_jpeg and of is None:
        logger.info(
            f"Caching images as JPEGs of quality {JPEG_QUALITY}: decoded they take "
            f"{num_images * size**2 * 3 / 1e9:,.2f} GB, and --decoded-gb is {decoded_gb:g}; as JPEGs about "
            f"{num_images * record_bytes / 1e9:,.2f} GB. The last digits of `predict` may differ."
        )
    sources = [example.source for example in examples]
    readers = READERS if any(map(is_remote, sources)) else 0
    on_read = _is_too_large(num_images * record_bytes, bool(readers), cache)
    with ExitStack() as stack:
        with cache.disk_full_as_user_error("decoded images", len(examples) * record_bytes):
            arrays = stack.enter_context(cache.open(stored.entry))
            facts_alone = stack.enter_context(cache.open(stored.facts_entry)) if on_read else None

        def decode_missing(sources: Sequence[Source], decoders: Decoders) -> tuple[list[str], list[_Known]]:
            filling = _Filling(arrays, len(sources), record_bytes, cache)
            if facts_alone is not None:
                share = len(examples) / max(1, num_images)
                filling.limit(facts_alone, int(ON_READ_SHARE * share * cache.limit_gb * 1e9))
            return _decode_missing(sources, decoders, filling)

        with Decoders(size, resize, as_jpeg, readers=readers) as decoders:
            names, known = decode_missing(sources, decoders)
        # Values of more than 8 bits: now that those of all images are known, they are scaled by one range.
        values = {index: found for index, one in enumerate(known) if (found := values_in(one.remarks))}
        if ranges is None:
            ranges = ranges_of(values.values())
            _log_ranges(ranges, list(values.values()))
        key = ""
        for kind, limits in sorted(ranges.items()):
            if is_plain(kind, limits) or not (of_kind := [at for at, found in values.items() if found.kind == kind]):
                continue
            suffix = f" {kind} {limits[0]:.17g} to {limits[1]:.17g}"
            with Decoders(size, resize, as_jpeg, {kind: limits}, suffix, readers) as decoders:
                _, again = decode_missing([sources[index] for index in of_kind], decoders)
                key += f"-{decoders.suffix}"
            for index, one in zip(of_kind, again, strict=True):
                known[index] = one
        pixels: Rows = JpegPixels(arrays.byte_rows, size) if as_jpeg else arrays.rows
    rows = np.array([one.row for one in known], np.int64)
    if on_read:
        behind = [index for index, one in enumerate(known) if one.row < 0 and not one.problem]
        rows[behind] = ON_READ + np.arange(len(behind))
        again_sources = [(names[index], sources[index]) for index in behind]
        pixels = PixelsOnRead(pixels, again_sources, Decoders(size, resize, as_jpeg, ranges, readers=readers))
        if of is None:
            logger.info(
                f"{len(behind):,} of {num_images:,} images do not fit into the cache and are decoded whenever they are "
                f"read: all images take about {in_bytes(num_images * record_bytes)}, and --cache-gb is {cache.limit_gb:g}."
            )
    facts = [("" if name.startswith(UNREADABLE) else name, *one[1:]) for name, one in zip(names, known, strict=True)]
    table = pd.DataFrame(facts, columns=list(FACTS))
    _mark_single_colours(table, pixels, rows)
    return CachedImages(pixels, rows, table, stored.entry.name + key, stored.entry, ranges)


def _is_too_large(num_bytes: int, is_remote: bool, cache: Cache) -> bool:
    """Whether images of that size are decoded on each access; those of an object store never fill the memory."""
    room = min(cache.limit_gb * 1e9, cache.num_bytes() + cache.free_bytes())
    return num_bytes > room and (is_remote or num_bytes > available_bytes() / 2)


def _decode_missing(
    sources: Sequence[Source], decoders: Decoders, filling: "_Filling"
) -> tuple[list[str], list["_Known"]]:
    """Decodes and caches what is missing; returns the content hash of each source, and what is known of it."""
    progress = count_progress(f"{'Scaling' if decoders.suffix else 'Reading'} images")
    names: list[str] = []
    hashes = decoders.hash(sources[:CHUNK])
    images: dict[str, Future[Decoded]] = {}  # of the chunk before
    for start in range(0, len(sources) + CHUNK, CHUNK):  # the last pass only stores the last chunk
        chunk = sources[start : start + CHUNK]
        # Examples of the same content share a record; an unreadable one has a key of its own.
        chunk_names = [
            f"{digest or f'{UNREADABLE} {start + index}'}{decoders.suffix}" for index, digest in enumerate(hashes)
        ]
        hashes = decoders.hash(sources[start + CHUNK : start + 2 * CHUNK])
        by_name = dict(zip(chunk_names, chunk, strict=True))
        following = {name: decoders.decode(name, by_name[name]) for name in filling.find_missing(chunk_names)}
        filling.add({name: image.result() for name, image in images.items()})
        images = following
        names += chunk_names
        if start:
            progress(min(start, len(sources)), len(sources))
    if filling.num_missing and not decoders.suffix:
        num_found = sum(name in filling.found for name in names)
        logger.info(f"Decoded {counted(filling.num_added, 'image')} ({num_found:,} in cache).")
    return names, [filling.known[name] for name in names]


class _Known(NamedTuple):
    """The row and the facts of one content."""

    row: int = -1  # of its pixels, -1 for none
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
        """The text that is cached with the pixels."""
        return f"{self.width} {self.height} {self.pixels} {self.remarks}"


class PixelFormat(NamedTuple):
    """How the images of a dataset are cached."""

    as_jpeg: bool
    record_bytes: int  # per image; an estimate if `as_jpeg`
    entry: EntrySpec  # its name is `CachedImages.pixel_key`

    @property
    def facts_entry(self) -> EntrySpec:
        """The entry of facts without pixels: each is the note of an empty record."""
        facts = {**self.entry.facts, "format": "facts alone"}
        return EntrySpec(PIXELS, f"{self.entry.name}-facts", None, "", facts)


def pixel_format(num_images: int, size: int, resize: str, decoded_gb: float) -> PixelFormat:
    """Chooses pixels or JPEGs by the size of the decoded dataset; see `cached_images`."""
    as_jpeg = num_images * size**2 * 3 > decoded_gb * 1e9
    facts: dict[str, str | int] = {"size": size, "resize": resize, "format": "JPEG" if as_jpeg else "pixels"}
    name = f"{size}-{resize}-{VERSION}-{PIL.__version__}{'-jpeg' if as_jpeg else ''}"
    if as_jpeg:
        return PixelFormat(True, int(size**2 * JPEG_BYTES_PER_PIXEL), EntrySpec(PIXELS, name, None, "", facts))
    return PixelFormat(False, size**2 * 3, EntrySpec(PIXELS, name, (size, size, 3), "uint8", facts))


class _Filling:
    """Looks up contents in the cache, and adds the missing ones."""

    def __init__(self, arrays: ArrayCache, num_images: int, record_bytes: int, cache: Cache):
        self._arrays, self._num_images, self._record_bytes = arrays, num_images, record_bytes
        self._cache = cache
        self._num_seen = self._num_with_room = 0
        self.num_missing = self.num_added = 0
        self.known: dict[str, _Known] = {}
        self.found: set[str] = set()  # contents that were in the cache
        self._facts: ArrayCache | None = None
        self._room = 0  # bytes of pixels, where the cache cannot hold all

    def limit(self, facts: ArrayCache, num_bytes: int) -> None:
        """Lets the entry of pixels grow to `num_bytes`, and puts the facts of the other images into `facts`."""
        num_bytes = min(num_bytes, self._arrays.num_bytes + self._cache.free_bytes() // 2)
        self._facts, self._room = facts, num_bytes - self._arrays.num_bytes
        self._cache.reserve(facts, max(0, self._room) + FACT_BYTES * self._num_images)

    def find_missing(self, names: Sequence[str]) -> list[str]:
        """Looks up the contents of the next images; returns those to decode, after making room for them."""
        self._num_seen += len(names)
        fresh = [name for name in dict.fromkeys(names) if name not in self.known]
        with self._disk_full_as_user_error():
            cached = zip(fresh, self._arrays.positions(fresh).tolist(), self._arrays.notes(fresh), strict=True)
            found = {name: _Known.from_note(row, note) for name, row, note in cached if row >= 0 and note}
            if self._facts and self._room < self._record_bytes:
                others = [name for name in fresh if name not in found]
                cached = zip(others, self._facts.positions(others).tolist(), self._facts.notes(others), strict=True)
                found |= {name: _Known.from_note(-1, note) for name, row, note in cached if row >= 0 and note}
        if unknown := [name for name, one in found.items() if _lacks_values(one.remarks)]:
            self._arrays.forget(unknown)
            found = {name: one for name, one in found.items() if name not in unknown}
        self.found.update(found)  # |= would copy the set
        missing = [name for name in fresh if name not in found]
        self.known |= found | dict.fromkeys(missing, _Known())
        self.num_missing += len(missing)
        if self._facts is None and self.num_missing > self._num_with_room:
            self._num_with_room = self.num_missing + self._num_expected()
            if not self._cache.reserve(self._arrays, self._num_bytes_left()):
                self._num_with_room = self._num_images  # held in memory: delete no other entries
        return missing

    def add(self, images: Mapping[str, Decoded]) -> None:
        """Adds the images without a problem to the cache, and the facts of all."""
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
        num_good = len(good)
        if self._facts:
            ends = np.cumsum([num_bytes_of(images[name].pixels) for name in good])
            good, others = good[: (num_fit := int((ends <= self._room).sum()))], good[num_fit:]
            self._room -= int(ends[num_fit - 1]) if num_fit else 0
            with self._disk_full_as_user_error():
                self._facts.add(others, [b""] * len(others), [known[name].note for name in others])
        if good:
            pixels, notes = [images[name].pixels for name in good], [known[name].note for name in good]
            with self._disk_full_as_user_error():
                rows = self._arrays.add(good, pixels, notes, self._num_bytes_left()).tolist()
            known |= {name: known[name]._replace(row=row) for name, row in zip(good, rows, strict=True)}
        self.num_added += num_good  # not before: a full disk needs what is left
        self.known |= known

    def _num_expected(self) -> int:
        """The expected number of missing images among those that are not looked up yet."""
        num_left = self._num_images - self._num_seen
        return math.ceil(num_left * self.num_missing / max(1, self._num_seen))

    def _num_bytes_left(self) -> int:
        """The expected size of what is still to be added."""
        if self._facts:
            return max(0, self._room)
        return (self.num_missing + self._num_expected() - self.num_added) * self._record_bytes

    def _disk_full_as_user_error(self) -> AbstractContextManager[None]:
        return self._cache.disk_full_as_user_error("decoded images", self._num_bytes_left())


def _lacks_values(remarks: str) -> bool:
    """Whether an image of more than 8 bits was cached by a version that did not note its values."""
    file_format, mode, *words = [*remarks.split(), "", ""]
    is_deep = mode[:1] in ("I", "F") or (mode in ("RGB", "RGBA") and "16-bit" in words)
    return is_deep and file_format in ("PNG", "TIFF") and values_in(remarks) is None


def _log_ranges(ranges: Ranges, values: Sequence[Values]) -> None:
    for kind, limits in ranges.items():
        of_kind = [found for found in values if found.kind == kind]
        low, high = min(found.low for found in of_kind), max(found.high for found in of_kind)
        found_values = f" (found: {low:,.6g} to {high:,.6g})" if low <= high else " (found: none)"
        logger.info(f"{describe(kind, limits, len(of_kind))}{found_values}.")
        spans = sorted(found.high - found.low for found in of_kind if found.high > found.low)
        if spans and spans[len(spans) // 2] < FLAT * (limits[1] - limits[0]):
            logger.warning(
                f"Half of these images use less than {FLAT:.0%} of that range, so they are nearly uniform; clip the extreme "
                "values, or remove the images that have them."
            )


def _mark_single_colours(facts: pd.DataFrame, pixels: Any, rows: np.ndarray) -> None:
    """Gives equal images of one colour different hashes of their pixels: they show nothing, so nothing twice."""
    repeated = facts.index[(facts["pixels"] != "") & facts["pixels"].duplicated(keep=False)]
    for name, positions in facts.loc[repeated].groupby("pixels").groups.items():
        image = pixels[rows[positions[:1]]][0]
        if (image == image[0, 0]).all():
            facts.loc[positions, "pixels"] = [f"{name} {position}" for position in positions]


def _hash_of_pixels(pixels: Any) -> str:
    """32 hexadecimal digits, of the pixels or their JPEG (equal pixels make equal JPEGs); "" for None."""
    return "" if pixels is None else hashlib.blake2b(pixels, digest_size=16).hexdigest()
