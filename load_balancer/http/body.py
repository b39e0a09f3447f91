"""Reads the body of a request within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from weir.errors import BodyTooLarge, BodyTooSlow, InvalidRequest

JSON = "application/json"


async def json_body(request: Request, most_bytes: int, within_s: float) -> bytes:
    """Reads the body, and never more than the limit.

    Raises:
        InvalidRequest: the content type is not JSON, or the body is compressed.
        BodyTooLarge: the declared or the received length is above the limit.
        BodyTooSlow: it did not arrive in time.
    """
    content_type(request, JSON)
    body = bytearray()
    async with in_time(within_s):
        async for chunk in chunks(request, most_bytes):
            body += chunk
    return bytes(body)


def content_type(request: Request, *accepted: str) -> str:
    """The content type of the body, without its parameters.

    Raises:
        InvalidRequest: it is none of those accepted, or the body is compressed.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in accepted:
        raise InvalidRequest(f"the content type is {kind[:64] or 'missing'}; accepted: {' or '.join(accepted)}")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise InvalidRequest(f"the content encoding is {encoding[:64]}; send the body as it is")
    return kind


async def chunks(request: Request, most_bytes: int) -> AsyncGenerator[bytes]:
    """The body as it arrives.

    Raises:
        BodyTooLarge: the declared or the received length is above the limit.
    """
    too_large = BodyTooLarge(f"the body is too large; accepted: at most {most_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most_bytes:
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > most_bytes:
            raise too_large
        yield chunk


@asynccontextmanager
async def in_time(seconds: float) -> AsyncIterator[None]:
    """Limits the time in which a body arrives.

    Raises:
        BodyTooSlow: it did not.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {seconds:g} s") from None
