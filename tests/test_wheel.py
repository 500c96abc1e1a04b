"""The wheel: built, installed into a folder of its own, it trains the demo in an empty directory."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.support import ROOT

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]


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


def test_an_installed_wheel_trains_the_demo_in_an_empty_folder(wheel, tmp_path):
    target, empty, hook = (tmp_path / name for name in ("target", "empty", "hook"))
    empty.mkdir()
    hook.mkdir()
    pills = "transfer_learning.datasets.sources.drawn_pills"
    fewer = f"import {pills} as pills\npills.NUM_IMAGES_PER_CLASS = 12\n"  # drawing 120 takes half a minute
    (hook / "sitecustomize.py").write_text(fewer)
    call([*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)])
    variables = os.environ | {"PYTHONPATH": f"{target}{os.pathsep}{hook}"}
    command = [sys.executable, str(target / "bin" / "transfer-learning")]
    found = call(
        [sys.executable, "-c", "import transfer_learning; print(transfer_learning.__file__)"], cwd=empty, env=variables
    )
    assert found.startswith(str(target))
    tiny = ["--image-size", "32", "--frozen.epochs", "1", "--frozen.copies", "0", "--fine-tune.epochs", "0"]
    tiny += ["--head-features", "last", "--head-init", "ridge"]  # else six heads are compared
    call([*command, "run", "--dataset", "drawn_pills", "--run-dir", "a", *tiny], cwd=empty, env=variables)
    assert "<h2>" in (empty / "a" / "report.html").read_text()
    image = next((empty / "data" / "drawn_pills").rglob("*.jpg"))
    printed = call([*command, "predict", "a", str(image)], cwd=empty, env=variables)
    assert printed.startswith("file,class,confidence,rejected,problem\n") and printed.count("\n") == 2
