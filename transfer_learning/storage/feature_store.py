"""Features that several machines share: files in a folder or in S3, each written once and whole.

``KIND/NAME/SHARD.safetensors`` below the store holds some records of the cache entry KIND/NAME: `keys`, uint8 (n, 32),
the SHA-256 of the images; `features`, as the entry has them; and `crc32`, uint32 (1,), of both.
"""

import hashlib
import io
import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load, save

from transfer_learning.errors import UserError
from transfer_learning.storage.cache_index import EntrySpec
from transfer_learning.storage.files import written_atomically
from transfer_learning.storage.object_store import BLOCK, file_system, reason_of, write_object

logger = logging.getLogger(__name__)

PARQUET_ROWS = 10**6  # manifests of more rows are Parquet
MANIFEST_COLUMNS = ("id", "file", "offset", "length")


class FeatureStore:
    """A store.

    Args:
        place: a folder, ``s3://BUCKET/PREFIX``, or another URL that fsspec knows.

    Raises:
        MissingExtra: a package of the extra store is not installed.
        UserError: no such place; methods also, where it cannot be read or written.
    """

    def __init__(self, place: str):
        self.place = place
        self._files, self._root = file_system(place)

    def has_shard(self, entry: EntrySpec, name: str) -> bool:
        with self._errors("read"):
            return self._files.exists(self._shard(entry, name))

    def write_shard(self, entry: EntrySpec, name: str, keys: Sequence[str], features: np.ndarray) -> None:
        """Writes the features (n, ...) of n images by the SHA-256 of these; equal arguments give equal bytes."""
        digests = np.array([list(bytes.fromhex(key)) for key in keys], np.uint8).reshape(-1, 32)
        tensors = {"keys": digests, "features": np.ascontiguousarray(features), "crc32": _crc32(digests, features)}
        self._write(self._shard(entry, name), save(tensors))

    def shards(self, entry: EntrySpec) -> Iterator[tuple[list[str], np.ndarray]]:
        """Keys and features of each shard of an entry; damaged ones are left out and named in the log."""
        folder = f"{self._root}/{entry.kind}/{entry.name}"
        with self._errors("read"):
            found = sorted(self._files.find(folder))
        names = [name for name in found if name.endswith(".safetensors") and "/." not in name[len(folder) :]]
        for name in names:
            with self._errors("read"):
                content = self._files.cat_file(name)
            try:
                tensors = load(content)
                keys, features = tensors["keys"], tensors["features"]
                if tensors["crc32"] != _crc32(keys, features) or features.shape[1:] != entry.shape:
                    raise ValueError("its checksum or shape differs")
                yield [row.tobytes().hex() for row in keys], features
            except (SafetensorError, KeyError, ValueError) as error:
                logger.warning(f"{name} is damaged ({error}); delete it, and its features are computed again.")

    def write_manifest(self, rows: Sequence[tuple], shard_size: int) -> str:
        """Writes MANIFEST_COLUMNS of images; returns a name that their content decides."""
        table = pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS))
        digest = hashlib.sha256(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes()).hexdigest()[:16]
        name = f"{digest}.{'parquet' if len(table) > PARQUET_ROWS else 'csv'}"
        content = io.BytesIO()
        if name.endswith("parquet"):
            table.to_parquet(content, index=False, row_group_size=shard_size)
        else:
            table.to_csv(content, index=False)
        self._write(self._manifest(name), content.getvalue())
        return name

    def manifest_rows(self, name: str, number: int, shard_size: int) -> pd.DataFrame:
        """The rows of one shard, 0 the first."""
        with self._errors("read"), self._files.open(self._manifest(name), "rb", block_size=BLOCK) as file:
            if name.endswith("csv"):
                return pd.read_csv(file, dtype={"id": str, "file": str}).iloc[number * shard_size :].head(shard_size)
            from pyarrow.parquet import ParquetFile

            return ParquetFile(file).read_row_group(number).to_pandas()

    def _shard(self, entry: EntrySpec, name: str) -> str:
        return f"{self._root}/{entry.kind}/{entry.name}/{name}.safetensors"

    def _manifest(self, name: str) -> str:
        return f"{self._root}/manifests/{name}"

    def _write(self, path: str, content: bytes) -> None:
        with self._errors("written"):
            if "file" in self._files.protocol:
                with written_atomically(Path(path)) as temporary:
                    temporary.write_bytes(content)
            else:
                write_object(self._files, path, content)

    @contextmanager
    def _errors(self, done: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each store has errors of its own
            reason = " ".join((getattr(error, "strerror", None) or reason_of(error)).split())[:300]
            raise UserError(
                f"--feature-store {self.place} cannot be {done} ({reason}); check its name, permissions and free space, "
                "then try again: finished files are kept."
            ) from None


def _crc32(keys: np.ndarray, features: np.ndarray) -> np.ndarray:
    return np.array([zlib.crc32(features.tobytes(), zlib.crc32(keys.tobytes()))], np.uint32)
