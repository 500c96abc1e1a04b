"""PyTorch state dicts in their three file formats, read as arrays without PyTorch: no code in a file is run."""

import json
import math
import os
import re
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from transfer_learning.errors import UserError
from transfer_learning.storage.pickled import Call, Name, Reference, read_pickle


class _Storage(NamedTuple):
    """A block of numbers in the file; read after the pickle, once all sizes have been checked."""

    key: str
    dtype: np.dtype
    num_elements: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


ORDERED_DICT, TENSOR = "collections.OrderedDict", "torch._utils._rebuild_tensor_v2"
# Files that torchvision published in 2016 contain parameters instead of tensors.
PARAMETER = "torch._utils._rebuild_parameter"

_TYPES = "Double <f8, Float <f4, Half <f2, Long <i8, Int <i4, Short <i2, Char <i1, Byte <u1, Bool |b1".split(", ")
STORAGE_TYPES = {f"torch.{name}Storage": dtype for name, dtype in map(str.split, _TYPES)}
SAFETENSORS_TYPES = frozenset("F64 F32 F16 I64 I32 I16 I8 U8 BOOL".split())  # as STORAGE_TYPES

OLD_FORMAT_MAGIC = 0x1950A86A20F9469CFC6C
OLD_FORMAT_PROTOCOL = 1001


def _check_name(name: str) -> None:
    if name in (ORDERED_DICT, TENSOR, PARAMETER, *STORAGE_TYPES):
        return
    if re.fullmatch(r"torch\.\w+Storage", name):
        raise ValueError(f"it holds numbers as {name}, a format that is not read")
    raise ValueError(f"it asks for {name}, which no state dict needs")


def _dictionary(value: Any) -> dict:
    if isinstance(value, Call) and value.function == ORDERED_DICT:
        if value.arguments not in ((), ([],)):
            raise ValueError("it makes its dictionary out of a list, as Python 2 did")
        return value.items
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}")
    return value


def _tensor(value: Any) -> _Tensor | None:
    if isinstance(value, Call) and value.function == PARAMETER:
        value = value.arguments[0]
    if not isinstance(value, Call) or value.function != TENSOR:
        return None
    storage, offset, shape, strides, *_ = value.arguments
    if not isinstance(storage, Reference):
        raise ValueError("it describes a tensor without a storage")
    kind, scalar_type, key, _device, num_elements, *view = storage.id
    if kind != "storage" or not isinstance(scalar_type, Name) or not isinstance(key, str):
        raise ValueError("it describes a storage in an unknown way")
    if view not in ([], [None]):
        raise ValueError("it holds a storage inside a storage")
    return _Tensor(
        _Storage(key, np.dtype(STORAGE_TYPES[scalar_type]), _count(num_elements)),
        _count(offset),
        tuple(map(_count, shape)),
        tuple(map(_count, strides)),
    )


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"it gives {value if type(value) is int else type(value).__name__} where a size belongs")
    return value


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the arrays of a PyTorch state dict, without PyTorch.

    Args:
        path: of a .safetensors file, or, with any other ending, of one of PyTorch's formats (before or since 1.6).

    Returns:
        C-contiguous arrays in the dtypes of the file, by their names.

    Raises:
        UserError: the file is missing or damaged, or is not a flat dictionary of dense tensors (float64, float32,
            float16, integers, booleans).
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        num_bytes = path.stat().st_size
        with open(path, "rb") as file:
            read = _read_zip_format if zipfile.is_zipfile(file) else _read_old_format
            file.seek(0)
            return read(file, num_bytes)
    except FileNotFoundError as problem:
        raise UserError(f"The weights file {path} does not exist; give a file, or --weights none.") from problem
    except Exception as problem:  # an untrusted file can make the reader raise anything
        reason = str(problem) or type(problem).__name__
        raise UserError(
            f"{path} was given as PyTorch weights; expected a flat state dict of dense tensors, but {reason}; save the "
            "state dict alone with torch.save(model.state_dict(), FILE), or use --weights none."
        ) from problem


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """A JSON header, then the tensors one after the other, which the library checks."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as tensors:
        with open(path, "rb") as file:  # again, because the library hides duplicate names
            json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=_without_doubles)
        for name in tensors.keys():
            if (number_format := tensors.get_slice(name).get_dtype()) not in SAFETENSORS_TYPES:
                raise ValueError(f"it holds numbers as {number_format}, a format that is not read")
        return {name: tensors.get_tensor(name) for name in tensors.keys()}


def _without_doubles(pairs: list[tuple]) -> dict:
    if len(unique := dict(pairs)) < len(pairs):
        raise ValueError("it has several tensors of one name")
    return unique


def _read_old_format(file: IO[bytes], num_bytes: int) -> dict[str, np.ndarray]:
    """Five pickles (magic number, protocol, platform, state dict, storage keys), then count and numbers of each key."""
    if file.read(262)[257:] == b"ustar":
        raise ValueError("it is a tar archive, which PyTorch wrote before version 0.1.10")
    file.seek(0)
    for beginning in (OLD_FORMAT_MAGIC, OLD_FORMAT_PROTOCOL):
        if read_pickle(file, _check_name) != beginning:
            raise ValueError("it does not begin like one")
    if _dictionary(read_pickle(file, _check_name))["little_endian"] is not True:
        raise ValueError("it comes from a big-endian machine")
    tensors = _checked_tensors(_dictionary(read_pickle(file, _check_name)), num_bytes)
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    keys = read_pickle(file, _check_name)
    if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("its list of storages is not the one its tensors need")
    numbers = {}
    for key in keys:
        storage = storages[key]
        if int.from_bytes(file.read(8), "little") != storage.num_elements:
            raise ValueError(f"the storage {key!r} has another size than its tensors say")
        numbers[key] = np.frombuffer(file.read(storage.num_elements * storage.dtype.itemsize), storage.dtype)
    return _arrays(tensors, numbers)


def _read_zip_format(file: IO[bytes], num_bytes: int) -> dict[str, np.ndarray]:
    """An uncompressed zip archive: NAME/data.pkl is the state dict, NAME/data/KEY holds the numbers of each storage."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("it has several members of one name")
        pickles = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise ValueError("it has no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")

        def read(name):
            # Stored, never compressed: so nothing read can be longer than the file.
            if members[name].compress_type != zipfile.ZIP_STORED or members[name].file_size > num_bytes:
                raise ValueError(f"its member {name!r} is compressed")
            return archive.read(name)

        if f"{folder}byteorder" in members and read(f"{folder}byteorder") != b"little":
            raise ValueError("it comes from a big-endian machine")
        with archive.open(pickles[0]) as pickled:
            if members[pickles[0]].compress_type != zipfile.ZIP_STORED:
                raise ValueError("its data.pkl is compressed")
            tensors = _checked_tensors(_dictionary(read_pickle(pickled, _check_name)), num_bytes)
        storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
        numbers = {key: np.frombuffer(read(f"{folder}data/{key}"), storage.dtype) for key, storage in storages.items()}
    return _arrays(tensors, numbers)


def _checked_tensors(state: dict, num_bytes: int) -> dict[str, _Tensor]:
    """Returns the tensors of a state dict; ValueError unless each fits into its storage and all storages into the file."""
    tensors: dict[str, _Tensor] = {}
    for name, value in state.items():
        tensor = _tensor(value)
        if not isinstance(name, str) or tensor is None:
            raise ValueError(f"its entry {name!r} is no tensor")
        tensors[name] = tensor
    storages: dict[str, _Storage] = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"it describes the storage {storage.key!r} in two ways")
        if len(tensor.shape) != len(tensor.strides):
            raise ValueError(f"the tensor {name!r} does not have one stride per dimension")
        num_elements = math.prod(tensor.shape)
        steps = sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides, strict=True))
        # With a stride of 0 a tensor could be larger than its storage, and ask for any amount of memory.
        if num_elements > storage.num_elements or (num_elements and tensor.offset + steps >= storage.num_elements):
            raise ValueError(f"the tensor {name!r} reaches beyond its storage")
    if sum(storage.num_elements * storage.dtype.itemsize for storage in storages.values()) > num_bytes:
        raise ValueError(f"its tensors need more than the {num_bytes} bytes of the file")
    return tensors


def _arrays(tensors: dict[str, _Tensor], numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in tensors.items():
        values = numbers[tensor.storage.key]
        if values.size != tensor.storage.num_elements:
            raise ValueError(f"the numbers of {name!r} are cut short")
        strides = [stride * values.itemsize for stride in tensor.strides]
        if math.prod(tensor.shape) == 0:
            arrays[name] = np.empty(tensor.shape, values.dtype)
        else:
            arrays[name] = np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides).copy()
    return arrays
