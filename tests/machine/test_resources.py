"""Memory is what the machine has, or what a container leaves of it, in both versions of Linux' control groups."""

from types import SimpleNamespace

import pytest

from transfer_learning.machine import resources

GB = 10**9


def group(folder, limit, used, reclaimable, version):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(version[:2], (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"cache 7\n{version[2]} {reclaimable}\n")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 64 GB, 40 of them available; a function that says in which groups this process is."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=64 * GB, available=40 * GB))
    monkeypatch.setattr(resources, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resources, "OWN_CGROUPS", tmp_path / "own")
    return (tmp_path / "own").write_text


@pytest.mark.parametrize(
    ("own", "groups", "total", "available"),
    [
        pytest.param(None, {}, 64, 40, id="no control groups"),
        pytest.param("0::/\n", {}, 64, 40, id="the machine's own root has no limit"),
        pytest.param("0::/\n", {"": ("max", 9, 0, 2)}, 64, 40, id="no limit"),
        pytest.param("0::/\n", {"": (8 * GB, 5 * GB, GB, 2)}, 8, 4, id="a container: files that can go count as free"),
        pytest.param("0::/\n", {"": (8 * GB, 9 * GB, 0, 2)}, 8, 0, id="above its limit"),
        pytest.param("0::/\n", {"": (128 * GB, GB, 0, 2)}, 64, 40, id="a limit above the machine"),
        pytest.param(
            "0::/batch/job7\n",
            {"batch": (16 * GB, 15 * GB, 0, 2), "batch/job7": (20 * GB, GB, 0, 2)},
            16,
            1,
            id="above",
        ),
        pytest.param("0::/../host/path\n", {"": (8 * GB, GB, 0, 2)}, 8, 7, id="the host's path"),
        pytest.param(
            "5:devices:/\n4:cpu,memory:/docker/ab\n0::/\n", {"memory": (8 * GB, 2 * GB, GB, 1)}, 8, 7, id="version 1"
        ),
        pytest.param(
            "4:memory:/\n0::/\n", {"memory": (2**63 - 4096, GB, 0, 1)}, 64, 40, id="version 1 without a limit"
        ),
        pytest.param("0::/\n", {"": (8 * GB, "none", 0, 2)}, 64, 40, id="what cannot be read is no limit"),
        pytest.param("0\n", {}, 64, 40, id="another kernel"),
    ],
)
def test_the_lowest_limit_counts(own, groups, total, available, machine):
    if own is not None:
        machine(own)
    for name, (limit, used, reclaimable, version) in groups.items():
        group(
            resources.CGROUPS / name,
            limit,
            used,
            reclaimable,
            resources.VERSION_1 if version == 1 else resources.VERSION_2,
        )
    assert (resources.total_bytes() / GB, resources.available_bytes() / GB) == (total, available)


def test_here_it_is_between_nothing_and_all_that_the_machine_has():
    assert 0 < resources.available_bytes() <= resources.total_bytes()
