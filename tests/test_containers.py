"""compose.yaml and the Dockerfile, as far as they can be read; the CI builds the image and starts it."""

import re
from importlib.metadata import metadata

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support import ROOT

SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_what_the_image_copies_is_not_ignored():
    nothing, *allowed = (ROOT / ".dockerignore").read_text().split()
    assert nothing == "*"
    for sources in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists() and f"!{source}" in allowed


def test_only_the_services_of_the_gpu_profile_ask_for_a_gpu():
    by_default = {name for name, service in SERVICES.items() if not service.get("profiles")}
    assert by_default == {"jupyter", "tensorboard"}
    for name, service in SERVICES.items():
        assert ("gpu" in service.get("profiles", [])) == ("deploy" in service) == name.endswith("-gpu")
        if name.endswith("-gpu"):
            on_cpu = SERVICES[name.removesuffix("-gpu")]
            assert (service["command"], service.get("entrypoint")) == (on_cpu["command"], on_cpu.get("entrypoint"))
            [devices] = service["deploy"]["resources"]["reservations"]["devices"]
            assert devices["capabilities"] == ["gpu"]


def test_the_packages_for_a_gpu_are_an_extra_of_the_pinned_tensorflow():
    extra = Requirement(SERVICES["train-gpu"]["build"]["args"]["EXTRA"])
    pinned = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].isalpha()]
    assert extra.name in {requirement.name for requirement in pinned}
    assert extra.extras <= set(metadata(extra.name).get_all("Provides-Extra"))


@pytest.mark.parametrize("name", SERVICES)
def test_everything_is_written_to_folders_of_the_host(name):
    volumes = dict(volume.split(":") for volume in SERVICES[name]["volumes"])
    assert volumes == {f"./{folder}": f"/app/{folder}" for folder in ("data", "runs", "notebooks")}
    assert "\nWORKDIR /app\n" in DOCKERFILE
    [variables] = re.findall(r"^ENV (.+)", DOCKERFILE, re.MULTILINE)
    assert all(value.startswith("/app/data/") for value in re.findall(r"=(\S+)", variables))


def test_pages_are_offered_to_this_machine_alone():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
