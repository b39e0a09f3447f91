"""Streams a request as server-sent events with OpenAI's names: partial images as they come, then finished images."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

from load_balancer.http.image_encoding import encoded
from load_balancer.http.jobs import UNFORESEEN, AnyJob, Job
from load_balancer.http.remote_job import RemoteJob
from load_balancer.http.responses import about, settings, to_json
from load_balancer.runner.generation_task import GeneratedImage, PartialImage
from weir.errors import WeirError

log = logging.getLogger(__name__)

PARTIAL = "image_generation.partial_image"
COMPLETED = "image_generation.completed"


async def events(job: AnyJob) -> AsyncGenerator[bytes]:
    """Yields at most ``partial_images`` partial events for each image, and then its completed event.

    A failure ends the stream with an ``error`` event. ``weir.image`` is the index of the image that an event belongs
    to. A job of another load balancer has completed events only.
    """
    try:
        async for event in _from_record(job) if isinstance(job, RemoteJob) else _from_images(job):
            yield event
    except WeirError as error:
        yield _event("error", error.to_dict())
    except Exception:
        log.exception("a stream failed")
        yield _event("error", WeirError(UNFORESEEN).to_dict())


async def _from_images(job: Job) -> AsyncGenerator[bytes]:
    shown: Counter[int] = Counter()
    async for event in job.generation.events():
        if isinstance(event, GeneratedImage):
            yield await _completed(job, event)
        elif shown[event.index] < job.request.partial_images:
            number = shown[event.index]
            shown[event.index] += 1
            yield await _partial(job, event, number)


async def _from_record(job: RemoteJob) -> AsyncGenerator[bytes]:
    for index, image in enumerate(json.loads(await job.answer())["data"]):
        fields = {"weir": {"image": index, **image["weir"]}}
        yield _image_event(job, COMPLETED, image["b64_json"].encode(), fields)


async def _partial(job: Job, event: PartialImage, number: int) -> bytes:
    partial = {"image": event.index, "role": event.variant, "step": event.step}
    request = job.request
    # A preview has the size of the latent. Clients show it in place of the finished image, so it is enlarged.
    image = await encoded(event.image, request.output_format, request.compression, (request.width, request.height))
    return _image_event(job, PARTIAL, base64.b64encode(image), {"partial_image_index": number, "weir": partial})


async def _completed(job: Job, event: GeneratedImage) -> bytes:
    image = await encoded(event.result.image, job.request.output_format, job.request.compression)
    return _image_event(job, COMPLETED, base64.b64encode(image), {"weir": {"image": event.index, **about(job, event)}})


def _image_event(job: AnyJob, kind: str, image_base64: bytes, more: dict[str, Any]) -> bytes:
    fields = {"created_at": int(time.time()), **settings(job.request), **more}
    # The image bypasses the JSON encoder, which would check every byte of it.
    return b'event: %b\ndata: {"type":"%b","b64_json":"%b",%b\n\n' % (
        kind.encode(),
        kind.encode(),
        image_base64,
        to_json(fields)[1:],
    )


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), to_json({"type": kind, **fields}))
