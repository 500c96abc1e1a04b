"""Serve a finished run or an exported file over HTTP, with a web page.

Only this machine can reach the server, unless an address and a token are given. It stores and logs no images.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from transfer_learning.cli.parser import Parser, run_main
from transfer_learning.errors import UserError, needs_extra
from transfer_learning.experiments.trained_model import find_trained_model

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  transfer-learning serve runs/mine
  TL_TOKEN=$(openssl rand -hex 16) transfer-learning serve runs/mine --address 0.0.0.0
  transfer-learning serve runs/mine --engine ray --replicas 4"""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
ENGINES = ("uvicorn", "ray")
SHORTEST_TOKEN = 16  # characters


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    find_trained_model(flags.model)  # fails now, not in a replica
    place = Path(flags.model).expanduser().resolve()
    with needs_extra("serve"):
        from transfer_learning.serving.app import Service, make_app
        from transfer_learning.serving.drift import Reference
        from transfer_learning.serving.guard import Limits
        from transfer_learning.serving.server import bound_socket, serve

    def service() -> Service:
        logger.info("Loading the model.")
        predictor, reference = find_trained_model(str(place)).open(), None
        if flags.drift and hasattr(predictor, "validation_probabilities"):
            probabilities = predictor.validation_probabilities()
            if probabilities is not None:
                reference = Reference(probabilities, predictor.validation_features())
        limits = Limits(
            body_bytes=int(flags.max_megabytes * 1e6),
            all_bodies_bytes=int(10 * flags.max_megabytes * 1e6),
            pixels=int(flags.max_megapixels * 1e6),
            images=flags.max_waiting,
            seconds=flags.seconds,
        )
        return Service(predictor, place.stem if place.is_file() else place.name, limits, reference)

    listening, host_names = bound_socket(flags.address, flags.port), [flags.address, *flags.host_name]
    if flags.engine == "ray":
        from transfer_learning.serving.ray_engine import serve_on_ray

        port = listening.getsockname()[1]
        listening.close()  # it was free
        serve_on_ray(
            lambda: make_app(service(), flags.token, host_names), flags.address, port, flags.replicas, flags.max_waiting
        )
    else:
        served = service()
        serve(make_app(served, flags.token, host_names), served, listening)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the flags.

    Raises:
        UserError: an address that others can reach has no token, or a value is out of range.
    """
    parser = Parser("serve", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("model", metavar="RUN|EXPORT", help="a directory that `run` made, or an exported file")
    parser.add_argument("--address", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port to listen on; 0: any free port (default: 8000)"
    )
    token = (
        "secret that clients must send; needed if other machines can reach the address; safer in the variable TL_TOKEN"
    )
    parser.add_argument("--token", default=os.environ.get("TL_TOKEN", ""), help=token)
    names = "a name of this server that the header Host may have; may be repeated"
    parser.add_argument("--host-name", action="append", default=[], metavar="NAME", help=names)
    parser.add_argument("--max-megabytes", type=float, default=20, metavar="X", help="largest request (default: 20)")
    parser.add_argument("--max-megapixels", type=float, default=50, metavar="X", help="largest image (default: 50)")
    waiting = "most images that wait at the same time; more get the answer 503 (default: 128)"
    parser.add_argument("--max-waiting", type=int, default=128, metavar="N", help=waiting)
    parser.add_argument(
        "--seconds", type=float, default=30, metavar="X", help="time limit of a request, in seconds (default: 30)"
    )
    drift = "compare the served images with the validation images; only counts are stored (default: yes)"
    parser.add_argument("--drift", action=argparse.BooleanOptionalAction, default=True, help=drift)
    engine = "uvicorn: one process; ray: --replicas processes on a Ray cluster (default: uvicorn)"
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help=engine)
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="processes of --engine ray (default: 1)")
    flags = parser.parse_args(arguments)
    if flags.replicas < 1 or (flags.replicas > 1 and flags.engine != "ray"):
        raise UserError(
            f"--replicas {flags.replicas} needs --engine ray and at least one process; give both, or neither."
        )
    if flags.address not in LOOPBACK and not flags.token:
        raise UserError(
            f"--address {flags.address} can be reached by others, which needs a token; give one with --token or in the "
            "variable TL_TOKEN, or leave out --address."
        )
    if flags.token and (len(flags.token) < SHORTEST_TOKEN or not flags.token.isascii()):
        raise UserError(
            f"The token has {len(flags.token)} characters; give {SHORTEST_TOKEN} or more letters and digits, such as "
            "those of openssl rand -hex 16."
        )
    for name, lowest in (("max_megabytes", 0.1), ("max_megapixels", 0.1), ("max_waiting", 1), ("seconds", 1)):
        if not getattr(flags, name) >= lowest:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(flags, name):g} is too small; give {lowest:g} or more."
            )
    if not 0 <= flags.port < 2**16:
        raise UserError(f"--port {flags.port} is not a port; give a number from 0 to 65535.")
    return flags


if __name__ == "__main__":
    sys.exit(run_main(main))
