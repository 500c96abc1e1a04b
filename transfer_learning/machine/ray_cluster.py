"""A Ray cluster that a command joins, or starts on this machine."""

import argparse
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from transfer_learning.errors import UserError, needs_extra

CONNECTING_SECONDS = 10.0
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's warning about it
}


class PerWorker(NamedTuple):
    """What each worker gets of the cluster."""

    cpus: int
    gpus: int

    @classmethod
    def of(cls, flags: argparse.Namespace) -> "PerWorker":
        """UserError for values out of range."""
        if flags.cpus_per_worker < 1 or flags.gpus_per_worker < 0:
            raise UserError(
                f"--cpus-per-worker {flags.cpus_per_worker} --gpus-per-worker {flags.gpus_per_worker} is out of range; give "
                "at least 1 and 0."
            )
        return cls(flags.cpus_per_worker, flags.gpus_per_worker)


def add_ray_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ray", default="", metavar="ADDRESS", help="start workers on the Ray cluster at HOST:PORT, or auto"
    )
    parser.add_argument("--cpus-per-worker", type=int, default=1, metavar="N", help="CPUs of a Ray worker (default: 1)")
    parser.add_argument("--gpus-per-worker", type=int, default=0, metavar="N", help="GPUs of a Ray worker (default: 0)")


@contextmanager
def joined_cluster(address: str, num_cpus: int = 0) -> Iterator[None]:
    """Joins a cluster, and leaves it at the end of the block, which ends all that was started in it.

    Args:
        address: HOST:PORT of the cluster's head; "auto": RAY_ADDRESS, or the cluster of this machine; "": starts one on
            this machine, with `num_cpus`.

    Raises:
        MissingExtra: Ray is not installed.
        UserError: the cluster cannot be joined or started.
    """
    os.environ |= SETTINGS
    with needs_extra("ray"):
        import ray

    place = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    started: dict[str, Any] = {} if place else {"num_cpus": num_cpus, "include_dashboard": False}
    try:
        if place not in ("", "auto"):
            host, _, port = place.rpartition(":")
            if "/" in host or not (host and port.isdigit()):
                raise ValueError("HOST:PORT was expected, such as 10.0.0.5:6379")
            socket.create_connection((host, int(port)), CONNECTING_SECONDS).close()  # Ray itself waits for minutes
        ray.init(place or "local", log_to_driver=False, logging_level=logging.CRITICAL, **started)
    except Exception as error:  # Ray raises all kinds, also Exception itself
        reason = " ".join(str(error).split())[:300]
        if not place:
            raise UserError(
                f"Ray did not start ({reason}); wait until the machine is less busy, then try again."
            ) from None
        raise UserError(
            f"--ray {address} cannot be joined ({reason}); run this command on a machine that `ray start` has added to "
            "the cluster, with the same RAY_AUTH_TOKEN or token file."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()
