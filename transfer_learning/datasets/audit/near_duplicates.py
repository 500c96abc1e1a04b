"""Near-duplicates: by a perceptual hash of the pixels, and by the features of a backbone.

The hash is `phash` of the package imagehash (Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010, section 3.2.1): the 8 x 8 lowest frequencies of a cosine transform of the grey image of 32 x 32
pixels, each above or below their median. It survives another size, format or colours, but no rotation, mirroring or
crop; features may find these. Similar silhouettes, as of clothes on black, share a hash, so images with close hashes
are compared by pixels too.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from transfer_learning.cli.progress import count_progress

SIDE, FREQUENCIES = 32, 8
PIXELS_AT_ONCE, ROWS_AT_ONCE, PAIRS_AT_ONCE = 2**23, 512, 2**14
FLAT = 2.0  # grey levels: below this standard deviation, the hash would be of noise


def perceptual_hashes(pixels: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes images of one size.

    Args:
        pixels: uint8 (records, size, size, 3), indexed by arrays.
        rows: int64 (n,), rows of `pixels`.

    Returns:
        The hashes, uint64 (n,); and the standard deviation of the grey levels of each image at 32 x 32 pixels, float32
        (n,).
    """
    from scipy.fft import dct

    frequencies = (dct(np.eye(SIDE), axis=0)[:FREQUENCIES]).astype(np.float32)
    progress = count_progress("Comparing images")
    hashes, contrasts = np.empty(len(rows), np.uint64), np.empty(len(rows), np.float32)
    for part, grey in _grey_pictures(pixels, rows):
        contrasts[part] = grey.std(axis=(1, 2))
        lowest = (frequencies @ grey @ frequencies.T).reshape(len(grey), -1)
        bits = lowest > np.median(lowest, axis=1, keepdims=True)
        hashes[part] = np.packbits(bits, axis=1).view(">u8")[:, 0]
        progress(part.stop, len(rows))
    return hashes, contrasts


def correlations(pixels: Any, rows: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The correlation, -1 to 1, of the grey images at 32 x 32 pixels of each pair, float32 (pairs,); `pairs` are
    positions in `rows`, int64 (pairs, 2).
    """
    members, places = np.unique(pairs, return_inverse=True)
    pictures = np.empty((len(members), SIDE * SIDE), np.float16)
    for part, grey in _grey_pictures(pixels, rows[members]):
        flat = grey.reshape(len(grey), -1)
        flat -= flat.mean(axis=1, keepdims=True)
        pictures[part] = SIDE * flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    left, right = places.reshape(-1, 2).T
    found = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        both = pictures[left[part]].astype(np.float32), pictures[right[part]].astype(np.float32)
        found[part] = np.einsum("ij,ij->i", *both) / SIDE**2
    return found


def near_by_hash(hashes: np.ndarray, most_bits: int) -> np.ndarray:
    """Returns the pairs of hashes that differ in at most `most_bits` of their 64 bits, int64 (pairs, 2).

    Two such hashes are equal in at least one of `most_bits` + 1 bands of bits, so only those are compared. Equal hashes
    are paired in a chain, not each with each.
    """
    if not len(hashes):
        return np.empty((0, 2), np.int64)
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    equal = inverse[order[1:]] == inverse[order[:-1]]
    pairs = [np.stack([order[:-1], order[1:]], axis=1)[equal]]
    for band in range(most_bits + 1):
        mask = np.uint64(sum(1 << bit for bit in range(band, 64, most_bits + 1)))
        values = distinct & mask
        by_value = np.argsort(values, kind="stable")
        ends = np.flatnonzero(np.diff(values[by_value], append=~values[by_value[-1:]])) + 1
        for start, stop in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            members = by_value[start:stop]
            for part, others in _blocks(members):
                near = np.bitwise_count(distinct[part][:, None] ^ distinct[others]) <= most_bits
                left, right = np.nonzero(near & (part[:, None] < others))
                pairs.append(np.stack([first[part[left]], first[others[right]]], axis=1))
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)


def near_by_features(features: np.ndarray, least_similarity: float) -> np.ndarray:
    """Returns the pairs with at least this cosine, int64 (pairs, 2); features float32 (n, width) of length 1, see
    `directions`.
    """
    pairs = [np.empty((0, 2), np.int64)]
    for part, others in _blocks(np.arange(len(features))):
        left, right = np.nonzero(features[part] @ features[others].T >= least_similarity)
        is_new = part[left] < others[right]
        pairs.append(np.stack([part[left[is_new]], others[right[is_new]]], axis=1))
    return np.concatenate(pairs)


def directions(features: np.ndarray) -> np.ndarray:
    """Returns the features minus their mean, scaled to length 1: float32 (n, width).

    Without that, features after a ReLU, which are all positive, have a high cosine for any two images.
    """
    centred = features - features.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def groups_of(pairs: np.ndarray, count: int) -> np.ndarray:
    """Returns the number of the group of each of `count` images, int64 (count,), -1 for none.

    Groups are the connected components of the pairs, numbered from 0 on in the order of their first images.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, components = connected_components(graph, directed=False)
    _, first, inverse, sizes = np.unique(components, return_index=True, return_inverse=True, return_counts=True)
    is_group = sizes > 1
    numbers = np.full(len(sizes), -1)
    numbers[np.flatnonzero(is_group)[np.argsort(first[is_group])]] = np.arange(is_group.sum())
    return numbers[inverse]


def _blocks(members: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields each block of `members`, with all members from its first one on, so that every pair is compared once."""
    for start in range(0, len(members) if len(members) > 1 else 0, ROWS_AT_ONCE):
        yield members[start : start + ROWS_AT_ONCE], members[start:]


def _grey_pictures(pixels: Any, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields slices of `rows` with their grey images, float32 (k, SIDE, SIDE)."""
    size = pixels.shape[1]
    edges, pixel = np.linspace(0, size, SIDE + 1), np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    reduce = (np.maximum(overlap, 0) * (SIDE / size)).astype(np.float32)  # averages `size` pixels in a row to SIDE
    at_once = max(1, PIXELS_AT_ONCE // size**2)
    parts = [slice(start, min(start + at_once, len(rows))) for start in range(0, len(rows), at_once)]
    with ThreadPoolExecutor(1) as thread:  # reads one part ahead
        coming = [thread.submit(lambda part: pixels[rows[part]], part) for part in parts[:1]]
        for number, part in enumerate(parts, 1):
            images = coming.pop().result()
            coming += [thread.submit(lambda part: pixels[rows[part]], ahead) for ahead in parts[number : number + 1]]
            grey = images @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's "L"
            yield part, reduce @ grey @ reduce.T
