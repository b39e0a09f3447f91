"""The bodies of responses: images, the state of a request, failures."""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from fastapi import Response
from starlette.requests import ClientDisconnect

from load_balancer.http.jobs import UNFORESEEN, Job, Jobs
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage
from weir.cascade import FROM_CACHE
from weir.errors import WeirError

log = logging.getLogger(__name__)

#: Headers that scripts of web pages on other origins may read.
EXPOSED = ("Location", "Retry-After", "X-Request-Id", "Idempotent-Replayed", "Preference-Applied")
#: Longest ``Retry-After``, seconds: things change.
MOST_RETRY_AFTER_S = 600.0


def generated(job: Job, images: list[GeneratedImage], pictures: list[bytes]) -> bytes:
    """OpenAI's images response, with the field ``weir`` beside each picture.

    Assembled from parts, for a JSON encoder would look at every byte of the pictures.

    Args:
        pictures: of each image one field with its value, as :func:`inline` and :func:`linked` make them.
    """
    items = b",".join(
        b'{%b,"weir":%b}' % (picture, to_json(about(one))) for picture, one in zip(pictures, images, strict=True)
    )
    return b'{"created":%d,"data":[%b],%b' % (int(job.created), items, to_json(settings(job.request))[1:])


def inline(image: bytes) -> bytes:
    """The picture itself, as a field."""
    return b'"b64_json":"%b"' % base64.b64encode(image)


def linked(url: str) -> bytes:
    """Where the picture lies, as a field."""
    return b'"url":%b' % to_json(url)


def settings(request: GenerationRequest) -> dict[str, Any]:
    """What OpenAI's responses and events repeat of the request."""
    return {
        "output_format": request.output_format,
        "size": f"{request.width}x{request.height}",
        **({"requested_size": request.requested_size} if request.requested_size else {}),
        "quality": request.quality,
        "background": request.background,
    }


def about(one: GeneratedImage) -> dict[str, Any]:
    """How an image came about."""
    return {
        "id": one.result.id,
        "path": one.path,
        "model": one.model,
        "confidence": None if one.confidence is None else round(one.confidence, 6),
        "heavy_confidence": None if one.heavy_confidence is None else round(one.heavy_confidence, 6),
        "draws": one.draws,
        "seed": one.seed,
        "steps": one.result.steps,
        "queue_s": round(one.queue_s, 6),
        "compute_s": round(one.compute_s, 6),
        "latency_s": round(one.latency_s, 6),
        "plan_version": one.plan_version,
        "made_with": one.made_with,
        "cache": _cache_use(one),
        "emulated": one.result.emulated,
    }


def _cache_use(one: GeneratedImage) -> dict[str, Any] | None:
    """How similar the nearest cached prompt is, its id, and the step that the run resumed at."""
    if one.lookup.similarity is None:
        return None
    k = one.result.resumed_at if one.path == FROM_CACHE else 0
    return {"similarity": round(one.lookup.similarity, 6), "k": k, "id": one.lookup.entry}


def state(jobs: Jobs, job: Job) -> bytes:
    """Where a request stands; its answer, as the request itself gets it, in ``result``."""
    status = jobs.status(job)
    expires_at = jobs.expires_at(job)
    fields = {
        "id": job.id,
        "object": "image.generation",
        "status": status.state,
        "created": int(job.created),
        "queue_position": status.position,
        "estimated_s": status.estimated_s,
        "expires_at": None if expires_at is None else math.ceil(expires_at),
        "error": None if job.error is None else job.error.to_dict()["error"],
    }
    return b'%b,"result":%b}' % (to_json(fields)[:-1], job.body or b"null")


def typed_errors(handler: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """Answers every failure of a handler in OpenAI's shape; the details of unforeseen ones are only logged."""

    @wraps(handler)
    async def guarded(*args: Any, **fields: Any) -> Response:
        try:
            return await handler(*args, **fields)
        except WeirError as error:
            return failure(error)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception:
            log.exception("a request failed")
            return failure(WeirError(UNFORESEEN))

    return guarded


def to_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def reply(value: object, status: int = 200) -> Response:
    """Anything as JSON."""
    return Response(to_json(value), status_code=status, media_type="application/json")


def failure(error: WeirError, status: int | None = None, headers: Any = None) -> Response:
    """An error in OpenAI's shape, with the seconds after which a retry makes sense."""
    response = reply(error.to_dict(), status or error.status)
    for name, value in (headers or {}).items():
        response.headers[name] = value
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if response.status_code in (429, 503):  # without a better guess: a second
        seconds = min(MOST_RETRY_AFTER_S, max(1.0, error.retry_after_s or 1.0))
        response.headers["Retry-After"] = str(math.ceil(seconds))
    return response
