"""A Ray cluster of two node processes on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest


@contextmanager
def local_cluster(home: Path) -> Iterator:
    """Yields `ray.cluster_utils.Cluster`: a head with 2 CPUs and a node with 1; Ray's token goes below `home`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        try:
            cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()


def processes(words: list[str], start: int = 0) -> list[psutil.Process]:
    """The processes below this one whose command line has these words from a position on."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[start : start + len(words)] == words:
                found.append(process)
    return found
