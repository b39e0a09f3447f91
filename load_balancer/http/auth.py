"""Authentication of the API: which paths need a key, and which are open."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from load_balancer.http.api_keys import ApiKeys
from weir.errors import WeirError

#: Paths that need no key: the page, health, and the description of the API. All others need one.
OPEN = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})
#: Prefixes of paths that need no key: file names are secrets of their caller, and browsers send no key for images.
OPEN_BELOW = ("/v1/images/files/", "/page/")


class Authentication:
    """ASGI middleware that identifies the caller before the body of a request is read, and refuses unknown callers.

    Handlers find the :class:`Caller` in ``request.state.caller``.

    Args:
        refuse: creates the response of a refusal.
    """

    def __init__(self, app: ASGIApp, callers: ApiKeys, refuse: Callable[[WeirError], Response]):
        self._app = app
        self._callers = callers
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
            try:
                if path not in OPEN and not path.startswith(OPEN_BELOW):
                    caller = self._callers.identify(Headers(scope=scope).get("authorization"))
                    scope.setdefault("state", {})["caller"] = caller
            except WeirError as error:
                await self._refuse(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
