"""The process: its socket, its signals and its end."""

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from transfer_learning.errors import UserError
from transfer_learning.serving.app import Service
from transfer_learning.serving.guard import MOST_REQUESTS

logger = logging.getLogger(__name__)

SECONDS_NOT_READY = 2  # between SIGTERM and the end of the socket: what watches /ready sends nothing more by then
SECONDS_TO_SEND_HEADERS = 10


def bound_socket(address: str, port: int) -> socket.socket:
    """Takes a port, before anything slow happens.

    Raises:
        UserError: it is in use, or not allowed, or the address is not one of this machine.
    """
    try:
        family, kind, *_, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
        except BaseException:
            listening.close()
            raise
        return listening
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"Port {port} of {address} cannot be opened ({reason}); end what uses it, or give another --port or --address."
        ) from None


def serve(app: FastAPI, service: Service, listening: socket.socket) -> None:
    """Answers requests until SIGTERM or Ctrl-C, and then those that have begun."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # a warning for whatever is no HTTP would fill the log
    Server(config_of(app, service), service).run([listening])


def config_of(app: FastAPI, service: Service) -> uvicorn.Config:
    """Returns uvicorn's settings: without WebSockets, log of requests and name of the server."""
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        limit_concurrency=MOST_REQUESTS,
        timeout_graceful_shutdown=int(2 * service.limits.seconds),
    )


class Server(uvicorn.Server):
    """Ends with exit code 0 after a signal; after SIGTERM it is not ready for a moment before it closes its socket."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the application, then opens the sockets and says where."""
        await super().startup(sockets)
        for listening in sockets or []:
            host, port, *_ = listening.getsockname()
            name = f"[{host}]" if ":" in host else host
            logger.info(f"Serving {self._service.name} at http://{name}:{port}/ (Ctrl-C ends it).")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for SIGTERM and SIGINT."""
        is_first, self._service.is_ready = self._service.is_ready, False
        if sig == signal.SIGTERM and is_first:
            asyncio.get_running_loop().call_later(SECONDS_NOT_READY, self._end)
        else:
            self._end()

    def _end(self) -> None:
        self.should_exit = True


class _Protocol(H11Protocol):
    """Closes a connection whose first request does not arrive; uvicorn waits for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(SECONDS_TO_SEND_HEADERS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()
