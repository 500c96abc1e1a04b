"""No module calls a function that could run code from a file: the source of every module is searched."""

import ast
from pathlib import Path

import pytest

import transfer_learning

ROOT = Path(transfer_learning.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# Forbidden under any prefix: loaders, what they make, and functions that start programs.
FORBIDDEN_NAMES = set(
    "load_model model_from_json deserialize_keras_object clone_model enable_unsafe_deserialization TFSMLayer "
    "TorchModuleWrapper Unpickler read_pickle PackageImporter unsafe_load full_load extractall unpack_archive __import__ "
    "run_path run_module py_function numpy_function getoutput".split()
)
# Forbidden with this prefix only, since others have the same name.
FORBIDDEN_CALLS = set(
    "eval exec compile builtins.eval builtins.exec torch.load torch.jit.load torch.hub.load torch.export.load yaml.load "
    "tensorflow.saved_model.load keras.layers.deserialize keras.layers.Lambda os.system os.popen".split()
)
FORBIDDEN_MODULES = set("pickle cPickle _pickle dill cloudpickle joblib marshal shelve runpy code".split())
FORBIDDEN_OPTIONS = {
    "allow_pickle": False,
    "trust_remote_code": False,
    "weights_only": True,
    "safe_mode": True,
    "shell": False,
}  # with the one value that they may have

ALLOWED = {  # (module, call): why
    ("exports/keras_file.py", "keras.models.load_model"): "in safe mode, the exported file that the user names",
    ("exports/saved_model.py", "tensorflow.saved_model.load"): "a graph, the exported file that the user names",
    ("datasets/pipeline.py", "tensorflow.numpy_function"): "calls a function of the pipeline on its own arrays",
    ("models/inference_graph.py", "keras.models.clone_model"): "of a network in memory, without any file",
    ("models/backbones.py", "keras.models.clone_model"): "of a network in memory, without any file",
}


def dotted(node):
    """``keras.models.load_model`` of an expression; ``?`` for a part that is no name, as in ``?.extractall``."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def findings(source):
    """The calls and imports in a source that could run code from a file: (name, line)."""
    tree = ast.parse(source)
    full = {}  # by the name that an import gave it
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [name.name for name in node.names]
            full |= {name.asname: name.name for name in node.names if name.asname}
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module]
            full |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
        else:
            continue
        yield from ((module, node.lineno) for module in imported if module.split(".")[0] in FORBIDDEN_MODULES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, *rest = dotted(node).split(".")
            meant = ".".join([full.get(first, first), *rest])
            is_ours = meant.startswith(f"{ROOT.name}.")
            if not is_ours and (meant in FORBIDDEN_CALLS or meant.split(".")[-1] in FORBIDDEN_NAMES):
                yield meant, node.lineno
        elif isinstance(node, ast.keyword) and node.arg in FORBIDDEN_OPTIONS:
            if not isinstance(node.value, ast.Constant) or node.value.value is not FORBIDDEN_OPTIONS[node.arg]:
                yield node.arg, node.value.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_calls_a_function_that_could_run_code_from_a_file(path):
    name = path.relative_to(ROOT).as_posix()
    assert not [(what, line) for what, line in findings(path.read_text()) if (name, what) not in ALLOWED]


def test_every_allowed_call_exists():
    for name, what in ALLOWED:
        assert what in {found for found, _ in findings((ROOT / name).read_text())}


@pytest.mark.parametrize(
    "source",
    [
        "import keras\nkeras.models.load_model(path)",
        "from keras.models import load_model\nload_model(path)",
        "from keras.saving import load_model as read\nread(path)",
        "import tensorflow as tf\ntf.keras.models.load_model(path)",
        "import tensorflow as tf\ntf.saved_model.load(path)",
        "import pickle",
        "from pickle import loads",
        "import joblib",
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=wanted)",
        "import yaml\nyaml.load(text)",
        "eval(text)",
        "f = exec",
        "import datasets\ndatasets.load_dataset(name, trust_remote_code=True)",
        "import tarfile\ntarfile.open(path).extractall(folder)",
        "import zipfile\nzipfile.ZipFile(path).extractall(folder)",
        "from keras import layers\nlayers.Lambda(f)",
        "import keras\nkeras.config.enable_unsafe_deserialization()",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "model.load_model(path)",
    ],
)
def test_every_dangerous_call_is_found(source):
    assert list(findings(source))


@pytest.mark.parametrize(
    "source",
    [
        "from transfer_learning.models.classifier import load_model\nload_model(config, path)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import json\njson.loads(text)",
        "import re\nre.compile(text)",
        "import pickletools\npickletools.genops(file)",
        "model.compile()",
    ],
)
def test_harmless_calls_are_not_reported(source):
    assert not list(findings(source))
