"""The container image and compose.yaml, as far as that goes without a container engine: each step and each command."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support import ROOT

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
STEPS = [
    (step.split(maxsplit=1)[0], step.split(maxsplit=1)[1])
    for step in (ROOT / "Dockerfile").read_text().splitlines()
    if step and step[0] != "#"
]


def step(name):
    return [arguments for kind, arguments in STEPS if kind == name]


WORKDIR = step("WORKDIR")[0]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The image's WORKDIR: what its COPY steps put there, from what .dockerignore lets through."""
    work = tmp_path_factory.mktemp("work")
    nothing, *allowed = (
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if "__pycache__" not in line
    )
    assert nothing == "*"
    for arguments in step("COPY"):
        *sources, target = arguments.split()
        for source in sources:
            assert f"!{source}" in allowed, f"{source} would not be there"
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, work / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, work / target)
    for folder in ("data", "runs", "notebooks"):
        (work / folder).mkdir()
    return work


def call(image, command):
    """Runs a command of the image in this Python; returns what it prints."""
    variables = dict(pair.split("=", 1) for arguments in step("ENV") for pair in shlex.split(arguments))
    variables = {name: value.replace(WORKDIR, str(image)) for name, value in variables.items()}
    command = [sys.executable if word == "python" else word.replace(WORKDIR, str(image)) for word in command]
    done = subprocess.run(command, cwd=image, env=os.environ | variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def command_of(service):
    entry = service.get("entrypoint", json.loads(step("ENTRYPOINT")[0]))
    return [*entry, *service.get("command", json.loads(step("CMD")[0]))]


def test_the_image_runs_its_own_copy(image):
    entry, arguments = json.loads(step("ENTRYPOINT")[0]), json.loads(step("CMD")[0])
    assert "usage: python -m transfer_learning.run" in call(image, [*entry, *arguments])
    code = "import transfer_learning.experiments.train as it; print(it.__file__)"
    assert Path(call(image, ["python", "-c", code]).strip()).is_relative_to(image)


@pytest.mark.parametrize("name", [name for name in SERVICES if not name.endswith("-gpu")])
def test_every_service_begins(name, image):
    command = command_of(SERVICES[name])
    printed = call(image, command if "--help" in command else [*command, "--version"])
    assert printed.strip()
    assert "error" not in printed.lower()


def test_a_gpu_is_asked_for_by_a_profile_alone():
    by_default = {name for name, service in SERVICES.items() if not service.get("profiles")}
    assert by_default == {"jupyter", "tensorboard"}
    for name, service in SERVICES.items():
        assert ("gpu" in service.get("profiles", [])) == ("deploy" in service) == name.endswith("-gpu")
        if name.endswith("-gpu"):
            assert command_of(service) == command_of(SERVICES[name.removesuffix("-gpu")])
            [devices] = service["deploy"]["resources"]["reservations"]["devices"]
            assert devices["capabilities"] == ["gpu"]


def test_the_packages_for_a_gpu_are_an_extra_of_the_pinned_tensorflow():
    assert (
        step("RUN")[:2]
        == [
            "pip install --no-cache-dir --require-hashes -r requirements.lock",
            'test -z "$EXTRA" || pip install --no-cache-dir $EXTRA',  # what is locked stays: the extra is of the same version
        ]
    )
    extra = Requirement(SERVICES["train-gpu"]["build"]["args"]["EXTRA"])
    pinned = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].isalpha()]
    assert extra.name in {requirement.name for requirement in pinned}
    assert extra.extras <= set(metadata(extra.name).get_all("Provides-Extra"))


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_written_lands_in_folders_of_the_host(name):
    folders = ("data", "runs", "notebooks")
    volumes = dict(volume.split(":") for volume in SERVICES[name]["volumes"])
    assert volumes == {f"./{folder}": f"{WORKDIR}/{folder}" for folder in folders}
    assert all((ROOT / folder).is_dir() or f"/{folder}/" in (ROOT / ".gitignore").read_text() for folder in folders)
    [variables] = step("ENV")
    assert all(value.startswith(f"{WORKDIR}/data/") for value in re.findall(r"=(\S+)", variables))


def test_pages_are_offered_to_this_machine_alone():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
