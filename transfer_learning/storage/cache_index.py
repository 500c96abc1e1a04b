"""What a cache entry holds: its specification, and the SQLite index in which it is written."""

import ast
import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

VERSION = 2  # of the format of an entry; entries of another version are deleted and filled again
PIXELS, FEATURES, ACTIVATIONS = "pixels", "features", "activations"  # kinds of entries
INDEX, JOURNAL = "index.sqlite", "index.sqlite-journal"


@dataclass(frozen=True)
class EntrySpec:
    """Names a cache entry and says what its records are.

    Attributes:
        kind: PIXELS, FEATURES or ACTIVATIONS; the folder below the cache.
        name: folder below that; everything that decides the values must be in it, as in a hash.
        shape: of each array; None: records are `bytes` of any length.
        dtype: of each array; "" where `shape` is None.
        facts: metadata for listing and finding entries, as {"backbone": "resnet18", "image_size": 160}.
    """

    kind: str
    name: str
    shape: tuple[int, ...] | None
    dtype: str = ""
    facts: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def record_bytes(self) -> int:
        """Size of one array."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def describe(self) -> str:
        """``features (backbone resnet18, image size 160)``."""
        return f"{self.kind} ({facts})" if (facts := describe_facts(self.facts)) else self.kind


def describe_facts(facts: Mapping[str, str | int]) -> str:
    """``backbone resnet18, image size 160``."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())


def layout_text(shape: Sequence[int] | None, dtype) -> str:
    """The text that the index holds for a shape and a dtype."""
    return "bytes" if shape is None else f"{tuple(shape)} {np.dtype(dtype).str} {np.dtype(dtype).name}"


def parse_layout(text: str) -> tuple[tuple[int, ...] | None, str]:
    """The shape and dtype name of `layout_text`."""
    if text == "bytes":
        return None, ""
    shape, _, dtypes = text.rpartition(") ")
    return ast.literal_eval(f"{shape})"), dtypes.split()[1]


def parse_facts(text: str) -> dict[str, str | int]:
    """Facts as JSON; earlier versions wrote a sentence, which has none."""
    with suppress(ValueError):
        facts = json.loads(text)
        return facts if isinstance(facts, dict) else {}
    return {}


def open_index(index: Path) -> closing[sqlite3.Connection]:
    """Opens an existing index, for writing, because SQLite must roll back what a killed process left."""
    return closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=rw", uri=True, timeout=5))
