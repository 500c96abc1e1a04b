"""PyTorch's state dicts, written here without PyTorch: tensors come out, everything else is refused unrun."""

import collections
import contextlib
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.make_pytorch_vectors import VECTORS, random_array
from transfer_learning.errors import UserError
from transfer_learning.models.state_dict import read_state_dict

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


class Parameter:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_parameter, (self.tensor, True, collections.OrderedDict())


@contextlib.contextmanager
def fake_pytorch():
    torch, torch_utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):  # only the names are pickled

        def function():
            raise AssertionError

        function.__module__, function.__qualname__ = "torch._utils", name
        setattr(torch_utils, name, function)
    for name in ("FloatStorage", "HalfStorage", "LongStorage", "ByteStorage", "QInt8Storage", "BFloat16Storage"):
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
    with fake_pytorch():
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
        parameter=Parameter(Tensor(shared, 0, (2, 3), (3, 1))),
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
        "parameter": NUMBERS[:6].reshape(2, 3),
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
        (state_dict(a=Tensor(FLOATS, 0, (2, 2), (1,))), "one stride per dimension"),
        (state_dict(a=Tensor(FLOATS, -1, (2,), (1,))), "where a size belongs"),
        (state_dict(a=Tensor(FLOATS, 4, (2,), (-1,))), "where a size belongs"),
        (state_dict(a=Tensor(FLOATS, 0, (True,), (1,))), "where a size belongs"),
        (state_dict(a=Tensor("no storage", 0, (2,), (1,))), "without a storage"),
        (state_dict(a=Tensor(Storage("FloatStorage", "0", NUMBERS, 10**15), 0, (2,), (1,))), "bytes of the file"),
        (state_dict(a=Tensor(Storage("FloatStorage", "0", NUMBERS, 11), 0, (2,), (1,))), "storage|cut short"),
        (state_dict(a=Tensor(Storage("QInt8Storage", "0", NUMBERS), 0, (2,), (1,))), "torch.QInt8Storage"),
        (state_dict(a=Tensor(Storage("BFloat16Storage", "0", NUMBERS), 0, (2,), (1,))), "torch.BFloat16Storage"),
        (state_dict(a=Parameter("no tensor")), "'a' is no tensor"),
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
        lambda marker: {"a": Parameter(Command(os.mkdir, str(marker)))},
    ],
    ids=["system", "eval", "open", "nested", "parameter"],
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
        b"\x80\x02ctorch\nFloatStorage\n}U\x05dtypeK\x01sb.",  # an attribute set on a name
        b"\x80\x02})" + b"\x85" * 150_000 + b"K\x01s.",  # a key so deep that its hash overflows the stack
        b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (step, step) for step in range(60)) + b"K\x01s.",  # or never ends
        b"\x80\x02" + b"}" * 600_000 + b".",  # any number of empty dictionaries
        b"\x80\x02}(" + b"X\x01\0\0\0aK\x01" * 2 + b"u.",  # one name twice
        b"\x80\x020.",  # more is taken than there is
        b"\x80\x02",
        b"",
    ],
    ids=["memo", "bytearray", "set attribute", "deep key", "wide key", "many", "twice", "underflow", "no end", "empty"],
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


@FORMATS
@pytest.mark.parametrize("kind", [collections.OrderedDict, dict])
def test_two_tensors_of_one_name_are_refused(write, kind, tmp_path):
    state = kind(aa=Tensor(FLOATS, 0, (2,), (1,)), ab=Tensor(FLOATS, 4, (2,), (1,)))
    body, _ = pickled(state)
    path = tmp_path / "state.pth"
    path.write_bytes(write(state, data=body.replace(b"ab", b"aa")))
    assert "several entries of one name, 'aa'" in refusal(path)


def test_two_members_of_one_name_are_refused(tmp_path):
    content = io.BytesIO(zip_format(state_dict(a=Tensor(FLOATS, 0, (12,), (1,)))))
    with zipfile.ZipFile(content, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("model/data/0", bytes(48))
    path = tmp_path / "state.pth"
    path.write_bytes(content.getvalue())
    assert "several members of one name" in refusal(path)


def test_one_tensor_under_two_names_is_two_arrays(tmp_path):
    tensor = Tensor(FLOATS, 0, (2,), (1,))
    path = tmp_path / "state.pth"
    path.write_bytes(zip_format(state_dict(a=tensor, b=tensor)))
    assert np.array_equal(read_state_dict(path)["b"], NUMBERS[:2])


@pytest.mark.parametrize("file_name", ["old_format.pth", "new_format.pth"])
def test_what_pytorch_itself_wrote_is_read(file_name):
    arrays = read_state_dict(VECTORS / file_name)
    shapes = {"0.weight": (3, 2, 1, 1), "1.num_batches_tracked": ()}
    shapes |= dict.fromkeys(["1.weight", "1.bias", "1.running_mean", "1.running_var"], (3,))
    assert {name: array.shape for name, array in arrays.items()} == shapes
    for name, array in arrays.items():
        expected = random_array(name, shapes[name])
        assert array.dtype == expected.dtype and np.array_equal(array, expected), name


def test_a_checkpoint_around_the_state_dict_is_refused_with_the_way_to_take_it_out():
    message = refusal(VECTORS / "checkpoint.pth")
    assert "'epoch' is no tensor" in message and "torch.save(model.state_dict(), FILE)" in message


def test_a_tar_archive_of_pytorchs_first_months_is_named(tmp_path):
    path = tmp_path / "state.pth"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    assert "tar archive, which PyTorch wrote before version 0.1.10" in refusal(path)


# ---------------------------------------------------------------------------------------------------------------------
# safetensors


def safetensors_file(header, numbers, declared=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if declared is None else declared) + text + numbers


def entry(start, end, shape, number_format="F32"):
    return {"dtype": number_format, "shape": shape, "data_offsets": [start, end]}


def test_safetensors_are_read(tmp_path):
    state = {
        "kernel": NUMBERS.reshape(3, 4),
        "counter": np.array(-7),
        "none": np.empty((0, 4), np.float32),
        "half": np.array([0.5, -2], np.float16),
        "double": np.array([1 / 3]),
        "byte": np.array([255], np.uint8),
    }
    path = tmp_path / "model.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    arrays = read_state_dict(path)
    assert arrays.keys() == state.keys()
    for name, array in arrays.items():
        assert array.dtype == state[name].dtype and array.shape == state[name].shape, name
        assert np.array_equal(array, state[name]), name
        assert array.flags.c_contiguous and array.flags.writeable, name


A = json.dumps(entry(0, 8, [2]))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (safetensors_file({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)), "offset"),
        (safetensors_file({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, bytes(8)), "offset"),
        (safetensors_file({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, bytes(20)), "offset"),
        (safetensors_file({"a": entry(0, 8, [3])}, bytes(8)), ""),
        (safetensors_file({"a": entry(8, 0, [2])}, bytes(8)), ""),
        (safetensors_file({"a": entry(0, 8, [-2])}, bytes(8)), ""),
        (safetensors_file({"a": entry(0, 8, [2**62, 2**62])}, bytes(8)), ""),
        (safetensors_file({"a": entry(0, 1 << 50, [1 << 48])}, bytes(8)), ""),
        (safetensors_file({"a": entry(0, 8, [2])}, bytes(7)), ""),
        (safetensors_file({"a": entry(0, 8, [2])}, bytes(9)), ""),
        (safetensors_file({"a": entry(0, 8, [2])}, bytes(8), declared=1 << 30), "header"),
        (safetensors_file({"a": entry(0, 8, [2])}, bytes(8), declared=(1 << 64) - 1), "header"),
        (safetensors_file({"a": entry(0, 4, [2], "BF16")}, bytes(4)), "BF16"),
        (safetensors_file({"a": entry(0, 2, [2], "F8_E4M3")}, bytes(2)), "F8_E4M3"),
        (safetensors_file(f'{{"a": {A}, "a": {A}}}'.encode(), bytes(8)), "several tensors of one name"),
        (safetensors_file(f'{{"a": {A}, "a": {json.dumps(entry(8, 16, [2]))}}}'.encode(), bytes(16)), ""),
        (safetensors_file(b"[" * 100_000, b""), "header"),
        (safetensors_file({"a": {"state_dict": entry(0, 8, [2])}}, bytes(8)), "header"),
        (zip_format({"a": Tensor(FLOATS, 0, (12,), (1,))}), "header"),
        (b"", "header"),
    ],
)
def test_safetensors_that_are_not_one_tensor_behind_the_other_are_refused(content, reason, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert reason in refusal(path)


def test_safetensors_cut_short_anywhere_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": NUMBERS}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refusal(path)


def test_missing_safetensors_are_said_to_be_missing(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nothing.safetensors")
