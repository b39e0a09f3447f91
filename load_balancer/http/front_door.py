"""The front door: what Ray Serve's proxy does with a request before it forwards it to a load balancer.

Ray Serve calls :func:`front_door` in the process of every proxy, if the environment variable
``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names it. ``weir up`` and the files for clusters in ``deploy/`` set it.
"""

from __future__ import annotations

import logging

import uvicorn.config
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from load_balancer.http.request_id import RequestIds
from load_balancer.http.responses import UNFORESEEN, failure
from weir.errors import DeadlineExceeded, NotFound, NotReady, WeirError
from weir.http_limits import ASCII_HEADERS, CONTROL_HEADERS

log = logging.getLogger(__name__)

#: Paths of Ray Serve itself; clusters ask for its health.
OWN, HEALTH = "/-/", "/-/healthz"
#: What Ray Serve answers in plain text → the error of the API; everything else is unforeseen.
_ERRORS = {
    404: NotReady("the service is not deployed yet; try again", retry_after_s=5.0),
    408: DeadlineExceeded("no answer was ready in time"),
    503: NotReady("no load balancer is ready; try again", retry_after_s=5.0),
    504: DeadlineExceeded("no answer was ready in time"),
}


def front_door() -> list[Middleware]:
    """Limits the connections of this process, and returns the middleware of its HTTP server, the outermost last."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = "load_balancer.http.connection:BoundedProtocol"
    return [Middleware(FrontDoor), Middleware(RequestIds, refuse=failure)]


class FrontDoor:
    """ASGI middleware that keeps clients from Ray Serve's own paths and headers, and its own words from clients.

    Every error of Ray Serve itself is answered in the format of the API.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        if not path.startswith("/") or (path.startswith(OWN) and path != HEALTH):
            await failure(NotFound(f"there is no {path[:64]}"))(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if _allowed(_plain(name), value)]
        started = translated = False

        async def send_in_format(message: Message) -> None:
            nonlocal started, translated
            started = True
            if message["type"] == "http.response.start":
                kind = Headers(raw=message["headers"]).get("content-type", "")
                translated = message["status"] >= 400 and not kind.startswith("application/json")
                if translated:
                    log.warning("Ray Serve answered %d", message["status"])
                    error = _ERRORS.get(message["status"], WeirError(UNFORESEEN))
                    await failure(error)(scope, receive, send)
            if not translated:
                await send(message)

        try:
            await self._app({**scope, "headers": headers}, receive, send_in_format)
        except Exception:
            log.exception("Ray Serve failed at a request")
            if not started:
                await failure(WeirError(UNFORESEEN))(scope, receive, send)


def _allowed(name: str, value: bytes) -> bool:
    """Whether a header may reach Ray Serve. The id of a request was checked before."""
    return name not in CONTROL_HEADERS and (name not in ASCII_HEADERS or value.isascii())


def _plain(name: bytes) -> str:
    return name.decode("latin-1").lower().replace("_", "-")
