"""Streams a request as server-sent events with OpenAI's names: partial images as they come, then finished images."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

from load_balancer.http.image_encoding import ImageEncoder
from load_balancer.http.jobs import UNFORESEEN, AnyJob, Job
from load_balancer.http.remote_job import RemoteJob, Stream
from load_balancer.http.responses import about, settings, to_json
from load_balancer.runner.generation_task import GeneratedImage, PartialImage
from weir.errors import WeirError

log = logging.getLogger(__name__)

PARTIAL, COMPLETED = "partial_image", "completed"


class EventStream:
    """The events of a streamed job. They are encoded once, however many clients listen.

    There are at most ``partial_images`` partial events for each image, and then its completed event. A failure ends the
    stream with an ``error`` event. ``weir.image`` is the index of the image that an event belongs to.
    """

    def __init__(self, job: Job, encoder: ImageEncoder):
        self._job = job
        self._encoder = encoder
        self._events: list[bytes] = []
        self._images: dict[int, bytes] = {}
        self._changed = asyncio.Event()
        self._encoding = asyncio.create_task(self._encode())

    @property
    def size_bytes(self) -> int:
        """Size of all events."""
        return sum(map(len, self._events))

    async def events(self) -> AsyncGenerator[bytes]:
        """Yields all events so far, then those that follow, up to the last one."""
        seen = 0
        while True:
            while seen < len(self._events):
                seen += 1
                yield self._events[seen - 1]
            if self._encoding.done():
                return
            await self._changed.wait()

    async def images(self) -> list[bytes]:
        """Waits for the finished images, in the format of the client and the order of their seeds.

        Raises:
            WeirError: an image could not be encoded.
        """
        await asyncio.shield(self._encoding)
        if len(self._images) < self._job.request.n:
            raise WeirError(UNFORESEEN)
        images, self._images = self._images, {}  # from now on they are in the events only
        return [images[index] for index in sorted(images)]

    async def _encode(self) -> None:
        shown: Counter[int] = Counter()
        request = self._job.request
        try:
            async for event in self._job.generation.events():
                if isinstance(event, GeneratedImage):
                    self._images[event.index] = image = await self._encoded(event.result.image)
                    self._add(_completed(self._job, event, image))
                elif shown[event.index] < request.partial_images:
                    number = shown[event.index]
                    shown[event.index] += 1
                    # A preview has the size of the latent. Clients show it in place of the finished image, so it is
                    # enlarged.
                    image = await self._encoded(event.image, request.size)
                    self._add(_partial(self._job, event, image, number))
        except WeirError as error:
            self._add(_event("error", error.to_dict()))
        except Exception:
            log.exception("a stream failed")
            self._add(_event("error", WeirError(UNFORESEEN).to_dict()))
        finally:
            asyncio.get_running_loop().call_soon(self._changed.set)

    async def _encoded(self, png: bytes, size: tuple[int, int] | None = None) -> bytes:
        request = self._job.request
        caller = request.caller.name
        return await self._encoder.encoded(caller, png, request.output_format, request.compression, size)

    def _add(self, event: bytes) -> None:
        self._events.append(event)
        self._changed.set()
        self._changed = asyncio.Event()


class RecordedStream:
    """The events of a job that another load balancer runs or ran: completed images only, from its answer."""

    size_bytes = 0

    def __init__(self, job: RemoteJob):
        self._job = job

    async def events(self) -> AsyncGenerator[bytes]:
        """Waits for the answer, and yields its events."""
        try:
            for index, image in enumerate(json.loads(await self._job.answer())["data"]):
                fields = {"weir": {"image": index, **image["weir"]}}
                yield _image_event(self._job, COMPLETED, image["b64_json"].encode(), fields)
        except WeirError as error:
            yield _event("error", error.to_dict())


def stream_of(job: AnyJob, encoder: ImageEncoder) -> Stream:
    """The event stream of a job, the same one for all its listeners."""
    if job.stream is None:
        job.stream = RecordedStream(job) if isinstance(job, RemoteJob) else EventStream(job, encoder)
    return job.stream


def _partial(job: Job, event: PartialImage, image: bytes, number: int) -> bytes:
    partial = {"image": event.index, "role": event.variant, "step": event.step}
    return _image_event(job, PARTIAL, base64.b64encode(image), {"partial_image_index": number, "weir": partial})


def _completed(job: Job, event: GeneratedImage, image: bytes) -> bytes:
    return _image_event(job, COMPLETED, base64.b64encode(image), {"weir": {"image": event.index, **about(job, event)}})


def _image_event(job: AnyJob, kind: str, image_base64: bytes, more: dict[str, Any]) -> bytes:
    fields = {"created_at": int(time.time()), **settings(job.request), **more}
    name = f"{'image_generation' if job.request.edit is None else 'image_edit'}.{kind}".encode()
    # The image bypasses the JSON encoder, which would check every byte of it.
    return b'event: %b\ndata: {"type":"%b","b64_json":"%b",%b\n\n' % (
        name,
        name,
        image_base64,
        to_json(fields)[1:],
    )


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), to_json({"type": kind, **fields}))
