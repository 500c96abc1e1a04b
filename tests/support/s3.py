"""A local S3 server, and an environment in which no other one can be reached."""

import os
import socket
import threading
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def s3_server():
    """Starts a server; yields its address."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


def use_s3(address, monkeypatch, folder):
    """A client of the server; from now on this machine has no credentials but those of the test."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    boto3.DEFAULT_SESSION = None
    return boto3.client("s3")


@contextmanager
def local_bucket(name, folder):
    """Yields the URL of a new bucket on a server that this process, and those that it starts, find."""
    with s3_server() as address, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        use_s3(address, monkeypatch, folder).create_bucket(Bucket=name)
        yield f"s3://{name}"


@contextmanager
def stuck_server(monkeypatch, answer):
    """A server that sends `answer` and then nothing; the sockets of its clients are in the list it yields."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        clients = []

        def accept():
            while True:
                try:
                    clients.append(listening.accept()[0])
                except OSError:
                    return
                clients[-1].sendall(answer)

        threading.Thread(target=accept, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        yield clients
        listening.shutdown(socket.SHUT_RDWR)
        for client in clients:
            client.close()
