"""What a request has to pass before the application sees it: Host, Origin, token, size, time.

Pages of other sites can make a browser send requests to this machine, also after a change of their own DNS entry (DNS
rebinding), which is why Host and Origin are checked on the loopback address, too.
"""

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/", "/page.js", "/page.css", "/health", "/ready", "/v2/health/live", "/v2/health/ready")  # need no token
SECONDS_TO_DISCARD = 5  # of a body that is too large; a client that still sends would not read the answer
MOST_REQUESTS = 512  # at the same time; each may hold its share of the memory in any case
RETRY_AFTER = {"Retry-After": "1"}
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """What one request, and all requests together, may take."""

    body_bytes: int = 20 * 10**6  # of one request
    all_bodies_bytes: int = 200 * 10**6  # in memory at the same time
    pixels: int = 50 * 10**6  # of one image
    images: int = 128  # that are decoded, waiting or predicted at the same time
    seconds: float = 30  # to send a request, and again to answer it


class Refused(Exception):
    """A request that is not served, with a status and one sentence."""

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None):
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.reason}, self.status, self.headers)


class Guard:
    """ASGI middleware: checks a request, reads its body within the limits and passes both on.

    Args:
        token: what ``Authorization: Bearer`` must hold; "" for none.
        host_names: what Host may name besides localhost and numeric addresses, which no DNS entry can be turned to.
        observe: called after each answer with its path, status and seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        token: str = "",
        host_names: Iterable[str] = (),
        observe: Callable[[str, int, float], None] = lambda path, status, seconds: None,
    ):
        self._app, self._limits, self._token, self._observe = app, limits, token.encode(), observe
        self._host_names = {"localhost", *(name.lower() for name in host_names)}
        self._bytes_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, is_read = time.monotonic(), 0, False
        chunks: list[bytes] = []

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        num_bytes = 0
        try:
            try:
                headers = Headers(scope=scope)
                self._check(headers, scope["path"])
                async with _time_limit(self._limits.seconds, Refused(408, self._too_slow("arrive"))):
                    async for chunk in _body(receive):
                        num_bytes += len(chunk)
                        self._bytes_held += len(chunk)
                        self._check_size(num_bytes)
                        is_large = num_bytes > self._limits.all_bodies_bytes // MOST_REQUESTS
                        if self._bytes_held > self._limits.all_bodies_bytes and is_large:
                            raise Refused(503, "Other requests take all memory; try again in a second.", RETRY_AFTER)
                        chunks.append(chunk)
                scope.setdefault("state", {})["body"] = b"".join(chunks)
                chunks.clear()
                is_read = True
                async with _time_limit(self._limits.seconds, Refused(503, self._too_slow("be answered"), RETRY_AFTER)):
                    await self._app(scope, receive, send_guarded)
            except Refused as refused:
                if not is_read:
                    await _discard(receive)
                if not status:
                    await refused.response()(scope, receive, send_guarded)
            except _Disconnected:
                pass
            except Exception:
                logger.exception("A request failed.")
                if not status:
                    await JSONResponse({"error": "The server failed; its log has the reason."}, 500)(
                        scope, receive, send_guarded
                    )
        finally:
            self._bytes_held -= num_bytes
            self._observe(getattr(scope.get("route"), "path", "other"), status, time.monotonic() - begun)

    def _check(self, headers: Headers, path: str) -> None:
        hosts, origin = headers.getlist("host"), headers.get("origin")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            raise Refused(403, "The Host header names another server; use the address that this one printed.")
        if origin is not None and origin.partition("://")[2] != hosts[0]:
            raise Refused(403, "The Origin header is that of another site; use the page of this server.")
        if self._token and path not in OPEN_PATHS:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token):
                reason = "The token is missing or wrong; send the header Authorization: Bearer TOKEN."
                raise Refused(401, reason, {"WWW-Authenticate": "Bearer"})
        if headers.get("content-encoding", "identity").lower() != "identity":  # nobody knows how large it becomes
            raise Refused(415, "The body is compressed; send it as it is, without the header Content-Encoding.")
        self._check_size(_content_length(headers))

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._limits.body_bytes:
            limit = self._limits.body_bytes / 1e6
            raise Refused(413, f"The body is larger than {limit:g} MB; send a smaller image, or fewer at a time.")

    def _is_own(self, host: str) -> bool:
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower().rstrip(".") in self._host_names
        return True

    def _too_slow(self, what: str) -> str:
        return f"The request took longer than {self._limits.seconds:g} s to {what}; try again."


class _Disconnected(Exception):
    """The client has left."""


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        if content := message.get("body"):
            yield content
        if not message.get("more_body"):
            return


async def _discard(receive: Receive) -> None:
    """Reads the rest of a body, for SECONDS_TO_DISCARD at most."""
    with suppress(TimeoutError, _Disconnected):
        async with asyncio.timeout(SECONDS_TO_DISCARD):
            async for _ in _body(receive):
                pass


@asynccontextmanager
async def _time_limit(seconds: float, refused: Refused) -> AsyncIterator[None]:
    """Raises `refused` if the block takes longer."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise refused from None


def _content_length(headers: Headers) -> int:
    text = headers.get("content-length", "")
    return int(text) if text.isdecimal() and text.isascii() else 0
