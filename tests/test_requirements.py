"""requirements.lock: the versions of requirements.txt, each file with its digest, none with a known vulnerability."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support import ROOT

REQUIREMENTS = (ROOT / "requirements.txt").read_text()
LOCK = (ROOT / "requirements.lock").read_text()


def locked():
    """(requirement with its marker, digests) of each block of the lock."""
    blocks = re.split(r"\n(?=\S)", "\n".join(line for line in LOCK.splitlines() if not line.lstrip().startswith("#")))
    for block in filter(str.strip, blocks):
        first, *rest = block.replace("\\\n", "\n").strip().splitlines()
        yield Requirement(first), [line.strip() for line in rest]


def test_every_package_is_locked_once_per_python_with_digests_and_without_a_host():
    entries = list(locked())
    assert len(entries) > 100
    for requirement, digests in entries:
        assert re.fullmatch(r"==[0-9a-z.+!]+", str(requirement.specifier)) and requirement.url is None
        assert digests and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", digest) for digest in digests), requirement
    for python in ("3.11.9", "3.12.1", "3.13.0"):
        environment = {
            "python_full_version": python,
            "python_version": python.rpartition(".")[0],
            "sys_platform": "linux",
        }
        names = [r.name for r, _ in entries if r.marker is None or r.marker.evaluate(environment)]
        assert len(names) == len(set(names))
    assert "://" not in LOCK and "--index" not in LOCK and "--find-links" not in LOCK and "file:" not in LOCK
    assert "make lock" in LOCK.splitlines()[1]


def test_the_lock_has_the_versions_of_the_requirements():
    versions = {canonicalize_name(requirement.name): requirement for requirement, _ in locked()}
    for line in REQUIREMENTS.splitlines():
        if line[:1].isalpha():
            wanted = Requirement(line)
            assert versions[canonicalize_name(wanted.name)].specifier == wanted.specifier, f"{line}: call `make lock`"


FLOORS = re.findall(r"^#   (\S+) (\S+) ", REQUIREMENTS, re.MULTILINE)


@pytest.mark.parametrize(("name", "floor"), FLOORS)
def test_no_package_is_below_its_security_fix(name, floor):
    found = [requirement for requirement, _ in locked() if canonicalize_name(requirement.name) == name]
    assert found
    for requirement in found:
        (pinned,) = requirement.specifier
        assert Version(pinned.version) >= Version(floor)


def test_pyproject_has_the_same_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    bounds = {
        (item.name, str(item.specifier)) for item in map(Requirement, (text for group in groups for text in group))
    }
    assert {"keras", "pillow", "jinja2", "pyarrow"} == {name for name, _ in FLOORS}
    for name, floor in FLOORS:
        found = [Version(bound.removeprefix(">=")) for package, bound in bounds if package == name]
        assert min(found) == Version(floor)
