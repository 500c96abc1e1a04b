"""Weights files: what is read is what was written, and nothing else in them is believed, run or left behind."""

import collections
import contextlib
import hashlib
import io
import os
import pickle
import socket
import struct
import sys
import threading
import types
import zipfile

import h5py
import numpy as np
import pytest

from transfer_learning.errors import UserError
from transfer_learning.models import weights
from transfer_learning.models.weights import downloaded_file, load_keras_weights, read_state_dict, weights_digest

# ---------------------------------------------------------------------------------------------------------------------
# Writing what torch.save writes, without PyTorch: stand-ins that pickle by the names of its classes.


class Storage:
    def __init__(self, type_name, key, array, declared=None):
        self.type_name, self.key, self.array = type_name, key, array
        self.declared = array.size if declared is None else declared


class Tensor:
    def __init__(self, storage, offset, shape, strides):
        self.arguments = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


@contextlib.contextmanager
def stand_in_for_pytorch():
    def _rebuild_tensor_v2():
        raise AssertionError("only its name is pickled")

    torch, torch_utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    torch_utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in ("FloatStorage", "HalfStorage", "LongStorage", "ByteStorage", "QInt8Storage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": torch_utils})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def pickled(value, protocol=2):
    storages = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if not isinstance(item, Storage):
                return None
            storages[item.key] = item
            return ("storage", getattr(sys.modules["torch"], item.type_name), item.key, "cpu", item.declared)

    buffer = io.BytesIO()
    with stand_in_for_pytorch():
        Pickler(buffer, protocol).dump(value)
    return buffer.getvalue(), storages


def old_format(value, data=None, keys=None):
    body, storages = pickled(value)
    parts = [
        pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        pickle.dumps(1001, 2),
        pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, 2),
        body if data is None else data,
        pickle.dumps(sorted(storages) if keys is None else keys, 2),
    ]
    for key in sorted(storages):
        parts += [struct.pack("<q", storages[key].array.size), storages[key].array.tobytes()]
    return b"".join(parts)


def zip_format(value, data=None, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    body, storages = pickled(value)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("model/data.pkl", body if data is None else data)
        archive.writestr("model/byteorder", byteorder)
        for key, storage in storages.items():
            archive.writestr(f"model/data/{key}", storage.array.tobytes())
    return buffer.getvalue()


NUMBERS = np.arange(12, dtype=np.float32)
FORMATS = pytest.mark.parametrize("write", [old_format, zip_format])


def state_dict(**tensors):
    state = collections.OrderedDict(tensors)
    state._metadata = collections.OrderedDict({"": {"version": 1}})  # as every module leaves one
    return state


def refusal(path):
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch state dicts


@FORMATS
def test_state_dict_is_read_with_offsets_and_strides(write, tmp_path):
    shared = Storage("FloatStorage", "0", NUMBERS)
    state = state_dict(
        rows=Tensor(shared, 0, (3, 4), (4, 1)),
        columns=Tensor(shared, 0, (4, 3), (1, 4)),
        last=Tensor(shared, 11, (1,), (1,)),
        every_third=Tensor(shared, 2, (4,), (3,)),
        none=Tensor(shared, 12, (0, 4), (4, 1)),
        counter=Tensor(Storage("LongStorage", "1", np.array([-7])), 0, (), ()),
        half=Tensor(Storage("HalfStorage", "2", np.array([0.5, -2], np.float16)), 0, (2,), (1,)),
        byte=Tensor(Storage("ByteStorage", "3", np.array([255], np.uint8)), 0, (1,), (1,)),
    )
    path = tmp_path / "state.pth"
    path.write_bytes(write(state))
    expected = {
        "rows": NUMBERS.reshape(3, 4),
        "columns": NUMBERS.reshape(3, 4).T,
        "last": NUMBERS[11:],
        "every_third": NUMBERS[2::3],
        "none": np.empty((0, 4), np.float32),
        "counter": np.array(-7),
        "half": np.array([0.5, -2], np.float16),
        "byte": np.array([255], np.uint8),
    }
    arrays = read_state_dict(path)
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype and array.shape == expected[name].shape, name
        assert np.array_equal(array, expected[name]), name
        assert array.flags.c_contiguous and array.flags.writeable, name


FLOATS = Storage("FloatStorage", "0", NUMBERS)
TWICE = state_dict(a=Tensor(FLOATS, 0, (12,), (1,)), b=Tensor(Storage("LongStorage", "0", NUMBERS), 0, (1,), (1,)))


@FORMATS
@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (state_dict(a=Tensor(FLOATS, 0, (13,), (1,))), "beyond its storage"),
        (state_dict(a=Tensor(FLOATS, 1, (12,), (1,))), "beyond its storage"),
        (state_dict(a=Tensor(FLOATS, 0, (3, 4), (5, 1))), "beyond its storage"),
        (state_dict(a=Tensor(FLOATS, 0, (10**12,), (0,))), "beyond its storage"),
        (state_dict(a=Tensor(FLOATS, 0, (2, 2), (1,))), "one stride for each side"),
        (state_dict(a=Tensor(FLOATS, -1, (2,), (1,))), "where a size belongs"),
        (state_dict(a=Tensor(FLOATS, 4, (2,), (-1,))), "where a size belongs"),
        (state_dict(a=Tensor(FLOATS, 0, (True,), (1,))), "where a size belongs"),
        (state_dict(a=Tensor("no storage", 0, (2,), (1,))), "without a storage"),
        (state_dict(a=Tensor(Storage("FloatStorage", "0", NUMBERS, 10**15), 0, (2,), (1,))), "bytes of the file"),
        (state_dict(a=Tensor(Storage("FloatStorage", "0", NUMBERS, 11), 0, (2,), (1,))), "storage|cut short"),
        (state_dict(a=Tensor(Storage("QInt8Storage", "0", NUMBERS), 0, (2,), (1,))), "torch.QInt8Storage"),
        (TWICE, "in two ways"),
        ({"state_dict": {"a": Tensor(FLOATS, 0, (2,), (1,))}}, "'state_dict' is no tensor"),
        ({"epoch": 3}, "'epoch' is no tensor"),
        ([1, 2], "holds a list"),
    ],
)
def test_state_dict_whose_sizes_are_wrong_is_refused(write, state, reason, tmp_path):
    path = tmp_path / "state.pth"
    path.write_bytes(write(state))
    with pytest.raises(UserError, match=reason):
        read_state_dict(path)


class Command:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "make",
    [
        lambda marker: Command(os.system, f"touch {marker}"),
        lambda marker: Command(eval, f"open({str(marker)!r}, 'w')"),
        lambda marker: Command(open, str(marker), "w"),
        lambda marker: {"a": Command(os.mkdir, str(marker))},
    ],
    ids=["system", "eval", "open", "nested"],
)
def test_state_dict_that_would_run_something_is_refused(write, protocol, make, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "state.pth"
    harmful, _ = pickled(make(marker), protocol)
    path.write_bytes(write({}, data=harmful))
    assert "which no state dict needs" in refusal(path)
    assert not marker.exists()


@FORMATS
@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # one operation that makes the unpickler's memo 32 GB long
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",  # a bytearray of a terabyte
        b"\x80\x02ctorch\nFloatStorage\n}U\x05dtypeK\x01sb.",  # an attribute set on a stand-in
        b"\x80\x02",
        b"",
    ],
    ids=["memo", "bytearray", "set attribute", "no end", "empty"],
)
def test_state_dict_of_hostile_operations_is_refused(write, data, tmp_path):
    path = tmp_path / "state.pth"
    path.write_bytes(write({}, data=data))
    refusal(path)


@FORMATS
def test_state_dict_cut_short_anywhere_is_refused(write, tmp_path):
    whole = write(state_dict(a=Tensor(FLOATS, 0, (12,), (1,))))
    path = tmp_path / "state.pth"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        refusal(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "expected a flat state dict"),
        (zip_format(state_dict(a=Tensor(FLOATS, 0, (12,), (1,))), compression=zipfile.ZIP_DEFLATED), "compressed"),
        (zip_format(state_dict(a=Tensor(FLOATS, 0, (12,), (1,))), byteorder=b"big"), "big-endian"),
        (old_format(state_dict(a=Tensor(FLOATS, 0, (12,), (1,))), keys=["0", "1"]), "list of storages"),
        (pickle.dumps({"a": 1}, 2), "does not begin like one"),
    ],
    ids=["hdf5", "compressed", "big-endian", "keys", "plain pickle"],
)
def test_file_of_another_kind_is_refused(content, reason, tmp_path):
    path = tmp_path / "state.pth"
    path.write_bytes(content)
    assert reason in refusal(path)


def test_missing_file_is_said_to_be_missing(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nothing.pth")


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
