"""Optional packages: what works without them, and the one sentence where one is needed."""

import ast
import importlib
import sys
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support import ROOT
from transfer_learning import serve
from transfer_learning.datasets.audit.label_issues import find_label_issues
from transfer_learning.datasets.decoding.decode import short_side
from transfer_learning.datasets.sources import huggingface, pharma, s3
from transfer_learning.errors import MissingExtra, needs_extra
from transfer_learning.reports.mlflow import check_server
from transfer_learning.storage.feature_store import FeatureStore

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUN = str(ROOT / "tests/old_runs/runs/finished_a")
EXTRAS = PROJECT["optional-dependencies"]


def pins():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line[:1].isalpha()]
    return {canonicalize_name(requirement.name): str(requirement.specifier)[2:] for requirement in requirements}


def use_tensorboard(small_config, tmp_path):
    from transfer_learning.experiments.train import run_experiment
    from transfer_learning.storage.run_directory import RunDir

    run_experiment(replace(small_config, tensorboard=True), RunDir(tmp_path / "run"))


def heic_file(folder):
    (folder / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    return folder / "a.heic"


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("s3fs", "store", lambda config, folder: s3.fetch("s3://bucket/images", folder, also="")),
        ("datasets", "hf", lambda config, folder: huggingface.read("beans", folder)),
        ("kagglehub", "kaggle", lambda config, folder: pharma.load(folder)),
        ("cleanlab", "audit", lambda config, folder: find_label_issues(np.eye(4), np.arange(4), np.arange(4))),
        ("tensorboard", "tensorboard", use_tensorboard),
        ("pillow_heif", "heic", lambda config, folder: short_side(heic_file(folder))),
        ("mlflow", "mlflow", lambda config, folder: check_server("sqlite:///x.db")),
        ("fastapi", "serve", lambda config, folder: serve.main([RUN])),
        ("fsspec", "store", lambda config, folder: FeatureStore(str(folder))),
        ("ray", "ray", lambda config, folder: serve.main([RUN, "--engine", "ray", "--port", "0"])),
    ],
)
def test_a_missing_extra_is_one_sentence_with_the_pip_command(module, extra, use, small_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # as if it was not installed
    for name in [name for name in sys.modules if name.startswith("transfer_learning.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtra) as caught:
        use(small_config, tmp_path)
    assert str(caught.value) == (
        f"The package {module.split('.')[0]} is not installed; install it with: pip install 'transfer-learning[{extra}]'."
    )
    assert extra in EXTRAS


def test_both_names_of_the_packages_for_s3_can_be_installed():
    assert [text.partition(">")[0] for text in EXTRAS["s3"]] == ["s3fs"]
    assert set(EXTRAS["s3"]) < set(EXTRAS["store"])


def test_another_error_of_an_import_is_passed_on():
    with pytest.raises(ValueError, match="other"), needs_extra("s3"):
        raise ValueError("other")


def test_every_pinned_version_is_in_the_range_of_the_project():
    versions = pins()
    groups = [PROJECT["dependencies"], *EXTRAS.values()]
    for requirement in map(Requirement, (text for group in groups for text in group)):
        name = canonicalize_name(requirement.name)
        if name in versions:
            assert Version(versions[name]) in requirement.specifier, requirement
    base = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert base <= set(versions)


def test_the_base_packages_are_enough_for_what_is_imported_at_once():
    """Modules that only extras bring are imported inside functions; `serve` imports all of `serving` so."""
    optional = {"pillow_heif"}
    optional |= {"s3fs", "botocore", "datasets", "pyarrow", "kagglehub", "cleanlab", "tensorboard", "huggingface_hub"}
    optional |= {"mlflow", "ray", "fsspec"}
    optional |= {"fastapi", "starlette", "uvicorn", "prometheus_client"}
    optional |= {"onnx", "tf2onnx", "onnxruntime", "ai_edge_litert", "openvino", "httpx2"}
    for path in sorted((ROOT / "transfer_learning").rglob("*.py")):
        if path.parent.name == "serving" or path.name in ("mlflow_model.py", "ray_workers.py"):  # run by MLflow and Ray
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [name.name for name in node.names] if isinstance(node, ast.Import) else [node.module]
                assert not optional & {module.split(".")[0] for module in modules}, f"{path.name}: {modules}"
    assert importlib.util.find_spec("tensorflow")
