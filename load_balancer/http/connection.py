"""Limits of connections to the HTTP server: size and number of headers, time for a head, and quiet connections.

uvicorn's protocol collects the head of a request in memory, however long it is, and waits for its end for ever.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from load_balancer.http.request_id import HEADER
from load_balancer.http.responses import to_json
from weir.errors import BodyTooSlow, HeadersTooLarge, InvalidRequest, WeirError
from weir.http_limits import HEAD_S, MOST_HEAD_BYTES

#: Largest number of headers.
MOST_HEADERS = 100
#: Largest number of connections without a request in progress; the one that has been quiet longest is closed.
MOST_QUIET = 1024


class BoundedProtocol(HttpToolsProtocol):
    """One connection to a client. What exceeds a limit is refused in the format of the API, and ends the connection.

    Upgrades of the protocol are ignored, as HTTP allows: a request for a web socket is answered as any other.
    """

    _quiet: ClassVar[OrderedDict[BoundedProtocol, None]] = OrderedDict()

    def __init__(self, *args: Any, **fields: Any):
        super().__init__(*args, **fields)
        self._refusal: WeirError | None = None
        #: Bytes since the last part of a request that was complete: of a head, or of trailers after a chunked body.
        self._pending_bytes = 0
        self._head_bytes = 0
        self._in_head = self._in_body = False
        self._time_limit: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limit_time()
        self._become_quiet()

    def connection_lost(self, exc: Exception | None) -> None:
        self._quiet.pop(self, None)
        self._unlimit_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._pending_bytes += len(data)
        super().data_received(data)
        if self._pending_bytes > MOST_HEAD_BYTES:
            self._refuse(_too_large())

    def _should_upgrade_to_ws(self) -> bool:
        return False

    # ---------------------------------------------------------------------- the parser; exceptions end the parsing

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._pending_bytes = self._head_bytes = 0
        self._in_head = True
        if self._time_limit is None:
            self._limit_time()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if len(self.headers) >= MOST_HEADERS or self._head_bytes > MOST_HEAD_BYTES:
            self._refusal = _too_large()
            raise self._refusal
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._pending_bytes = 0
        self._in_head, self._in_body = False, True
        self._unlimit_time()
        self._quiet.pop(self, None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._pending_bytes = 0
        self._in_body = False
        self._unlimit_time()
        super().on_message_complete()

    # ------------------------------------------------------------------------------------------------ responses

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._become_quiet()
            if self._in_body:
                self._limit_time()

    def send_400_response(self, msg: str) -> None:
        """Answers what the parser does not take; uvicorn calls it."""
        self._refuse(self._refusal or InvalidRequest("the request is not valid HTTP/1.1"))

    def _refuse(self, error: WeirError) -> None:
        """Answers with an error and closes the connection; only closes it while another answer is being sent."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = to_json(error.to_dict())
            lines = [
                f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
                "content-type: application/json",
                f"content-length: {len(body)}",
                f"{HEADER}: {uuid.uuid4().hex}",
                "connection: close",
            ]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()

    # --------------------------------------------------------------------------------------------------- limits

    def _become_quiet(self) -> None:
        self._quiet[self] = None
        self._quiet.move_to_end(self)
        if len(self._quiet) > MOST_QUIET:
            longest, _ = self._quiet.popitem(last=False)
            longest.transport.close()

    def _limit_time(self) -> None:
        self._unlimit_time()
        self._time_limit = self.loop.call_later(HEAD_S, self._time_is_over)

    def _unlimit_time(self) -> None:
        if self._time_limit is not None:
            self._time_limit.cancel()
            self._time_limit = None

    def _time_is_over(self) -> None:
        self._time_limit = None
        if self._in_head:
            self._refuse(BodyTooSlow(f"the headers did not arrive within {HEAD_S:g} s"))
        else:
            self.transport.close()


def _too_large() -> HeadersTooLarge:
    return HeadersTooLarge(
        f"the request line and the headers are too large; accepted: at most {MOST_HEAD_BYTES} bytes and "
        f"{MOST_HEADERS} headers"
    )
