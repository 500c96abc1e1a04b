"""A set in S3, many times as large as the cache: the same run as with all of it on the disk, also when it is resumed."""

import os
import shutil
import signal
from dataclasses import replace

import keras
import pytest

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


def test_a_run_from_s3_with_a_small_cache_is_that_of_a_large_cache(photos, small_config, tmp_path, monkeypatch):
    for part in ("train", "test"):  # by number, so that both have images of each class
        for name in sorted(path.relative_to(photos) for path in photos.rglob("*.png")):
            if (int(name.stem) < 10) == (part == "train"):
                (tmp_path / part / name.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy(photos / name, tmp_path / part / name)
        (tmp_path / "shards").mkdir(exist_ok=True)
        shutil.make_archive(str(tmp_path / f"shards/set-{part}-0"), "tar", tmp_path / part)
    phases = {"frozen": Phase(epochs=2, augmentation="light"), "fine_tune": Phase()}
    config = replace(small_config, data_dir=str(tmp_path / "data"), **phases)  # which reads pixels in every epoch
    local = replace(config, dataset=f"shards:{tmp_path / 'shards'}", cache_dir=str(tmp_path / "large"))
    expected = run_experiment(local, RunDir(tmp_path / "local"))
    with s3_server() as address:
        client = use_s3(address, monkeypatch, tmp_path)
        client.create_bucket(Bucket="set")
        for shard in (tmp_path / "shards").iterdir():
            client.upload_file(str(shard), "set", f"some/{shard.name}")
        limit = sum(shard.stat().st_size for shard in (tmp_path / "shards").iterdir()) / 100 / 1e9
        remote = replace(config, dataset="shards:s3://set/some", cache_dir=str(tmp_path / "small"), cache_gb=limit)
        run_dir = RunDir(tmp_path / "remote")
        with pytest.raises(Stopped):
            run_experiment(remote, run_dir, [StopAt(2)])  # of 4 in an epoch
        results = run_experiment(remote, run_dir, [rest := StopAt()])
    assert rest.done == 2 * 4 - 2
    assert results["weights_sha256"] == expected["weights_sha256"]
    assert run_dir.history.read_bytes() == RunDir(tmp_path / "local").history.read_bytes()
    assert Cache(tmp_path / "small").num_bytes() <= 1e9 * limit < Cache(tmp_path / "large").num_bytes() / 20
    assert "are decoded whenever they are read" in run_dir.log.read_text()
