"""Digests, downloads and Keras' HDF5 files: what is not whole or not plain arrays is refused in a sentence."""

import contextlib
import hashlib
import socket
import threading

import h5py
import numpy as np
import pytest

from transfer_learning.errors import UserError
from transfer_learning.models import weights
from transfer_learning.models.weights import downloaded_file, load_keras_weights, weights_digest

# ---------------------------------------------------------------------------------------------------------------------
# Digests


def test_weights_digest_is_what_its_docstring_says():
    array = np.array([[1, 2]], np.float32)
    assert weights_digest([array]) == hashlib.sha256(b"0 float32 (1, 2)\n" + array.tobytes()).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        [np.ones(2, np.float32), np.zeros(2, np.float32)],
        [np.zeros(2, np.float32)],
        [np.zeros(2, np.float32), np.ones((2, 1), np.float32)],
        [np.zeros(2, np.float32), np.ones(2, np.int32)],
        [np.zeros(2, np.float32), np.nextafter(np.ones(2, np.float32), 2)],
        [np.zeros(2, np.float32), np.ones(2, np.float32), np.empty(0, np.float32)],
    ],
    ids=["order", "one fewer", "shape", "dtype", "last bit", "an empty one more"],
)
def test_weights_digest_tells_apart(other):
    assert weights_digest(other) != weights_digest([np.zeros(2, np.float32), np.ones(2, np.float32)])


def test_weights_digest_is_that_of_the_values_however_they_lie_in_memory():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert weights_digest([array.astype(">f4")]) == weights_digest([array]) == weights_digest([array.T.copy().T])


# ---------------------------------------------------------------------------------------------------------------------
# Download

CONTENT = b"weights" * 1000
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def models_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "keras" / "models"


@pytest.mark.parametrize("digest", [MD5, SHA256])
def test_file_is_downloaded_once(digest, models_folder, tmp_path, capsys):
    published = tmp_path / "published.h5"
    published.write_bytes(CONTENT)
    path = downloaded_file("w.h5", published.as_uri(), digest, "wait")
    assert path == models_folder / "w.h5" and path.read_bytes() == CONTENT
    assert f"Downloading {len(CONTENT)} bytes from file://" in capsys.readouterr().out
    published.unlink()
    assert downloaded_file("w.h5", published.as_uri(), digest, "wait") == path
    assert capsys.readouterr().out == ""
    assert [entry.name for entry in models_folder.iterdir()] == ["w.h5"]


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
def test_download_that_fails_says_what_to_do_and_leaves_nothing(answer, models_folder, monkeypatch):
    monkeypatch.setattr(weights, "DOWNLOAD_TIMEOUT_SECONDS", 0.3)
    with server_that_says(answer) as url, pytest.raises(UserError) as caught:
        downloaded_file("w.h5", url, MD5, otherwise="use --weights none")
    for part in ("w.h5", url, str(models_folder), "use --weights none"):
        assert part in str(caught.value)
    assert list(models_folder.iterdir()) == []


def test_refused_connection_says_what_to_do(models_folder):
    with pytest.raises(UserError, match="could not be fetched"):
        downloaded_file("w.h5", "http://127.0.0.1:1/w.h5", MD5, "wait")
    assert list(models_folder.iterdir()) == []


def test_damaged_file_in_the_cache_is_named_and_kept(models_folder):
    models_folder.mkdir(parents=True)
    (models_folder / "w.h5").write_bytes(CONTENT + b"!")
    with pytest.raises(UserError, match="w.h5 is damaged"):
        downloaded_file("w.h5", "http://127.0.0.1:1/w.h5", MD5, "wait")
    assert (models_folder / "w.h5").read_bytes() == CONTENT + b"!"


# ---------------------------------------------------------------------------------------------------------------------
# HDF5 files of Keras


@pytest.fixture(scope="module")
def model():
    import keras

    inputs = keras.Input((3,))
    return keras.Model(inputs, keras.layers.Dense(2, name="dense")(inputs), name="tiny")


def saved(model, tmp_path):
    path = tmp_path / "tiny.weights.h5"
    model.save_weights(path)
    return path


def kernel_of(file):
    return next(f"{name}/0" for name in ("layers/dense/vars", "dense/vars") if name in file)


def huge(file):
    name = kernel_of(file)
    del file[name]
    file.create_dataset(name, shape=(1 << 40,), dtype="f4", chunks=(1 << 20,))


def outside(file):
    name = kernel_of(file)
    del file[name]
    file.create_dataset(name, shape=(3, 2), dtype="f4", external=[("/etc/passwd", 0, 24)])


def text(file):
    file["text"] = "hello"


def soft_link(file):
    file["soft"] = h5py.SoftLink("/")


def external_link(file):
    file["external"] = h5py.ExternalLink("other.h5", "/")


def circle(file):
    file["circle"] = file["/"]


def wrong_shape(file):
    name = kernel_of(file)
    del file[name]
    file[name] = np.zeros((2, 3), np.float32)


def one_missing(file):
    del file[kernel_of(file)]


def one_more(file):
    file["layers/more/vars/0"] = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (huge, "declares"),
        (outside, "lies in another file"),
        (text, "holds no numbers"),
        (soft_link, "points elsewhere"),
        (external_link, "points elsewhere"),
        (circle, "is there twice"),
        (wrong_shape, "does not fit"),
        (one_missing, "found: 1 arrays"),
        (one_more, "found: 3 arrays"),
    ],
)
def test_keras_file_that_is_not_the_arrays_of_the_model_is_refused(tamper, reason, model, tmp_path):
    path = saved(model, tmp_path)
    with h5py.File(path, "r+") as file:
        tamper(file)
    with pytest.raises(UserError, match=reason):
        load_keras_weights(model, path)


@pytest.mark.parametrize("length", [0, 100, 1500])
def test_keras_file_cut_short_is_refused(length, model, tmp_path):
    path = saved(model, tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="cannot be read"):
        load_keras_weights(model, path)


def test_keras_file_sets_the_weights(model, tmp_path):
    path, before = saved(model, tmp_path), weights_digest(model.weights)
    model.layers[-1].kernel.assign(np.zeros((3, 2)))
    assert weights_digest(model.weights) != before
    load_keras_weights(model, path)
    assert weights_digest(model.weights) == before
