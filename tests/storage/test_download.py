"""Downloads: only the published file is accepted, and a failure says what to do."""

import contextlib
import hashlib
import socket
import threading

import pytest

from tests.support.logs import log_messages
from transfer_learning.errors import UserError
from transfer_learning.storage import download as download_module
from transfer_learning.storage.download import download

CONTENT = b"weights" * 1000
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def target(tmp_path, monkeypatch):
    """Where to put the file, in a folder that is missing."""
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "models" / "w.h5"


@pytest.mark.parametrize("digest", [MD5, SHA256])
def test_a_file_is_downloaded_once(digest, target, tmp_path):
    said = log_messages()
    published = tmp_path / "published.h5"
    published.write_bytes(CONTENT)
    assert download(published.as_uri(), target, digest, "wait") == target
    assert target.read_bytes() == CONTENT
    assert said == [f"Downloading {published.as_uri()} (0.0 MB) to {target}."]
    published.unlink()
    assert download(published.as_uri(), target, digest, "wait") == target
    assert len(said) == 1 and [entry.name for entry in target.parent.iterdir()] == ["w.h5"]


@contextlib.contextmanager
def server_that_says(answer):
    """Yields the URL of a server that sends these bytes to the first to ask, and closes; None: it never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve():
            connection, _ = listener.accept()
            with connection:
                if answer is None:
                    done.wait(30)
                else:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/w.h5"
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"HTTP/1.0 404 Not Found\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 7000\r\n\r\n" + CONTENT[:-1],
        b"HTTP/1.0 200 OK\r\n\r\n<html>please log in</html>",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\nabc",
        b"no HTTP at all",
        b"",
    ],
    ids=["silent", "404", "cut", "other file", "cut chunk", "not HTTP", "closed"],
)
def test_a_download_that_fails_says_what_to_do_and_leaves_nothing(answer, target, monkeypatch):
    monkeypatch.setattr(download_module, "TIMEOUT_SECONDS", 0.3)
    with server_that_says(answer) as url, pytest.raises(UserError) as caught:
        download(url, target, MD5, "use --weights none")
    for part in ("w.h5", url, str(target.parent), "use --weights none"):
        assert part in str(caught.value)
    assert list(target.parent.iterdir()) == []


def test_a_cut_download_without_a_known_digest_leaves_nothing(target):
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: 7000\r\n\r\n" + CONTENT[:-1]
    with server_that_says(answer) as url, pytest.raises(UserError, match="6,999 of 7,000 bytes were sent"):
        download(url, target, None, "wait")
    assert list(target.parent.iterdir()) == []


def test_a_refused_connection_says_what_to_do(target):
    with pytest.raises(UserError, match="cannot be downloaded"):
        download("http://127.0.0.1:1/w.h5", target, MD5, "wait")
    assert list(target.parent.iterdir()) == []


def test_a_damaged_file_is_named_and_stays(target):
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT + b"!")
    with pytest.raises(UserError, match="w.h5 is damaged"):
        download("http://127.0.0.1:1/w.h5", target, MD5, "wait")
    assert target.read_bytes() == CONTENT + b"!"
