"""A set in S3, many times as large as the cache: the same run as with all of it on the disk, also when it is resumed."""

import os
import re
import signal
import tarfile
from dataclasses import replace

import keras
import pyarrow
import pytest
from pyarrow import parquet

from tests.support.photos import draw_photos
from tests.support.s3 import s3_server, use_s3
from transfer_learning.config import Phase
from transfer_learning.errors import Stopped
from transfer_learning.experiments.train import run_experiment
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.run_directory import RunDir


class StopAt(keras.callbacks.Callback):
    """Sends SIGTERM after some train steps; counts the steps of this session."""

    def __init__(self, step=None):
        super().__init__()
        self.step, self.done = step, 0

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        if self.done == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def write_tar(shard, images):
    with tarfile.open(f"{shard}.tar", "w") as archive:
        for path in images:
            archive.add(path, f"{path.parent.name}/{path.name}")


def write_parquet(shard, images):
    columns = {"image": [path.read_bytes() for path in images], "label": [path.parent.name for path in images]}
    parquet.write_table(pyarrow.table(columns), f"{shard}.parquet", compression={"image": "none"}, use_dictionary=False)


@pytest.mark.parametrize("write", [write_tar, pytest.param(write_parquet, marks=pytest.mark.long)])
def test_a_run_from_s3_with_a_small_cache_is_that_of_a_large_cache(write, small_config, tmp_path, monkeypatch):
    photos = draw_photos(tmp_path / "photos", num_per_class=24, shape=(32, 32))
    (tmp_path / "shards").mkdir()
    for part in ("train", "test"):  # by number, so that both have images of each class
        images = [path for path in sorted(photos.rglob("*.png")) if (int(path.stem) < 16) == (part == "train")]
        write(tmp_path / f"shards/set-{part}-0", images)
    phases = {"frozen": Phase(epochs=2, augmentation="light"), "fine_tune": Phase()}
    config = replace(small_config, data_dir=str(tmp_path / "data"), **phases)  # which reads pixels in every epoch
    local = replace(config, dataset=f"shards:{tmp_path / 'shards'}", cache_dir=str(tmp_path / "large"))
    expected = run_experiment(local, RunDir(tmp_path / "local"))
    with s3_server() as address:
        client = use_s3(address, monkeypatch, tmp_path)
        client.create_bucket(Bucket="set")
        for shard in (tmp_path / "shards").iterdir():
            client.upload_file(str(shard), "set", f"{write.__name__}/{shard.name}")
        limit = 1.8e-6  # GB: room for an image or two
        assert 100 * 1e9 * limit < sum(shard.stat().st_size for shard in (tmp_path / "shards").iterdir())
        remote = replace(
            config, dataset=f"shards:s3://set/{write.__name__}", cache_dir=str(tmp_path / "small"), cache_gb=limit
        )
        run_dir = RunDir(tmp_path / "remote")
        with pytest.raises(Stopped):
            run_experiment(remote, run_dir, [StopAt(2)])  # of 5 in an epoch
        results = run_experiment(remote, run_dir, [rest := StopAt()])
    assert rest.done == 2 * 5 - 2
    assert results["weights_sha256"] == expected["weights_sha256"]
    assert run_dir.history.read_bytes() == RunDir(tmp_path / "local").history.read_bytes()
    assert 0 < Cache(tmp_path / "small").num_bytes() <= 1e9 * limit < Cache(tmp_path / "large").num_bytes() / 20
    [behind] = {*re.findall(r"(\d+) of 72 images do not fit into the cache", run_dir.log.read_text())}
    assert 0 < int(behind) < 72
