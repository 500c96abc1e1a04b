"""The shared store of features, in a folder and in S3: equal bytes, whole files, and one sentence for what a user can fix."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.logs import log_messages
from tests.support.s3 import local_bucket, stuck_server
from transfer_learning.errors import UserError
from transfer_learning.storage import feature_store, object_store
from transfer_learning.storage.cache_index import FEATURES, EntrySpec
from transfer_learning.storage.feature_store import FeatureStore

ENTRY = EntrySpec(FEATURES, "some", (3,), "float32")
KEYS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(5)]
VALUES = np.arange(15, dtype=np.float32).reshape(5, 3)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with local_bucket("features", tmp_path_factory.mktemp("aws")) as place:
        yield place


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path):
    return (
        str(tmp_path / "store") if request.param == "folder" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    )


def test_what_was_written_is_read_and_equal_records_are_equal_bytes(place):
    store = FeatureStore(place)
    assert not store.has_shard(ENTRY, "a") and list(store.shards(ENTRY)) == []
    store.write_shard(ENTRY, "a", KEYS[:3], VALUES[:3])
    store.write_shard(ENTRY, "b", [], VALUES[:0])  # no image of it can be read
    store.write_shard(ENTRY, "c", KEYS[3:], VALUES[3:])
    assert store.has_shard(ENTRY, "a")
    store = FeatureStore(place + "/")
    found = list(store.shards(ENTRY))
    assert [keys for keys, _ in found] == [KEYS[:3], [], KEYS[3:]]
    assert np.array_equal(np.concatenate([values for _, values in found]), VALUES)
    path = store._shard(ENTRY, "a")
    before = store._files.cat_file(path)
    store.write_shard(ENTRY, "a", KEYS[:3], VALUES[:3])
    assert store._files.cat_file(path) == before


@pytest.mark.parametrize(
    "harm", [lambda content: content[:-1], lambda content: content[:-1] + b"x", lambda content: b""]
)
def test_a_damaged_shard_is_named_and_left_out(harm, tmp_path):
    store, messages = FeatureStore(str(tmp_path)), log_messages()
    for name, part in (("a", slice(0, 3)), ("b", slice(3, 5))):
        store.write_shard(ENTRY, name, KEYS[part], VALUES[part])
    path = tmp_path / FEATURES / "some" / "a.safetensors"
    path.write_bytes(harm(path.read_bytes()))
    assert [keys for keys, _ in store.shards(ENTRY)] == [KEYS[3:]]
    [message] = messages
    assert message.startswith(f"{path} is damaged")


def test_features_of_another_shape_are_left_out(tmp_path):
    store, messages = FeatureStore(str(tmp_path)), log_messages()
    store.write_shard(ENTRY, "a", KEYS, np.zeros((5, 2), np.float32))
    assert not list(store.shards(ENTRY)) and "shape differs" in messages[0]


@pytest.mark.parametrize(("largest_csv", "ending"), [(10, "csv"), (6, "parquet")])
def test_manifests_are_read_by_shard(largest_csv, ending, place, monkeypatch):
    monkeypatch.setattr(feature_store, "PARQUET_ROWS", largest_csv)
    store = FeatureStore(place)
    rows = [(f"{number:02}", f"folder/0{number}, x.png", number, -1) for number in range(7)]
    name = store.write_manifest(rows, 3)
    assert name.endswith(ending) and store.write_manifest(rows, 3) == name != store.write_manifest(rows[:-1], 3)
    read = [store.manifest_rows(name, number, 3).itertuples(index=False, name=None) for number in range(3)]
    assert [row for part in read for row in part] == rows


def test_a_store_that_cannot_be_used_is_one_sentence(bucket, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/x cannot be written .*; check its name, permissions and free space"):
        FeatureStore(str(tmp_path / "file" / "x")).write_shard(ENTRY, "a", KEYS, VALUES)
    with pytest.raises(UserError, match="s3://nobody/x cannot be written"):
        FeatureStore("s3://nobody/x").write_shard(ENTRY, "a", KEYS, VALUES)
    with pytest.raises(UserError, match="s3://nobody/x cannot be read .NoSuchBucket"):
        list(FeatureStore("s3://nobody/x").shards(ENTRY))
    with monkeypatch.context() as patch, pytest.raises(UserError, match="written .No space left on device.*free space"):
        patch.setattr(Path, "write_bytes", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
        FeatureStore(str(tmp_path / "full")).write_shard(ENTRY, "a", KEYS, VALUES)
    assert not [path for path in (tmp_path / "full").rglob("*") if path.is_file()]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for read in (lambda store: list(store.shards(ENTRY)), lambda store: store.has_shard(ENTRY, "a")):
        with pytest.raises(UserError, match=f"{bucket} cannot be read .Could not connect"):
            read(FeatureStore(bucket))
    with pytest.raises(UserError, match="nonsense://x cannot be read .*nonsense"):
        FeatureStore("nonsense://x")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.write_manifest([("a", "a.png", 0, -1)], 1),
        # More than sockets buffer.
        lambda store: store.write_shard(ENTRY, "a", KEYS[:1], np.zeros((1, 10**7), np.float32)),
    ],
)
def test_a_server_that_takes_no_bytes_is_one_sentence_within_the_limits(write, answer, bucket, monkeypatch):
    for name, value in {"ATTEMPTS": 1, "SECONDS": 1, "SLOWEST": 10**8}.items():
        monkeypatch.setattr(object_store, name, value)
    with stuck_server(monkeypatch, answer), pytest.raises(UserError, match="written .* bytes were not .* within 1 s"):
        write(FeatureStore(bucket))
