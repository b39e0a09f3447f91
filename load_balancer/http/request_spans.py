"""The span of a request for images, from its headers to the end of its response; see :mod:`weir.tracing`."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from load_balancer.http.openapi import EDITS, GENERATIONS
from weir import tracing


class RequestSpans:
    """ASGI middleware that records a span of every request for images, refused ones included.

    It continues the trace of the client's ``traceparent`` header. A request that is answered with 202 goes on after its
    span has ended.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in (GENERATIONS, EDITS):
            await self._app(scope, receive, send)
            return
        parent = Headers(scope=scope).get("traceparent", "")
        with tracing.span(f"POST {scope['path']}", "server", parent=parent) as span:

            async def send_recorded(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set(status=status)
                    if status >= 500:
                        span.fail(str(status))
                await send(message)

            await self._app(scope, receive, send_recorded)
