"""Reads the JSON body of a request within limits of size and time."""

from __future__ import annotations

import asyncio

from fastapi import Request

from weir.config import LimitsConfig
from weir.errors import BodyTooLarge, BodyTooSlow, InvalidRequest


async def json_body(request: Request, limits: LimitsConfig) -> bytes:
    """Reads the body, and never more than the limit.

    Raises:
        InvalidRequest: the content type is not JSON, or the body is compressed.
        BodyTooLarge: the declared or the received length is above the limit.
        BodyTooSlow: it did not arrive in time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest(f"the content type is {kind[:64] or 'missing'}; accepted: application/json")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise InvalidRequest(f"the content encoding is {encoding[:64]}; send the body as it is")
    most_bytes = limits.body_bytes
    too_large = BodyTooLarge(f"the body is too large; accepted: at most {most_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise too_large
    except TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {limits.body_s:g} s") from None
    return bytes(body)
