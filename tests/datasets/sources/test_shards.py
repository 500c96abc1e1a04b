"""Shards are indexed, not copied: each image is read alone, from a folder or from S3, and labels and splits are found."""

import io
import json
import tarfile

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from tests.support.s3 import s3_server, use_s3
from transfer_learning.datasets.sources import shards
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.errors import UserError
from transfer_learning.experiments.prediction import find_images
from transfer_learning.storage import object_store

CLASSES = ("circle", "cross", "stripes")


@pytest.fixture(scope="module")
def contents(photos):
    return {path.relative_to(photos).as_posix(): path.read_bytes() for path in sorted(photos.rglob("*.png"))[::7]}


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def in_folders(contents):
    return contents | {"README": b"other"}


def with_cls(contents):
    files = [
        ((f"{at:04d}.png", one), (f"{at:04d}.cls", b"%d" % (at % 3 + 9))) for at, one in enumerate(contents.values())
    ]
    return {name: data for pair in files for name, data in pair}


def with_json(contents):
    labels = [json.dumps({"caption": "?", "Label": name.split("/")[0]}).encode() for name in contents]
    pairs = zip(contents.values(), labels, strict=True)
    return {
        f"a.b/{at}.{s}": data
        for at, pair in enumerate(pairs)
        for s, data in zip(("seg.png", "json"), pair, strict=True)
    }


@pytest.mark.parametrize(
    ("pack", "classes"), [(in_folders, CLASSES), (with_cls, ("9", "10", "11")), (with_json, CLASSES)]
)
def test_a_tar_has_labels_in_folders_or_beside_the_images(pack, classes, contents, tmp_path):
    write_tar(tmp_path / "shards/set-000.tar", pack(contents))
    dataset = load_dataset(f"shards:{tmp_path / 'shards'}", tmp_path / "data")
    assert dataset.class_names == classes
    assert [example.source.read_bytes() for example in dataset.examples] == list(contents.values())
    assert all(example.id.startswith("set-000.tar/") and not example.split for example in dataset.examples)
    if pack is in_folders:
        assert [example.label for example in dataset.examples] == [name.split("/")[0] for name in contents]
        assert dataset.ignored == (("set-000.tar/README", "neither an image nor a label"),)


def test_images_of_one_class_can_be_predicted(contents, tmp_path):
    write_tar(tmp_path / "one.tar", {name: one for name, one in contents.items() if name.startswith("cross/")})
    assert len(find_images([f"shards:{tmp_path / 'one.tar'}"], tmp_path / "data").images) > 0


def test_splits_are_in_the_names_of_shards_and_folders(contents, tmp_path):
    for name in ("imagenet-train-00.tar", "imagenet-train-01.tar", "val/00.tar", "other/00.tar"):
        write_tar(tmp_path / "shards" / name, contents)
    dataset = load_dataset(f"shards:{tmp_path / 'shards'}", tmp_path / "data")
    found = {example.id.rpartition(".tar")[0]: example.split for example in dataset.examples}
    assert found == {"imagenet-train-00": "train", "imagenet-train-01": "train", "val/00": "val", "other/00": ""}


def test_parquet_of_hugging_face_and_of_pyarrow_is_read_image_by_image(contents, tmp_path):
    rows = {"image": [{"bytes": content, "path": None} for content in contents.values()], "label": [1, 0] * 3}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["owl", "fox"])})
    (tmp_path / "hf").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "hf/train.parquet", batch_size=4)
    (tmp_path / "pa").mkdir()
    table = pyarrow.table({"jpg": [*contents.values(), None], "y": [1, 0] * 3 + [0]})
    parquet.write_table(
        table, tmp_path / "pa/0.parquet", compression={"jpg": "none"}, use_dictionary=False, row_group_size=3
    )
    for folder, classes, labels in (("hf", ("owl", "fox"), ["fox", "owl"]), ("pa", ("0", "1"), ["1", "0"])):
        dataset = load_dataset(f"shards:{tmp_path / folder}", tmp_path / "data")
        assert dataset.class_names == classes and [one.label for one in dataset.examples] == labels * 3
        assert [example.source.read_bytes() for example in dataset.examples] == list(contents.values())
    assert dataset.ignored == (("0.parquet/0000006", "a row without an image"),)


@pytest.mark.parametrize(
    "metadata", ["[]", "{", '{"info": null}', '{"info": {"features": {"label": {"names": null}}}}']
)
def test_metadata_that_hugging_face_does_not_write_says_nothing(metadata, contents, tmp_path):
    table = pyarrow.table({"image": list(contents.values()), "label": [1, 0] * 3})
    table = table.replace_schema_metadata({"huggingface": metadata})
    parquet.write_table(table, tmp_path / "a.parquet", compression={"image": "none"}, use_dictionary=False)
    assert load_dataset(f"shards:{tmp_path}", tmp_path / "data").class_names == ("0", "1")


def test_a_shard_is_indexed_once_and_again_when_it_has_changed_or_its_index_is_damaged(contents, tmp_path, monkeypatch):
    shard = tmp_path / "0.tar"
    write_tar(shard, contents)
    first = shards.read(str(shard), tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_add_tar", lambda *_: pytest.fail("read again"))
        assert shards.read(str(shard), tmp_path / "data") == first
    (index,) = (tmp_path / "data" / "shards").iterdir()
    index.write_text("damaged")
    assert shards.read(str(shard), tmp_path / "data") == first
    write_tar(shard, dict(reversed(contents.items())))
    assert [one.id for one in shards.read(str(shard), tmp_path / "data").examples] == [
        one.id for one in reversed(first.examples)
    ]


def compressed(folder, contents):
    parquet.write_table(pyarrow.table({"image": list(contents.values()), "label": [0] * 6}), folder / "a.parquet")


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda folder, _: None, "holds no .tar or .parquet file; give"),
        (lambda folder, _: (folder / "a.tar.gz").touch(), "a.tar.gz, in which no image can be read alone: unpack it"),
        (lambda folder, _: (folder / "a.tar").write_bytes(b"x" * 2000), "a.tar cannot be read .*write the shard again"),
        (lambda folder, _: (folder / "a.parquet").write_bytes(b"x" * 99), "a.parquet cannot be read .*write the shard"),
        (compressed, "a.parquet has compressed images.*compression={'image': 'none'}"),
    ],
)
def test_shards_that_cannot_be_read_in_parts_are_one_sentence(write, sentence, contents, tmp_path):
    (tmp_path / "shards").mkdir()
    write(tmp_path / "shards", contents)
    with pytest.raises(UserError, match=sentence):
        shards.read(str(tmp_path / "shards"), tmp_path / "data")


def test_shards_in_s3_are_read_in_parts_and_a_lost_store_is_one_sentence(contents, tmp_path, monkeypatch):
    write_tar(tmp_path / "shards/train-0.tar", contents)
    local = shards.read(str(tmp_path / "shards"), tmp_path / "data")
    for limit in ("WAIT_SECONDS", "TRIES", "ATTEMPTS"):
        monkeypatch.setattr(object_store, limit, 1)
    with s3_server() as address:
        client = use_s3(address, monkeypatch, tmp_path)
        client.create_bucket(Bucket="set")
        client.upload_file(str(tmp_path / "shards/train-0.tar"), "set", "some/train-0.tar")
        remote = shards.read("s3://set/some", tmp_path / "data")
        assert [one._replace(source="") for one in remote.examples] == [
            one._replace(source="") for one in local.examples
        ]
        source = remote.examples[-1].source
        assert source.file == "s3://set/some/train-0.tar" and source.read_bytes() == list(contents.values())[-1]
        client.delete_object(Bucket="set", Key="some/train-0.tar")
        with pytest.raises(
            UserError, match="s3://set/some/train-0.tar cannot be read .*continues from its last checkpoint"
        ):
            source.read_bytes()
        with pytest.raises(UserError, match="shards:s3://set/some holds no .tar|s3://set/some cannot be read"):
            shards.read("s3://set/some", tmp_path / "data")
    with pytest.raises(UserError, match="s3://set/some/train-0.tar cannot be read .*AWS_ENDPOINT_URL"):
        source.read_bytes()
    with pytest.raises(UserError, match="nowhere://set cannot be read .*Protocol not known"):
        shards.read("nowhere://set", tmp_path / "data")
