"""Processor cores and memory that this process may use: the machine's, or less in a container or a batch job."""

import os
import platform
from contextlib import suppress
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")

# Files of both versions of Linux' control groups: limit, usage, and the field of memory.stat that the kernel can reclaim
VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
NO_LIMIT = 2**60  # version 1 writes a number somewhat below 2^63 for no limit
VERSION_2 = "memory.max", "memory.current", "inactive_file"


def usable_cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """Such as ``Intel(R) Xeon(R) Processor``."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def total_bytes() -> int:
    """Memory of the machine, or the lowest limit of this process's control groups."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def available_bytes() -> int:
    """Memory that can be allocated without swapping or reaching a limit; at least 0."""
    return max(0, min([psutil.virtual_memory().available, *(limit - used for limit, used in _limits())]))


def _limits() -> list[tuple[int, int]]:
    """Limit and usage, in bytes, of each limited control group from this process's own up to the root.

    In a container the path may be that of the host, and only the root, which is then its own, can be read.
    """
    found = []
    with suppress(OSError, ValueError):  # not Linux, or another kernel
        for line in OWN_CGROUPS.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                root, names = CGROUPS, VERSION_2
            elif "memory" in controllers.split(","):
                root, names = CGROUPS / "memory", VERSION_1
            else:
                continue
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(root):
                    with suppress(OSError, ValueError):  # missing, or "max" in version 2, which is no limit
                        found.append(_limit(folder, *names))
    return found


def _limit(group: Path, limit: str, usage: str, reclaimable: str) -> tuple[int, int]:
    most = int((group / limit).read_text())
    if most > NO_LIMIT:
        raise ValueError("no limit")
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return most, int((group / usage).read_text()) - int(statistics.get(reclaimable, 0))
