"""The id of a request: the client's ``X-Request-Id``, or a new one. It is in responses, logs and routes."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weir.errors import InvalidRequest, WeirError
from weir.logs import REQUEST_ID

HEADER = "x-request-id"
#: An id is a part of a URL and of log lines.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:=@+-]{0,127}")


class RequestIds:
    """ASGI middleware that identifies requests, and refuses those with an invalid id.

    Handlers find the id in ``request.state.request_id``, log records in :data:`weir.logs.REQUEST_ID`, and the next
    process in the header of the request.

    Args:
        refuse: creates the response of a refusal.
        answered: whether responses get the id here. Ray Serve's proxy adds the id of the request's header to every
            response by itself, and gives a request without that header a new id, so there it would be doubled.
    """

    def __init__(self, app: ASGIApp, refuse: Callable[[WeirError], Response], answered: bool = True):
        self._app = app
        self._refuse = refuse
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER)
        valid = given is not None and _ID.fullmatch(given) is not None
        id = given if given is not None and valid else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and self._answered:
                MutableHeaders(scope=message)[HEADER] = id
            await send(message)

        if given is not None and not valid:
            error = InvalidRequest(
                f"X-Request-Id has {len(given)} characters, or characters that are not accepted; accepted: 1 to 128 "
                "letters, digits and ._~:=@+-, such as a UUID",
                param="X-Request-Id",
            )
            await self._refuse(error)(scope, receive, send_with_id)
            return
        scope.setdefault("state", {})["request_id"] = id
        MutableHeaders(scope=scope)[HEADER] = id
        REQUEST_ID.set(id)
        await self._app(scope, receive, send_with_id)
