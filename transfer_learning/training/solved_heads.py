"""Closed-form heads in the cache, by all that they depend on: another run on the same images solves none again."""

import hashlib
import inspect
import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from transfer_learning.cli.console import muted
from transfer_learning.datasets.pipeline import Examples
from transfer_learning.models.features import ComputedActivations
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.cache_index import HEADS, EntrySpec
from transfer_learning.training import closed_form
from transfer_learning.training.closed_form import CHUNK, LinearHead, closed_form_head

STORED = ("kernel", "bias", "loss", "mean", "scale")  # of a LinearHead, beside `left_out`


@dataclass(frozen=True)
class SolvedHeads:
    """The heads in a cache; a cache that cannot be read or written only costs the time to solve them."""

    cache: Cache
    runtime: Mapping[str, str]  # versions and device, which the last bits depend on

    def solve(
        self,
        examples: Examples,
        num_classes: int,
        class_weights: list[float],
        kind: str = "ridge",
        blocks: tuple[int, ...] = (),
        groups: np.ndarray | None = None,
    ) -> LinearHead:
        """Returns what `closed_form_head` returns for these arguments, without its `fit` if it is in the cache."""
        arguments = examples, num_classes, class_weights, kind, blocks, groups
        if isinstance(examples.inputs, ComputedActivations):  # to read them takes longer than to solve
            return closed_form_head(*arguments)
        method = [inspect.getsource(closed_form), version("numpy"), version("scipy"), dict(self.runtime)]
        entry = EntrySpec(HEADS, hashlib.sha256(json.dumps(method).encode()).hexdigest()[:32], None)
        settings = [kind, blocks, class_weights, groups is not None, examples.inputs.shape[1:], len(examples)]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for array in (examples.labels, groups):
            digest.update(b"" if array is None else array.tobytes())
        for start in range(0, len(examples), CHUNK):
            digest.update(examples.inputs[examples.rows[start : start + CHUNK]].tobytes())
        key = digest.hexdigest()
        if not (head := self._found(entry, key)):
            head = closed_form_head(*arguments)
            self._store(entry, key, head)
        return head

    def _found(self, entry: EntrySpec, key: str) -> LinearHead | None:
        # Without messages: nothing is lost but the time.
        with (
            muted("transfer_learning.storage"),
            suppress(OSError, ValueError, KeyError),
            self.cache.open(entry) as cached,
        ):
            position = cached.positions([key])
            if position[0] >= 0:
                with np.load(io.BytesIO(cached.byte_rows[position][0])) as arrays:
                    values = {name: arrays[name] for name in STORED}
                    left_out = arrays["places"], arrays["logits"]
                return LinearHead(**values | {"loss": float(values["loss"])}, left_out=left_out)
        return None

    def _store(self, entry: EntrySpec, key: str, head: LinearHead) -> None:
        file = io.BytesIO()
        assert head.left_out is not None
        places, logits = head.left_out
        np.savez(file, **{name: getattr(head, name) for name in STORED}, places=places, logits=logits)
        with muted("transfer_learning.storage"), suppress(OSError), self.cache.open(entry) as cached:
            if self.cache.num_bytes() + len(file.getvalue()) <= self.cache.limit_gb * 1e9:
                cached.add([key], [file.getvalue()])
