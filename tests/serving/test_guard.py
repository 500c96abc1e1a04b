"""Host, Origin, token, size and time of requests."""

import gzip
import http.client
import socket
from dataclasses import replace

import pytest

from tests.support.serving import colour, png, served
from transfer_learning.serving import guard, server
from transfer_learning.serving.guard import OPEN_PATHS, Limits

IMAGE = png(colour(240, 5, 5))
TOKEN = "0123456789abcdef"
LIMITS = Limits(body_bytes=10**5, all_bodies_bytes=10**6)


@pytest.fixture(scope="module")
def client():
    with served(limits=LIMITS) as client:
        yield client


@pytest.fixture(scope="module")
def locked():
    with served(token=TOKEN, host_names=["pills.example"]) as client:
        yield client


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST:1", "[::1]:8000", "192.168.0.7:8000"])
def test_own_names_are_hosts(client, host):
    assert client.get("/ready", Host=host).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example:80", "[::1"])
def test_a_host_of_another_name_is_refused(client, host):
    answer = client.get("/ready", Host=host)
    assert answer.status == 403 and "Host" in answer.json["error"]


def test_a_name_that_was_given_is_a_host(locked):
    assert locked.get("/ready", Host="Pills.Example:8000").status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:9", "file://", "localhost"])
def test_a_page_of_another_site_is_refused(client, origin):
    answer = client.post("/predict", IMAGE, Host="localhost:8000", Origin=origin)
    assert answer.status == 403 and "Origin" in answer.json["error"]
    assert "access-control-allow-origin" not in answer.headers


def test_the_own_page_is_answered(client):
    assert client.post("/predict", IMAGE, Host="localhost:8000", Origin="http://localhost:8000").status == 200


@pytest.mark.parametrize("value", [None, "", TOKEN, f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \u00ff", "Bearer"])
def test_without_the_token_only_health_and_the_page_are_answered(locked, value):
    headers = {} if value is None else {"Authorization": value.encode("latin-1")}
    for path in ("/predict", "/model", "/metrics", "/openapi.json", "/v2", "/nowhere", "/v2/models/colours/infer"):
        answer = locked.send("GET", path, headers=headers)
        assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer" and TOKEN not in str(answer.body)
    assert all(locked.send("GET", path, headers=headers).status == 200 for path in OPEN_PATHS)


def test_with_the_token_all_is_answered(locked):
    assert locked.post("/predict", IMAGE, Authorization=f"Bearer {TOKEN}").json["class"] == "red"
    assert locked.get("/model", Authorization=f"bearer {TOKEN}").status == 200


def test_a_compressed_body_is_refused(client):
    headers = {"Content-Encoding": "gzip"}
    answer = client.send("POST", "/predict", gzip.compress(IMAGE), headers=headers)
    assert answer.status == 415 and "Content-Encoding" in answer.json["error"]
    assert client.send("POST", "/predict", IMAGE, headers={"Content-Encoding": "identity"}).json["class"] == "red"


def sent(client, *parts):
    """Sends parts of a request over a socket; returns what is answered, until the server closes."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b""
        while received := connection.recv(65536):
            answer += received
    return answer


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


def test_a_body_that_is_too_large_is_refused_by_its_length_and_while_it_is_read(client):
    assert sent(client, HEAD, b"Content-Length: 100001\r\n\r\n", bytes(100_001)).startswith(b"HTTP/1.1 413")
    chunk = b"ffff\r\n" + bytes(0xFFFF) + b"\r\n"
    answer = sent(client, HEAD, b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 40, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413") and b"larger than 0.1 MB" in answer


def test_a_body_that_does_not_arrive_is_refused_and_its_memory_is_given_back(monkeypatch):
    monkeypatch.setattr(guard, "SECONDS_TO_DISCARD", 0.1)
    with served(limits=replace(LIMITS, seconds=1)) as client:
        answer = sent(client, HEAD, b"Content-Length: 90000\r\n\r\n", bytes(10))
        assert answer.startswith(b"HTTP/1.1 408") and b"longer than 1 s" in answer
        assert client.get("/ready").status == 200


def test_bodies_together_have_a_limit():
    limits = Limits(body_bytes=10**5, all_bodies_bytes=10**5, seconds=20)
    with served(limits=limits) as client:
        first, second = (socket.create_connection(("127.0.0.1", client.port), timeout=20) for _ in "ab")
        with first, second:
            for connection in (first, second):
                connection.sendall(HEAD + b"Content-Length: 99999\r\n\r\n" + bytes(60_000))
            for _ in range(5):  # each is answered after what has arrived before
                assert client.get("/health").status == 200
            assert client.post("/predict", b"x" * 190).status == 400  # within its share, so read, and no image
            second.sendall(bytes(39_999))
            assert second.recv(1000).startswith(b"HTTP/1.1 503")
            first.sendall(bytes(39_999))
            assert first.recv(1000).startswith(b"HTTP/1.1 400")  # read, and no image
        assert client.post("/predict", IMAGE).status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_the_server_goes_on(client, request_bytes):
    answer = sent(client, request_bytes)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403"))
    assert client.post("/predict", IMAGE).status == 200


@pytest.mark.parametrize("beginning", [b"", b"GET / HTT"])
def test_a_connection_without_a_request_is_closed(client, beginning, monkeypatch):
    monkeypatch.setattr(server, "SECONDS_TO_SEND_HEADERS", 0.1)
    assert sent(client, beginning) == b""


def test_a_client_that_leaves_stops_nothing(client):
    for part in (b"", b"Content-Length: 5000\r\n\r\n", b"Content-Length: %d\r\n\r\n%s" % (len(IMAGE), IMAGE)):
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(HEAD + part)
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    for _ in range(3):  # a connection is used again
        connection.request("POST", "/predict", IMAGE)
        assert connection.getresponse().read().startswith(b'{"class": "red"')
    connection.close()
