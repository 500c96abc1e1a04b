"""Thousands of damaged image files, through the real path from folder to manifest, twice.

    python -m tests.support.mutated_images FOLDER --number 10000

Made from every good kind of `tests/support/bad_images.py` by flipped bits, cuts, edited header fields and splices, the
same in every session. Each must be used or skipped for a reason, the same way both times; else the exit code is 1.
"""

import argparse
import hashlib
import re
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.support import bad_images
from transfer_learning.datasets.decoding.pixel_cache import cached_images
from transfer_learning.datasets.sources import folder
from transfer_learning.storage.cache import Cache

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEADER = 80  # bytes
SIZE = 32  # pixels a side of what is decoded


def flipped(rng: np.random.Generator, content: bytearray, others: list[bytes]) -> bytearray:
    """Some bits are the other way round: a failing disk."""
    for place in rng.integers(0, len(content), rng.integers(1, 20)):
        content[place] ^= 1 << rng.integers(8)
    return content


def cut(rng: np.random.Generator, content: bytearray, others: list[bytes]) -> bytearray:
    """The end, or a part in the middle, is missing: a download that broke off."""
    start, end = sorted(rng.integers(0, len(content), 2))
    return content[:start] + (content[end:] if rng.random() < 0.3 else b"")


def edited(rng: np.random.Generator, content: bytearray, others: list[bytes]) -> bytearray:
    """A number in the header, or in what looks like one, is an extreme: sizes, lengths, counts, places."""
    for _ in range(rng.integers(1, 4)):
        width = int(rng.choice((1, 2, 4)))
        value = int(rng.choice(EXTREMES)) % 256**width
        place = int(rng.integers(0, min(HEADER, len(content)) if rng.random() < 0.8 else len(content)))
        packed = value.to_bytes(width, "big" if rng.random() < 0.5 else "little")
        content[place : place + width] = packed[: max(0, len(content) - place)]
    return content


def edited_segment(rng: np.random.Generator, content: bytearray, others: list[bytes]) -> bytearray:
    """One segment of a JPEG or chunk of a PNG is edited, doubled or left away, with a checksum that is right again: damage
    that no reader stops at ahead of its meaning."""
    parts = _png_chunks(content) if content.startswith(bad_images.PNG_START) else _jpeg_segments(content)
    if len(parts) < 3:
        return edited(rng, content, others)
    chosen = int(rng.integers(1, len(parts)))
    how = rng.random()
    if how < 0.15:
        parts.insert(int(rng.integers(1, len(parts))), parts[chosen])
    elif how < 0.3:
        del parts[chosen]
    elif content.startswith(bad_images.PNG_START):
        body = bytearray(parts[chosen][4:-4])
        place = int(rng.integers(0, len(body)))
        value = int(rng.choice(EXTREMES)).to_bytes(4, "big")
        body[place : place + 4] = value[: len(body) - place]
        parts[chosen] = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    else:
        body = bytearray(parts[chosen])
        place = int(rng.integers(0, min(len(body), 30)))
        body[place] = int(rng.choice((0, 1, 0x7F, 0x80, 0xC0, 0xDA, 0xFF)))
        parts[chosen] = bytes(body)
    return bytearray(b"".join(parts))


def spliced(rng: np.random.Generator, content: bytearray, others: list[bytes]) -> bytearray:
    """The beginning of one file and the end of another."""
    other = others[rng.integers(len(others))]
    return content[: rng.integers(1, len(content))] + other[rng.integers(0, len(other)) :]


def _png_chunks(content: bytes) -> list[bytes]:
    parts, place = [bytes(content[:8])], 8
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        parts.append(bytes(content[place : place + length + 12]))
        place += length + 12
    return parts


def _jpeg_segments(content: bytes) -> list[bytes]:
    places = [match.start() for match in re.finditer(rb"\xff[\xc0-\xfe]", content)]
    return [bytes(content[start:end]) for start, end in zip([0, *places], [*places, len(content)], strict=True)]


MUTATIONS: tuple[Callable, ...] = (flipped, cut, edited, edited_segment, spliced)


def write_mutated_images(root: Path, number: int, seed: int) -> None:
    """Writes `number` files into two class folders below `root`, the same bytes for the same numbers."""
    bases = [
        (kind.make, Path(kind.name).suffix)
        for kind in bad_images.kinds().values()
        if isinstance(kind.make, bytes) and kind.fate == "used" and len(kind.make) < 20_000
    ]
    contents = [content for content, _ in bases]
    for index in range(number):
        rng = np.random.default_rng((seed, index))
        content, suffix = bases[index % len(bases)]
        mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
        path = root / "ab"[index % 2] / f"{index:06d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutation(rng, bytearray(content), contents))


def outcome(root: Path, cache_dir: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Looks at the files as a run does, from an empty cache; returns each one's problem ("" where it is used; also those
    that are ignored, such as a file without a suffix whose first bytes are damaged), and the digest of its pixels."""
    dataset = folder.read(root)
    store = cached_images(dataset, SIZE, "squash", Cache(cache_dir))
    ids = [example.id for example in dataset.examples]
    pixels = {
        name: hashlib.sha256(store.pixels[[row]].tobytes()).hexdigest()
        for name, row in zip(ids, store.rows, strict=True)
        if row >= 0
    }
    return dict(dataset.ignored) | dict(zip(ids, store.facts["problem"], strict=True)), pixels


def reasons(problems: dict[str, str]) -> Counter:
    """How many problems there are of each kind, without what differs from file to file."""
    kinds = (re.sub(r"b?'.*'|b?\".*\"|-?\b\d[\d.e+]*", "N", problem)[:90] for problem in problems.values())
    return Counter(kind or "used" for kind in kinds)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.mutated_images", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the files are written; must not exist")
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(arguments)
    root, started = flags.folder / "images", time.monotonic()
    root.mkdir(parents=True)
    write_mutated_images(root, flags.number, flags.seed)
    print(f"{flags.number:,} mutated images written in {time.monotonic() - started:.0f} s.", flush=True)
    outcomes = []
    for turn in ("first", "second"):
        started = time.monotonic()
        outcomes.append(outcome(root, flags.folder / f"cache of the {turn} time"))
        print(f"Looked at for the {turn} time in {time.monotonic() - started:.0f} s.", flush=True)
    (problems, pixels), again = outcomes
    for reason, number in reasons(problems).most_common():
        print(f"{number:>7,} {reason}")
    died = sum("the decoder died" in problem for problem in problems.values())
    late = sum("took longer" in problem for problem in problems.values())
    print(
        f"{len(problems):,} of {flags.number:,} reported: {len(pixels):,} used, {len(problems) - len(pixels):,} skipped; "
        f"{died} workers died, {late} took too long."
    )
    failures = {
        "some are not reported": len(problems) != flags.number
        or any((problem == "") != (name in pixels) for name, problem in problems.items()),
        "problems differ from the first to the second time": again[0] != problems,
        "pixels differ from the first to the second time": again[1] != pixels,
        "a worker died or took too long": died + late > 0,
    }
    for failure in (name for name, holds in failures.items() if holds):
        print(f"FAILED: {failure}.")
    for name in list(problems):
        if problems[name] != again[0][name] or pixels.get(name) != again[1].get(name):
            print(f"  {name}: {problems[name] or 'used'}, then {again[0][name] or 'used'}")
    return int(any(failures.values()))


if __name__ == "__main__":
    sys.exit(main())
