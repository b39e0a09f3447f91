"""The HTTP face: OpenAI's images API and health. Thin: it reads, calls the balancer, and writes."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from load_balancer.balancer import Balancer
from load_balancer.callers import Callers
from load_balancer.drawing import Drawn
from load_balancer.encode import encoded
from load_balancer.files import Files
from load_balancer.gate import Gate
from load_balancer.order import Order
from load_balancer.schema import ERROR, RequestRules
from weir.config import FamilyConfig, LimitsConfig
from weir.core import Path
from weir.errors import BodyTooLarge, BodyTooSlow, InvalidRequest, WeirError

log = logging.getLogger(__name__)

GENERATIONS = "/v1/images/generations"
FILES = "/v1/images/files"
#: Things change: nobody is told to stay away for longer.
MOST_RETRY_AFTER_S = 600.0


def create_app(
    balancer: Balancer, family: FamilyConfig, limits: LimitsConfig, callers: Callers | None = None
) -> FastAPI:
    """The ASGI application of one load balancer; without ``callers`` it is open to everybody."""
    failures: dict[int | str, dict[str, Any]] = {
        "default": {"description": "An error.", "content": {"application/json": {"schema": ERROR}}}
    }
    app = FastAPI(title="Weir", openapi_url="/openapi.json", redoc_url=None, responses=failures)
    app.add_middleware(Gate, callers=callers or Callers(), refuse=_failure)
    rules = RequestRules(family, limits)
    files = Files()
    started = int(time.time())

    @app.post(
        GENERATIONS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": rules.described()}},
            }
        },
    )
    @_typed_errors
    async def generations(request: Request) -> Response:
        order = replace(rules.read(await _body(request, limits)), caller=request.state.caller)
        drawn = await balancer.draw(order)
        images = [await encoded(d.result.image, order.output_format, order.compression) for d in drawn]
        if order.response_format == "b64_json":
            pictures = [b'"b64_json":"%b"' % base64.b64encode(image) for image in images]
        else:
            pictures = []
            for image in images:
                # Not the id: others learn it where a request of theirs resumes from this one.
                name = f"{secrets.token_urlsafe(24)}.{order.output_format}"
                files.put(name, image)
                pictures.append(b'"url":%b' % _json(f"{str(request.base_url).rstrip('/')}{FILES}/{name}"))
        return Response(_answer(order, drawn, pictures), media_type="application/json")

    @app.get("/v1/models")
    async def models() -> Response:
        listed = [{"id": name, "object": "model", "created": started, "owned_by": "weir"} for name in rules.models]
        return _reply({"object": "list", "data": listed})

    pictures_of: dict[str, Any] = {"content": {f"image/{kind}": {} for kind in ("png", "jpeg", "webp")}}

    @app.get(FILES + "/{name}", response_class=Response, responses={200: pictures_of})
    async def file(name: str) -> Response:
        content = files.get(name)
        if content is None:
            return _failure(InvalidRequest("there is no such file, or newer ones pushed it out"), 404)
        return Response(content, media_type=f"image/{name.rpartition('.')[2]}")

    @app.get("/healthz")
    async def healthz() -> Response:
        return _reply({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        state = balancer.readiness()
        return _reply(state, 200 if state["ready"] else 503)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:64]
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            problem = InvalidRequest(f"{path} takes {allowed}, not {request.method[:16]}")
        else:
            problem = InvalidRequest(f"there is no {path}; images are drawn by POST {GENERATIONS}")
        return _failure(problem, error.status_code, error.headers)

    return app


def _typed_errors(
    handler: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """Answers every failure in OpenAI's shape; what nobody foresaw is logged here and shown to nobody."""

    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except WeirError as error:
            return _failure(error)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception:
            log.exception("a request failed")
            return _failure(WeirError("something went wrong inside; the log of the service says what"))

    guarded.__name__ = getattr(handler, "__name__", "guarded")
    return guarded


async def _body(request: Request, limits: LimitsConfig) -> bytes:
    """The body, of which no more than the limit is ever read.

    Raises:
        InvalidRequest: it is not declared as JSON.
        BodyTooLarge: it is longer than allowed, as declared or as sent.
        BodyTooSlow: it is not there in time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest(f"the content type is {kind[:64] or 'missing'}; accepted: application/json")
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
        raise BodyTooSlow(f"the body was not there within {limits.body_s:g} s") from None
    return bytes(body)


def _answer(order: Order, drawn: list[Drawn], pictures: list[bytes]) -> bytes:
    """The body of an answer. Assembled from parts, for a JSON encoder would look at every byte of the pictures."""
    items = b",".join(
        b'{%b,"weir":%b}' % (picture, _json(_about(one))) for picture, one in zip(pictures, drawn, strict=True)
    )
    rest = {
        "output_format": order.output_format,
        "size": f"{order.width}x{order.height}",
        "quality": order.quality,
        "background": order.background,
    }
    return b'{"created":%d,"data":[%b],%b' % (int(time.time()), items, _json(rest)[1:])


def _about(one: Drawn) -> dict[str, Any]:
    return {
        "id": one.result.id,
        "path": one.path.value,
        "model": one.model,
        "confidence": None if one.confidence is None else round(one.confidence, 6),
        "seed": one.seed,
        "steps": one.result.steps,
        "queue_s": round(one.queue_s, 6),
        "compute_s": round(one.compute_s, 6),
        "latency_s": round(one.latency_s, 6),
        "plan_version": one.plan_version,
        "cache": _reused(one),
        "emulated": one.result.emulated,
    }


def _reused(one: Drawn) -> dict[str, Any] | None:
    """What the cache gave: how similar the nearest cached prompt is, its id, and the step that was resumed at."""
    reuse = one.reuse
    if reuse is None or reuse.similarity is None:
        return None
    similarity = round(reuse.similarity, 6)
    return {"similarity": similarity, "k": one.result.resumed_at if one.path is Path.CACHE else 0, "id": reuse.entry}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _reply(value: object, status: int = 200) -> Response:
    return Response(_json(value), status_code=status, media_type="application/json")


def _failure(error: WeirError, status: int | None = None, headers: Any = None) -> Response:
    response = _reply(error.to_dict(), status or error.status)
    for name, value in (headers or {}).items():
        response.headers[name] = value
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if response.status_code in (429, 503):  # without a better guess: a second
        seconds = min(MOST_RETRY_AFTER_S, max(1.0, error.retry_after_s or 1.0))
        response.headers["Retry-After"] = str(math.ceil(seconds))
    return response
