"""Digests and Keras' HDF5 files: what is not whole or not plain arrays is refused in a sentence."""

import hashlib

import h5py
import numpy as np
import pytest

from transfer_learning.errors import UserError
from transfer_learning.models.weights import hold_same_arrays, load_keras_weights, weights_digest

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
def test_weights_digest_differs_for(other):
    assert weights_digest(other) != weights_digest([np.zeros(2, np.float32), np.ones(2, np.float32)])


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([np.ones(2, np.float32), np.zeros(2, np.float32)], True),
        ([np.zeros(2, np.float32), np.nextafter(np.ones(2, np.float32), 2)], False),
        ([np.zeros(2, np.float32)], False),
        ([np.zeros(2, np.float32)] * 2, False),
        ([np.zeros(2, np.float32), np.ones((1, 2), np.float32)], False),
    ],
    ids=["the same", "last bit", "one fewer", "one twice", "shape"],
)
def test_a_file_holds_the_same_arrays_or_not(others, expected, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["layers/first/vars/0"], file["layers/second/vars/0"] = np.zeros(2, np.float32), np.ones(2, np.float32)
    with open(tmp_path / "a.h5", "rb") as file:
        assert hold_same_arrays(file, others) == expected


def test_weights_digest_is_that_of_the_values_however_they_lie_in_memory():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert weights_digest([array.astype(">f4")]) == weights_digest([array]) == weights_digest([array.T.copy().T])


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
