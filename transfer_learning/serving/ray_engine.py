"""The same application in several processes on a Ray cluster: replicas that Ray starts, balances and replaces."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from transfer_learning.cli.console import muted
from transfer_learning.errors import UserError, needs_extra
from transfer_learning.machine.ray_cluster import SETTINGS
from transfer_learning.machine.resources import usable_cores

logger = logging.getLogger(__name__)

NAME = "transfer-learning"  # of the application in the cluster


def serve_on_ray(build: Callable[[], FastAPI], address: str, port: int, replicas: int, waiting: int) -> None:
    """Answers requests until SIGTERM or Ctrl-C.

    Joins the cluster of the variable RAY_ADDRESS, or else starts one on this machine, without dashboard.

    Args:
        build: called in each replica.
        address: and `port`, where Ray's HTTP proxy listens.
        replicas: processes, each with a CPU of the cluster.
        waiting: requests in work per replica; more get 503.

    Raises:
        MissingExtra: Ray is not installed.
        UserError: the cluster cannot be started or joined.
    """
    os.environ |= {**SETTINGS, "RAY_AUTH_MODE": "token"}  # for all of Ray's own ports
    with needs_extra("ray"):
        import ray
        from ray import serve

    joins = bool(os.environ.get("RAY_ADDRESS"))
    started: dict[str, Any] = {} if joins else {"num_cpus": max(usable_cores(), replicas), "include_dashboard": False}
    logs = {"enable_access_log": False, "log_level": "WARNING"}
    try:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **started)
            with muted("ray.serve"):
                serve.start(http_options={"host": address, "port": port}, logging_config=logs)
                deployment: Any = serve.deployment(
                    serve.ingress(build)(),
                    name=NAME,
                    num_replicas=replicas,
                    max_ongoing_requests=waiting,
                    max_queued_requests=waiting,
                    logging_config=logs,
                )
                serve.run(deployment.bind(), name=NAME, route_prefix="/")
        except Exception as error:  # Ray raises all kinds, also Exception itself
            reason = " ".join(str(error).split())[:300]
            advice = "check RAY_ADDRESS and the token" if joins else "wait until the machine is less busy"
            raise UserError(f"Ray did not start ({reason}); {advice}, then try again.") from None
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):  # only now: Ray sets handlers of its own
            signal.signal(number, lambda *_: ended.set())
        logger.info(f"Serving {replicas} replicas at http://{address}:{port}/ (Ctrl-C ends them).")
        ended.wait()
        with muted("ray.serve"):
            serve.delete(NAME)
    finally:
        ray.shutdown()
