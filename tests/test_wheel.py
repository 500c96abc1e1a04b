"""The wheel: built, installed into a folder of its own, it trains the demo in an empty directory."""

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]

BLOCKER = """import sys
class Blocker:
    def find_spec(self, name, *_):
        if name in {}:
            raise ModuleNotFoundError(name + " is blocked", name=name)
sys.meta_path.insert(0, Blocker())
"""


def call(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built without a network, from the files that git knows or would add, so that no build folder is left behind."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = call(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "data/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    call([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(source)])
    [path] = folder.iterdir()
    return path


def test_templates_and_the_licence_are_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "transfer_learning"
    files = {
        path.relative_to(ROOT).as_posix() for path in package.rglob("*") if path.suffix in (".py", ".html", ".css")
    }
    assert files <= names, files - names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith("tests/") for name in names)


def modules_of_extras():
    """What only an extra installs; the base installation has to do without."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"base": project["dependencies"]} | project["optional-dependencies"]
    names = {group: {canonicalize_name(Requirement(line).name) for line in lines} for group, lines in groups.items()}
    extra = (
        set().union(*(names[group] for group in names if group not in ("test", "dev")))
        - names["base"]
        - {"transfer-learning"}
    )
    found = packages_distributions().items()
    return [module for module, packages in found if {canonicalize_name(package) for package in packages} <= extra]


def test_an_installed_wheel_trains_the_demo_in_an_empty_folder_without_the_extras(wheel, tmp_path):
    target, empty, hook = (tmp_path / name for name in ("target", "empty", "hook"))
    empty.mkdir()
    hook.mkdir()
    pills = "transfer_learning.datasets.sources.drawn_pills"
    fewer = f"import {pills} as pills\npills.NUM_IMAGES_PER_CLASS = 12\n"  # drawing 120 takes half a minute
    blocked = modules_of_extras()
    assert {"cleanlab", "tensorboard", "fastapi", "onnx", "pyarrow"} <= set(blocked)
    (hook / "sitecustomize.py").write_text(BLOCKER.format(blocked) + fewer)
    call([*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)])
    variables = os.environ | {"PYTHONPATH": f"{target}{os.pathsep}{hook}"}
    command = [sys.executable, str(target / "bin" / "transfer-learning")]
    found = call(
        [sys.executable, "-c", "import transfer_learning; print(transfer_learning.__file__)"], cwd=empty, env=variables
    )
    assert found.startswith(str(target))
    tiny = ["--image-size", "32", "--frozen.epochs", "1", "--frozen.copies", "0", "--fine-tune.epochs", "0"]
    tiny += ["--head-features", "last", "--head-init", "ridge"]  # else six heads are compared
    printed = call([*command, "run", "--dataset", "drawn_pills", "--run-dir", "a", *tiny], cwd=empty, env=variables)
    assert len([line for line in printed.splitlines() if not line.startswith("frozen 1/1")]) <= 25
    report = empty / "a" / "report.html"
    assert "<h2>" in report.read_text() and report.stat().st_size < 1_500_000
    others = "evaluate.main(['a']); report.main(['a']); prepare.main(['drawn_pills', '--image-size', '32'])"
    program = f"from transfer_learning import evaluate, prepare, report; {others}"  # in one process, which is faster
    call([sys.executable, "-c", program], cwd=empty, env=variables)
    image = next((empty / "data" / "drawn_pills").rglob("*.jpg"))
    printed = call([*command, "predict", "a", str(image)], cwd=empty, env=variables)
    assert printed.startswith("file,class,confidence,rejected,problem\n") and printed.count("\n") == 2
