"""The bodies of responses: images, the status of a request, failures."""

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

from load_balancer.http.jobs import UNFORESEEN, AnyJob, Job, Jobs
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage
from weir.cascade import FROM_CACHE
from weir.core import Edit
from weir.errors import WeirError

log = logging.getLogger(__name__)

#: Response headers that scripts of other origins may read.
EXPOSED = ("Location", "Retry-After", "X-Request-Id", "Idempotent-Replayed", "Preference-Applied")
#: Largest ``Retry-After``, seconds: predictions further ahead are unreliable.
MOST_RETRY_AFTER_S = 600.0


def generated(job: Job, images: list[GeneratedImage], contents: list[bytes]) -> bytes:
    """OpenAI's images response, with the field ``weir`` for each image.

    It is assembled from parts, because a JSON encoder would check every byte of the images.

    Args:
        contents: one field with its value for each image, from :func:`inline` or :func:`linked`.
    """
    items = b",".join(
        b'{%b,"weir":%b}' % (content, to_json(about(job, one))) for content, one in zip(contents, images, strict=True)
    )
    return b'{"created":%d,"data":[%b],%b' % (int(job.created), items, to_json(settings(job.request))[1:])


def inline(image: bytes) -> bytes:
    """A field with the image in base64."""
    return b'"b64_json":"%b"' % base64.b64encode(image)


def linked(url: str) -> bytes:
    """A field with the URL of the image."""
    return b'"url":%b' % to_json(url)


def settings(request: GenerationRequest) -> dict[str, Any]:
    """The settings of the request that OpenAI's responses and events repeat."""
    return {
        "output_format": request.output_format,
        "size": str(request.size),
        **({"requested_size": request.requested_size} if request.requested_size else {}),
        "quality": request.quality,
        "background": request.background,
    }


def about(job: Job, one: GeneratedImage) -> dict[str, Any]:
    """The field ``weir``: how an image of a request was generated."""
    return {
        "id": job.id,
        "path": one.path,
        "model": one.model,
        "confidence": None if one.confidence is None else round(one.confidence, 6),
        "heavy_confidence": None if one.heavy_confidence is None else round(one.heavy_confidence, 6),
        "draws": one.draws,
        "seed": one.seed,
        "steps": one.result.steps,
        "batch_size": one.result.batch_size,
        "queue_s": round(one.queue_s, 6),
        "compute_s": round(one.compute_s, 6),
        "latency_s": round(one.latency_s, 6),
        "plan_version": one.plan_version,
        "made_with": one.made_with,
        "cache": _cache_use(one),
        "edit": _edit_use(job.request.edit, one),
        "unused_tokens": one.result.unused_tokens,
        "unused_negative_tokens": one.result.unused_negative_tokens,
        "emulated": one.result.emulated,
    }


def _cache_use(one: GeneratedImage) -> dict[str, Any] | None:
    """The similarity of the nearest cached prompt, its id, and the step that the run resumed at."""
    if one.lookup.similarity is None:
        return None
    k = one.result.resumed_at if one.path == FROM_CACHE else 0
    return {"similarity": round(one.lookup.similarity, 6), "k": k, "id": one.lookup.entry}


def _edit_use(edit: Edit | None, one: GeneratedImage) -> dict[str, Any] | None:
    if edit is None:
        return None
    return {"strength": edit.strength, "masked": edit.mask is not None, "first_step": one.result.resumed_at}


def state(jobs: Jobs, job: AnyJob) -> bytes:
    """The status of a request, with its answer in ``result``."""
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
    """Turns every failure of a handler into an error response; details of unexpected failures are only logged."""

    @wraps(handler)
    async def guarded(*args: Any, **fields: Any) -> Response:
        try:
            return await handler(*args, **fields)
        except WeirError as error:
            log.info("responded %d %s", error.status, error.code)  # messages quote the client's input
            return failure(error)
        except ClientDisconnect:
            return Response(status_code=499)  # the client has disconnected
        except Exception:
            log.exception("a request failed")
            return failure(WeirError(UNFORESEEN))

    return guarded


def to_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def reply(value: object, status: int = 200) -> Response:
    """A JSON response."""
    return Response(to_json(value), status_code=status, media_type="application/json")


def failure(error: WeirError, status: int | None = None, headers: Any = None) -> Response:
    """The response of an error in OpenAI's format, with ``Retry-After`` where a retry makes sense."""
    response = reply(error.to_dict(), status or error.status)
    for name, value in (headers or {}).items():
        response.headers[name] = value
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if response.status_code in (429, 503):  # one second by default
        seconds = min(MOST_RETRY_AFTER_S, max(1.0, error.retry_after_s or 1.0))
        response.headers["Retry-After"] = str(math.ceil(seconds))
    return response
