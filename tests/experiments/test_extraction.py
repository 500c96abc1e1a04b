"""Features by many workers: the store's bytes are those of one, whoever dies, and the feature cache reads it."""

import re
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pytest
from PIL import Image

from tests.support import ROOT
from tests.support.logs import log_messages
from tests.support.photos import draw_photos
from tests.support.ray import local_cluster, processes
from tests.support.s3 import local_bucket
from transfer_learning import prepare
from transfer_learning.cli.parser import run_main
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.errors import UserError
from transfer_learning.experiments import audit, extraction
from transfer_learning.models import features


@pytest.fixture
def inline(monkeypatch):
    """Tasks run in this process, one after the other."""
    monkeypatch.setattr(extraction, "SHARD", 16)
    monkeypatch.setattr(extraction, "joined_cluster", lambda *arguments, **options: nullcontext())
    monkeypatch.setattr(extraction, "_computed", lambda shards, *rest: map(extraction.compute_shard, shards))


def flags_of(config, photos):
    network = ["--backbone", "small_cnn", "--weights", config.weights, "--image-size", "16"]
    return ["--dataset", str(photos), *network, "--features"]


def files_of(store):
    """The bytes of the finished files of a store, a folder or s3://BUCKET, by name."""
    if str(store).startswith("s3://"):
        bucket = boto3.resource("s3").Bucket(str(store).removeprefix("s3://"))
        return {item.key: item.get()["Body"].read() for item in bucket.objects.all()}
    return {str(path.relative_to(store)): path.read_bytes() for path in Path(store).rglob("[!.]*") if path.is_file()}


def num_shards(store):
    return sum(name.endswith(".safetensors") for name in files_of(store))


def test_a_run_finds_in_the_store_what_workers_have_computed(small_config, photos, inline, tmp_path, monkeypatch):
    flags = [*flags_of(small_config, photos), "--feature-store", str(tmp_path / "store")]
    extract = [*flags, "--cache-dir", str(tmp_path / "one"), "--workers", "2"]
    messages = log_messages()
    assert run_main(prepare.main, extract) == 0
    assert any("Computing the features of 42 images in 3 shards into" in message for message in messages)
    assert messages[-1] == "Wrote 3 shards; 0 were there."
    before = files_of(tmp_path / "store")
    assert len(before) == 4
    next(path for path in (tmp_path / "store").rglob("*1.safetensors")).unlink()
    assert run_main(prepare.main, extract) == 0
    assert messages[-1] == "Wrote 1 shards; 2 were there." and files_of(tmp_path / "store") == before

    config = replace(small_config, dataset=str(photos), feature_store=str(tmp_path / "store"), precision="float32")
    config = replace(config, cache_dir=str(tmp_path / "other"), head_features="all")  # as the automatic recipe
    data = load_prepared(config)
    with monkeypatch.context() as patch:
        patch.setattr(features, "results", lambda steps: (pytest.fail("computed again") for _ in steps))
        found = audit.computed_features(config, data)
    own = replace(config, cache_dir=str(tmp_path / "third"), feature_store="")
    assert np.array_equal(found.values, audit.computed_features(own, data).values)


def started(flags):
    """`prepare` as a process, with small shards."""
    program = (
        "import sys\nfrom transfer_learning import prepare\nfrom transfer_learning.cli.parser import run_main\n"
        "from transfer_learning.experiments import extraction\nextraction.SHARD = 3\nsys.exit(run_main(prepare.main))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_shards(count, store, process):
    deadline = time.monotonic() + 200
    while num_shards(store) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_worker_a_node_and_the_driver_may_die_and_the_bytes_are_those_of_one_machine(
    kind, small_config, photos, inline, tmp_path, monkeypatch
):
    monkeypatch.setattr(extraction, "SHARD", 3)
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = [*flags_of(small_config, photos), "--workers", "2"]

    def places(store, name):
        return ["--feature-store", str(store), "--cache-dir", str(tmp_path / f"cache of {name}")]

    assert run_main(prepare.main, [*flags, *places(tmp_path / "one", "one")]) == 0
    expected = files_of(tmp_path / "one")
    with local_bucket("many", tmp_path) as bucket, local_cluster(tmp_path) as cluster:
        store = bucket if kind == "s3" else tmp_path / "many"
        flags += ["--ray", cluster.address, *places(store, "many")]
        process = started(flags)
        wait_for_shards(1, store, process)
        while not (running := processes(["ray::compute_shard"])):  # none is between two tasks
            assert process.poll() is None, process.stdout.read()
        running[0].kill()
        wait_for_shards(4, store, process)
        process.kill()
        process.communicate(timeout=60)
        num_before = num_shards(store)
        process = started(flags)
        wait_for_shards(num_before + 1, store, process)
        cluster.remove_node(list(cluster.worker_nodes)[0], allow_graceful=False)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0 and "Traceback" not in output, output
        num_written, num_there = map(int, re.search(r"Wrote (\d+) shards; (\d+) were there\.", output).groups())
        assert num_written + num_there == 14
        assert num_there >= num_before  # a task of the dead driver may have ended later
        assert files_of(store) == expected and len(expected) == 15


@pytest.mark.long
def test_workers_of_this_machine_write_to_s3(small_config, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with local_bucket("features", tmp_path) as place:
        places = ["--feature-store", place, "--cache-dir", str(tmp_path / "cache")]
        process = started([*flags_of(small_config, photos), *places, "--workers", "2"])
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0 and "Wrote 14 shards; 0 were there." in output, output
        config = replace(small_config, dataset=str(photos), precision="auto", cache_dir=str(tmp_path / "other"))
        messages = log_messages()
        config = replace(config, feature_store=place, head_features="all")  # as the automatic recipe
        audit.computed_features(config, load_prepared(config))
        assert f"Copied the features of 42 of 42 images from {place}." in messages


def problem_of(config, **values):
    with pytest.raises(UserError) as caught:
        extraction.extract_features(replace(config, **values), 1, extraction.PerWorker(1, 0), "")
    return str(caught.value)


def test_what_tasks_cannot_compute_is_one_sentence(small_config, inline, tmp_path, monkeypatch):
    config = replace(small_config, feature_store=str(tmp_path / "store"), cache_dir=str(tmp_path / "cache"))
    assert "are in one array; leave it out" in problem_of(config, dataset="digits")
    deep = draw_photos(tmp_path / "deep")
    Image.fromarray(np.full((16, 16), 4000, np.uint16)).save(deep / "circle" / "deep.png")
    assert "circle/deep.png has more than 8 bits" in problem_of(config, dataset=str(deep))
    assert "--weights none is not" in problem_of(config, weights="none")
    written = iter([extraction.Written("a", "one", True, 0), extraction.Written("b", "two", True, 0)])
    monkeypatch.setattr(extraction, "_computed", lambda *rest: written)
    assert problem_of(config).startswith("two computes other bits than one")


@pytest.mark.parametrize(
    "words",
    [["--workers", "2"], ["--features", "--workers", "2"], ["--features", "--feature-store", "x", "--ray", "auto"]],
)
def test_incomplete_flags_are_one_sentence(words, photos, refused):
    assert "--features, --feature-store PLACE and at least --workers 1" in refused(
        prepare.main, "--dataset", photos, *words
    )
