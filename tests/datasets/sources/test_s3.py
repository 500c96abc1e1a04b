"""CV Studio projects in a bucket, fetched from a local S3 server: once, whole, and nowhere else than they should."""

import errno
import io
import json
from urllib.request import Request, urlopen

import boto3
import pytest
from PIL import Image

from tests.support.logs import log_messages
from tests.support.s3 import use_s3
from transfer_learning import prepare
from transfer_learning.cli.parser import run_main
from transfer_learning.datasets.sources import s3
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.errors import UserError
from transfer_learning.storage import object_store

NAMES = ("_annotations.json", "a.png", "b.png", "sub/c.png")


@pytest.fixture
def client(s3_address, monkeypatch, tmp_path):
    """A server of one's own as far as a test can see."""
    client = use_s3(s3_address, monkeypatch, tmp_path)
    monkeypatch.setattr(object_store, "WAIT_SECONDS", 0.01)
    client.create_bucket(Bucket="signs")
    yield client
    urlopen(Request(f"{s3_address}/moto-api/reset", method="POST")).close()


def lay(client, prefix="", **others):
    annotations = {"a.png": [{"label": "stop"}], "b.png": [{"label": "go"}], "sub/c.png": [{"label": "go"}]}
    project = {"labels": ["go", "stop"], "annotations": annotations}
    contents = {name: name.encode() for name in NAMES} | {"_annotations.json": json.dumps(project).encode()} | others
    for name, content in contents.items():
        client.put_object(Bucket="signs", Key=prefix + name, Body=content)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def fetched(client, tmp_path, monkeypatch):
    """Fetches a place and returns the names of the objects that were read, and what was left out."""

    def fetch(place="s3://signs/project"):
        asked = []
        with monkeypatch.context() as patch:
            patch.setattr(s3, "_write", lambda chunks, path: (asked.append(path.name), write(chunks, path)))
            folder, ignored = s3.fetch(place, tmp_path / "data", also="_annotations.json")
        return folder, sorted(asked), dict(ignored)

    write = s3._write
    return fetch


def test_a_project_in_a_bucket_is_a_dataset(client, tmp_path):
    said = log_messages()
    lay(client, "project/")
    for _ in range(2):
        dataset = load_dataset("cv_studio:s3://signs/project", tmp_path)
        labels = {example.id: example.label for example in dataset.examples}
        assert labels == {"a.png": "stop", "b.png": "go", "sub/c.png": "go"}
        assert dataset.ignored == ()
        assert dataset.examples[0].source == tmp_path / "cv_studio" / "signs" / "project" / "a.png"
    (line,) = said
    assert line.startswith("Downloading 4 of 4 files from s3://signs/project")
    assert dataset.examples[0].source.read_bytes() == b"a.png"


def test_a_project_in_a_bucket_is_prepared(client, tmp_path, capsys):
    annotations = {f"{number}.png": [{"label": ("go", "stop")[number % 2]}] for number in range(8)}
    client.put_object(Bucket="signs", Key="_annotations.json", Body=json.dumps({"annotations": annotations}))
    for shade, name in enumerate(annotations):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(image := io.BytesIO(), "PNG")
        client.put_object(Bucket="signs", Key=name, Body=image.getvalue())
    flags = ["--dataset", "cv_studio:s3://signs", "--backbone", "small_cnn", "--image-size", "8"]
    for name in ("data", "cache"):
        flags += [f"--{name}-dir", str(tmp_path / name)]
    assert run_main(prepare.main, [*flags, "--out", str(tmp_path / "audit")]) == 0
    assert "8 images of 2 classes" in capsys.readouterr().out


@pytest.mark.parametrize(("prefix", "place"), [("", "s3://signs"), ("", "s3://signs/"), ("x/y/", "s3://signs/x/y/")])
def test_the_prefix_may_be_deep_or_none(prefix, place, client, fetched, tmp_path):
    lay(client, prefix)
    client.put_object(Bucket="signs", Key="x/yours.png", Body=b"x")  # begins like x/y, and lies beside it
    folder, _, _ = fetched(place)
    assert folder == tmp_path / "data" / "signs" / prefix.rstrip("/")
    assert set(NAMES) <= files(folder).keys() and ("x/yours.png" in files(folder)) == (prefix == "")


def test_what_has_not_changed_is_not_fetched_again(client, fetched):
    lay(client, "project/")
    folder, asked, _ = fetched()
    assert asked == ["_annotations.json", "a.png", "b.png", "c.png"]
    assert fetched()[1] == []
    client.put_object(Bucket="signs", Key="project/a.png", Body=b"A.png")  # of the same size
    client.put_object(Bucket="signs", Key="project/new.png", Body=b"new")
    (folder / "b.png").write_bytes(b"cut")
    assert fetched()[1] == ["a.png", "b.png", "new.png"]
    assert files(folder)["a.png"] == b"A.png" and files(folder)["b.png"] == b"b.png"
    client.delete_object(Bucket="signs", Key="project/a.png")
    (folder / "mine.png").write_bytes(b"not from there")
    assert fetched()[1] == []
    assert set(files(folder)) == {"_annotations.json", "b.png", "sub/c.png", "new.png", "mine.png", s3.INDEX}


def test_what_an_earlier_version_has_downloaded_with_boto3_is_not_fetched_again(client, fetched):
    lay(client, "project/")
    folder, _, _ = fetched()
    answers = {name: client.get_object(Bucket="signs", Key=f"project/{name}") for name in NAMES}
    index = {name: [answer["ETag"], answer["ContentLength"]] for name, answer in answers.items()}
    (folder / s3.INDEX).write_text(json.dumps(index))
    assert fetched()[1] == []


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a.png": 7}', b'{"a.png": ["x", 5]}'])
def test_a_damaged_index_costs_a_second_fetch_and_nothing_else(content, client, fetched):
    lay(client, "project/")
    folder, _, _ = fetched()
    (folder / s3.INDEX).write_bytes(content)
    assert "a.png" in fetched()[1] and fetched()[1] == []
    assert set(files(folder)) == {*NAMES, s3.INDEX}


def test_all_pages_of_a_long_list_are_read(client, fetched, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")  # in a page, where a real server has 1,000
    lay(client, "project/", **{f"{number}.png": b"x" for number in range(10)})
    assert client.list_objects_v2(Bucket="signs")["IsTruncated"]
    assert len(fetched()[1]) == 14


def test_what_is_no_image_is_left_out_and_named(client, fetched):
    lay(client, "project/", **{"model.pt": b"x" * 1000, "notes.json": b"{}", "empty/": b"", s3.INDEX: b"{}"})
    folder, asked, ignored = fetched()
    assert set(files(folder)) == {*NAMES, s3.INDEX} and "model.pt" not in asked
    assert ignored.keys() == {"model.pt", "notes.json", s3.INDEX}
    assert ignored["model.pt"] == "not fetched from s3://signs/project: not named like an image (.pt)"


@pytest.mark.parametrize("key", ["../escaped.png", "sub/../../escaped.png", "/escaped.png", "sub//c.png", "./a.png"])
def test_a_key_that_leads_out_of_the_folder_is_refused(key, client, fetched, tmp_path):
    lay(client, "project/", **{key: b"x"})
    with pytest.raises(UserError, match="which is not below"):
        fetched()
    assert not (tmp_path / "data").exists()


def test_a_full_disk_leaves_no_part_and_the_next_call_goes_on(client, fetched, monkeypatch, tmp_path):
    def until_full(chunks, path):
        if path.name not in ("_annotations.json", "a.png"):
            yield b"x"
            raise OSError(errno.ENOSPC, "No space left on device")
        yield from chunks

    lay(client, "project/")
    write = s3._write
    with monkeypatch.context() as patch:
        patch.setattr(s3, "_write", lambda chunks, path: write(until_full(chunks, path), path))
        patch.setattr(s3, "THREADS", 1)
        with pytest.raises(UserError, match="No space left on device.*--data-dir"):
            s3.fetch("s3://signs/project", tmp_path / "data", also="_annotations.json")
    folder = tmp_path / "data" / "signs" / "project"
    assert set(files(folder)) == {"_annotations.json", "a.png", s3.INDEX}
    assert fetched()[1] == ["b.png", "c.png"] and set(files(folder)) == {*NAMES, s3.INDEX}


def test_a_key_that_is_a_file_and_a_folder_is_one_sentence(client, fetched):
    lay(client, "project/", **{"sub": b"x", "sub/c.png/d.png": b"x"})
    with pytest.raises(UserError, match="cannot be written to"):
        fetched()


def test_a_bucket_that_may_not_be_read_is_one_sentence_and_what_was_fetched_before_is_named(
    client, fetched, monkeypatch
):
    from botocore.exceptions import ClientError

    async def refuse(*arguments):
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "Access Denied."}}, "ListObjectsV2")

    lay(client, "project/")
    folder, _, _ = fetched()
    monkeypatch.setattr("aiobotocore.client.AioBaseClient._make_api_call", refuse)
    with pytest.raises(UserError, match="AccessDenied: Access Denied") as caught:
        fetched()
    assert str(caught.value).endswith(f"earlier downloads can be used with --dataset cv_studio:{folder}.")


PROBLEMS = {  # what is wrong, and what the sentence names
    "no bucket": ({}, "s3://nobody/project", ["NoSuchBucket", "check the name"]),
    "nothing there": ({}, "s3://signs/elsewhere", ["is empty"]),
    "half of the credentials": ({"AWS_SECRET_ACCESS_KEY": None}, "s3://signs", ["Partial credentials"]),
    "an unknown profile": ({"AWS_PROFILE": "nobody"}, "s3://signs", ["nobody"]),
    "no network": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://signs", ["Could not connect", "AWS_ENDPOINT_URL"]),
    "no address": ({"AWS_ENDPOINT_URL": "nonsense"}, "s3://signs", ["Invalid endpoint"]),
    "no name of a bucket": ({}, "s3://", ["is not below"]),
    "a name that no bucket has": ({}, "s3://a b/c", ["Invalid bucket name"]),
    "a way out as the name": ({}, "s3://../x", ["is not below"]),
}


@pytest.mark.parametrize(("environment", "place", "words"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_a_user_can_fix_is_one_sentence(environment, place, words, client, tmp_path, monkeypatch, refused):
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    boto3.DEFAULT_SESSION = None
    line = refused(lambda arguments: load_dataset(f"cv_studio:{place}", tmp_path))
    assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir())
