"""Files of object stores: listed anew each time, read by many threads, after a fork and within limits of time."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from tests.support import ROOT
from tests.support.s3 import stuck_server, use_s3
from transfer_learning.errors import UserError
from transfer_learning.storage import object_store

CONTENT = bytes(range(256)) * 40
CUT = b'HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\nETag: "e"\r\n\r\nhalf'


@pytest.fixture
def client(s3_address, monkeypatch, tmp_path):
    monkeypatch.setattr(object_store, "WAIT_SECONDS", 0.01)
    client = use_s3(s3_address, monkeypatch, tmp_path)
    client.create_bucket(Bucket="set")
    return client


def put(client, *keys, content=CONTENT):
    for key in keys:
        client.put_object(Bucket="set", Key=key, Body=content)


def test_all_files_are_listed_by_one_request_and_their_names_are_read_again(client, caplog):
    keys = [*(f"deep/{folder}/{number}.png" for folder in "abc" for number in range(4)), "deep/a b+c%20ü.png"]
    keys += ["deep/x//y.tar", "deep/./z.png"]
    put(client, *keys)
    put(client, "deep/", "deep/empty/", content=b"")  # as web consoles mark folders
    put(client, "deeper/other.png")
    caplog.clear()
    found = object_store.files_below("s3://set/deep")
    assert len(caplog.records) == 1
    assert list(found) == sorted(f"s3://set/{key}" for key in keys)
    for address, state in found.items():
        assert state == (client.head_object(Bucket="set", Key=address.removeprefix("s3://set/"))["ETag"], len(CONTENT))
        assert object_store.read_range(address, 5, 7) == CONTENT[5:12]
    assert object_store.files_below("s3://set/deep/") == found
    assert object_store.files_below("s3://set/deep/x//y.tar") == {"s3://set/deep/x//y.tar": state}
    assert object_store.files_below("s3://set/nothing") == {}


def test_what_another_process_has_written_meanwhile_is_seen(client):
    put(client, "new/a.png", content=b"a.png")
    before = object_store.files_below("s3://set/new")
    assert object_store.opened("s3://set/new/a.png").read() == b"a.png"
    put(client, "new/a.png", content=b"A.PNG")
    put(client, "new/sub/b.png")
    after = object_store.files_below("s3://set/new")
    assert len(after) == 2 and after["s3://set/new/a.png"] != before["s3://set/new/a.png"]
    put(client, "new/a.png", content=b"longer than before")
    assert object_store.opened("s3://set/new/a.png").read() == b"longer than before"
    client.delete_object(Bucket="set", Key="new/a.png")
    with pytest.raises(UserError, match="s3://set/new/a.png cannot be read"):
        object_store.opened("s3://set/new/a.png")


def test_a_file_is_read_whole_in_parts_and_from_any_place(client, monkeypatch):
    monkeypatch.setattr(object_store, "BLOCK", 1000)
    put(client, "a.tar")
    for num_bytes in (1000, 1001):  # one request, or parts
        assert b"".join(object_store.contents("s3://set/a.tar", num_bytes)) == CONTENT
    with object_store.opened("s3://set/a.tar") as file:
        assert file.read(3) == CONTENT[:3] and file.seek(-7, 2) == len(CONTENT) - 7
        assert file.read() == CONTENT[-7:] and file.seek(5) == 5
        assert file.read() == CONTENT[5:]
    assert object_store.read_range("s3://set/a.tar", 5, 0) == b""
    with pytest.raises(UserError, match=f"it ends before byte {len(CONTENT) + 1:,}"):
        object_store.read_range("s3://set/a.tar", 1, len(CONTENT))


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_other_stores_of_fsspec_are_read_as_well(protocol, tmp_path):
    address = f"{protocol}://{tmp_path}/set"
    store, path = fsspec.url_to_fs(address)
    store.makedirs(f"{path}/sub")
    for name in ("a.tar", "sub/b.tar"):
        store.pipe_file(f"{path}/{name}", CONTENT)
    before = object_store.files_below(address)
    assert list(before) == [f"{address}/a.tar", f"{address}/sub/b.tar"]
    assert all(version and num_bytes == len(CONTENT) for version, num_bytes in before.values())
    assert object_store.read_range(f"{address}/sub/b.tar", 5, 7) == CONTENT[5:12]
    assert b"".join(object_store.contents(f"{address}/a.tar", 1)) == CONTENT
    with object_store.opened(f"{address}/a.tar") as file:
        assert file.read() == CONTENT
    store.pipe_file(f"{path}/a.tar", CONTENT[::-1])
    assert object_store.files_below(address)[f"{address}/a.tar"] != before[f"{address}/a.tar"]
    assert object_store.files_below(f"{address}/a.tar").keys() == {f"{address}/a.tar"}


def test_other_variables_of_the_same_process_are_another_store(client, monkeypatch):
    put(client, "mine.tar")
    for name, value, problem in (
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "Could not connect"),
        ("AWS_PROFILE", "nobody", "nobody"),
        ("AWS_SECRET_ACCESS_KEY", "", "Partial credentials"),
    ):
        assert object_store.read_range("s3://set/mine.tar", 0, 3) == CONTENT[:3]
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(UserError, match=problem):
                object_store.read_range("s3://set/mine.tar", 0, 3)


def test_a_public_bucket_is_read_without_credentials(client, monkeypatch):
    put(client, "public.tar")
    client.put_object_acl(Bucket="set", Key="public.tar", ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert object_store.read_range("s3://set/public.tar", 0, 3) == CONTENT[:3]


def test_the_endpoint_and_the_keys_of_a_profile_are_used(client, monkeypatch, tmp_path):
    put(client, "profile.tar")
    (tmp_path / "none").write_text(
        f"[profile lab]\nendpoint_url = {client.meta.endpoint_url}\naws_access_key_id = a\naws_secret_access_key = b\n"
    )
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert object_store.read_range("s3://set/profile.tar", 0, 3) == CONTENT[:3]


@pytest.mark.parametrize(
    ("variables", "expected"), [({}, ["us-east-1", "eu-central-1"]), ({"AWS_REGION": "eu-central-1"}, ["eu-central-1"])]
)
def test_a_bucket_is_read_in_its_own_region(variables, expected, client, monkeypatch):
    regions = []

    class Answers(BaseHTTPRequestHandler):  # as Amazon's
        def do_GET(self):
            regions.append(re.search(r"Credential=key/\d+/([^/]+)/s3/", self.headers["Authorization"])[1])
            is_right = regions[-1] == "eu-central-1"
            code, region = "AuthorizationHeaderMalformed", "<Region>eu-central-1</Region>"
            body = b"abc" if is_right else f"<Error><Code>{code}</Code><Message>?</Message>{region}</Error>".encode()
            self.send_response(206 if is_right else 400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert object_store.read_range("s3://ours/a/0.tar", 0, 3) == b"abc" and regions == expected
    server.shutdown()
    server.server_close()


def test_many_threads_read_at_once_through_one_store(client, monkeypatch):
    put(client, "a.tar")
    monkeypatch.setattr(object_store, "_stores", {})
    started = threading.Barrier(32)

    def read(number):
        started.wait()
        return [object_store.read_range("s3://set/a.tar", number + step, 50) for step in range(10)]

    with ThreadPoolExecutor(32) as threads:
        parts = list(threads.map(read, range(32)))
    assert parts == [[CONTENT[number + step :][:50] for step in range(10)] for number in range(32)]
    assert len(object_store._stores) == 1


def test_a_thread_with_an_event_loop_of_its_own_can_read(client):  # as in a notebook
    put(client, "a.tar")

    async def cell():
        return object_store.read_range("s3://set/a.tar", 0, 3)

    assert asyncio.run(cell()) == CONTENT[:3]


FORKS = """
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from threading import Event
from transfer_learning.storage import object_store

def read(number):
    return object_store.read_range("s3://set/a.tar", number, 10)

def read_on(number):
    while not enough.is_set():
        assert read(number) == first

first, enough = read(0), Event()
with ThreadPoolExecutor(8) as threads:
    reading = [threads.submit(read_on, 0) for _ in range(8)]
    for _ in range(5):
        with ProcessPoolExecutor(1, get_context("fork")) as process:
            assert process.submit(read, 0).result() == first
    assert not any(future.done() for future in reading)
    enough.set()
assert read(0) == first and not any(future.exception() for future in reading)
print("done")
"""


def test_forked_processes_read_while_threads_of_their_parent_do(client):
    put(client, "a.tar")
    ended = subprocess.run([sys.executable, "-c", FORKS], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ("done\n", 0), ended.stderr


@pytest.mark.parametrize("answer", [b"", CUT])
@pytest.mark.parametrize(
    "work",
    [
        lambda: object_store.read_range("s3://set/a.tar", 0, 10),
        lambda: object_store.files_below("s3://set"),
        lambda: object_store.opened("s3://set/a.tar").read(),
    ],
)
def test_a_server_that_stops_answering_is_one_sentence_within_the_limits(work, answer, client, monkeypatch):
    for name, value in {"SECONDS": 0.2, "ATTEMPTS": 1, "TRIES": 2}.items():
        monkeypatch.setattr(object_store, name, value)
    monkeypatch.setattr(object_store, "_stores", {})
    with stuck_server(monkeypatch, answer):
        begin = time.monotonic()
        with pytest.raises(UserError, match="s3://set.* cannot be read .*AWS_ENDPOINT_URL"):
            work()
        assert time.monotonic() - begin < 8


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 7)])
def test_a_signal_ends_a_process_that_waits_for_a_store(signal_number, code, client, monkeypatch):
    program = (
        "import signal, sys\nfrom transfer_learning.storage import object_store\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "object_store.read_range('s3://set/a.tar', 0, 10)"
    )
    with stuck_server(monkeypatch, b"") as clients:
        process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while not clients:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal_number)
        _, problems = process.communicate(timeout=10)
    assert process.returncode == code
    assert "Task" not in problems and problems.count("Traceback") == (signal_number == signal.SIGINT), problems
