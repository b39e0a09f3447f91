"""The routes of images: generate and edit, stream, answer asynchronously, status and cancellation."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from load_balancer.admission.prompt_filter import FilteredPrompts
from load_balancer.admission.repetition import RepetitionQuota
from load_balancer.http import responses
from load_balancer.http.api_keys import Caller
from load_balancer.http.body import json_body
from load_balancer.http.edit_body import edit_upload
from load_balancer.http.edit_pictures import PictureReader
from load_balancer.http.events import EventStream, stream_of
from load_balancer.http.headers import idempotency_key, later, seed_of
from load_balancer.http.image_encoding import ImageEncoder
from load_balancer.http.image_store import ImageStore
from load_balancer.http.jobs import AnyJob, Job, Jobs
from load_balancer.http.openapi import CANCEL, EDIT, EDITS, FILES, GENERATE, GENERATIONS, STATUS
from load_balancer.http.remote_job import Stream
from load_balancer.http.responses import typed_errors
from load_balancer.http.schema import RequestRules
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage
from load_balancer.shared.shared_state import SharedState
from weir.config import LimitsConfig

#: Reads and checks the body of a request.
Reader: TypeAlias = Callable[[Request], Awaitable[GenerationRequest]]


def generations(
    balancer: Balancer,
    rules: RequestRules,
    prompts: FilteredPrompts,
    store: ImageStore,
    limits: LimitsConfig,
    shared: SharedState | None = None,
) -> APIRouter:
    """Creates the routes of one balancer.

    Args:
        store: keeps the images that are requested as URLs.
        limits: of the size of a body, and of the time that it may take.
        shared: what it shares with other load balancers; None where there are none.
    """
    router = APIRouter()
    routes = _Routes(balancer, prompts, store, shared)
    pictures = PictureReader(limits.image_pixels)

    async def read_generation(request: Request) -> GenerationRequest:
        return rules.read(await json_body(request, limits.body_bytes, limits.body_s))

    async def read_edit(request: Request) -> GenerationRequest:
        async with edit_upload(request, limits) as upload:
            body = rules.read_edit(upload.fields)
            size_for, caller = partial(rules.size_of_edit, body), request.state.caller.name
            return rules.edit(body, await pictures.read(caller, upload.image, upload.mask, size_for))

    @router.post(GENERATIONS, **GENERATE, openapi_extra=rules.described())
    @typed_errors
    async def generate(request: Request) -> Response:
        return await routes.answer(request, read_generation)

    @router.post(EDITS, **EDIT, openapi_extra=rules.described_edit())
    @typed_errors
    async def edit(request: Request) -> Response:
        return await routes.answer(request, read_edit)

    @router.get(GENERATIONS + "/{id}", **STATUS)
    @typed_errors
    async def status(request: Request, id: str) -> Response:
        return await routes.status(request, id)

    @router.delete(GENERATIONS + "/{id}", **CANCEL)
    @typed_errors
    async def cancel(request: Request, id: str) -> Response:
        return await routes.cancel(request, id)

    return router


class _Routes:
    """What the routes of one balancer do; see :func:`generations`."""

    def __init__(self, balancer: Balancer, prompts: FilteredPrompts, store: ImageStore, shared: SharedState | None):
        self._balancer, self._prompts = balancer, prompts
        self._encoder, self._repetitions = ImageEncoder(), RepetitionQuota()
        render = _renderer(self._encoder, store)
        if shared is None:
            self._jobs = Jobs(balancer, render)
        else:
            self._jobs = Jobs(balancer, render, charge=shared.quotas.charge, sharing=shared.sharing)
            shared.run_jobs_by(self._jobs)

    async def answer(self, request: Request, read: Reader) -> Response:
        """Generates images, and answers with them, with a stream of them, or with the status of the request."""
        jobs = self._jobs
        key = idempotency_key(request.headers.get("idempotency-key"))
        wanted = _wanted(await read(request), request, key)
        await self._prompts.check(wanted)
        postponed = None if wanted.stream else later(request.headers.getlist("prefer"))
        base_url = str(request.base_url).rstrip("/")
        job, replayed = await jobs.begin(wanted, base_url, key=key, keep=postponed is not None)
        headers = {"Idempotent-Replayed": "true"} if replayed else {}
        if replayed:
            self._repetitions.check(wanted.caller.name, self._balancer.clock())
        if wanted.stream:
            return await self._stream(job, replayed, headers)
        if postponed is not None:
            jobs.keep(job)
            headers |= {"Preference-Applied": "respond-async"}
            if not await _ended(job, postponed.wait_s):
                return _accepted(jobs, job, headers)
        try:
            answer = await job.answer()
            repeated = _repeated(job, answer)
            if replayed:
                self._charged(wanted.caller, repeated)
            return Response(answer, media_type="application/json", headers=headers)
        finally:
            await _left(jobs, job)

    async def _stream(self, job: AnyJob, replayed: bool, headers: dict[str, str]) -> Response:
        headers |= {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        charged = self._charged if replayed else None
        events = _events(self._jobs, job, stream_of(job, self._encoder), charged)
        first = await anext(events)  # until it is there, the request may be sent to another load balancer
        return StreamingResponse(_preceded(first, events), media_type="text/event-stream", headers=headers)

    async def status(self, request: Request, id: str) -> Response:
        """Answers with the status of a request, and its images if they are ready."""
        caller = request.state.caller
        self._repetitions.check(caller.name, self._balancer.clock())
        job = await self._jobs.find(id, caller)
        answer = responses.state(self._jobs, job)
        self._charged(caller, _repeated(job, answer))
        return Response(answer, media_type="application/json")

    async def cancel(self, request: Request, id: str) -> Response:
        """Cancels a request, or forgets one that has ended."""
        job = await self._jobs.find(id, request.state.caller)
        over = job.ended is not None
        await job.cancel()
        answer = responses.state(self._jobs, job)
        if over:
            await self._jobs.forget(job)
        return Response(answer, media_type="application/json")

    def _charged(self, caller: Caller, size_bytes: int) -> float:
        return self._repetitions.charge(caller.name, size_bytes, self._balancer.clock())


def _wanted(body: GenerationRequest, request: Request, key: str | None) -> GenerationRequest:
    """The request with its id and its caller; without a seed of its own it gets the seed of its idempotency key."""
    caller = request.state.caller
    seed = seed_of(caller, key) if key is not None and body.seed is None else body.seed
    return replace(body, id=request.state.request_id, caller=caller, seed=seed)


def _renderer(encoder: ImageEncoder, store: ImageStore) -> Callable[[Job, list[GeneratedImage]], Awaitable[bytes]]:
    """Returns the function that creates the body of an answer."""

    async def render(job: Job, images: list[GeneratedImage]) -> bytes:
        wanted = job.request
        if isinstance(job.stream, EventStream):
            encoded_images = await job.stream.images()
        else:
            encoded_images = [
                await encoder.encoded(wanted.caller.name, one.result.image, wanted.output_format, wanted.compression)
                for one in images
            ]
        if wanted.response_format == "b64_json":
            return responses.generated(job, images, [responses.inline(content) for content in encoded_images])
        contents = []
        for content in encoded_images:
            # Not the id: other callers see the id when their requests resume from this one.
            name = f"{secrets.token_urlsafe(24)}.{wanted.output_format}"
            await store.put(wanted.caller.tenant, name, content)
            contents.append(responses.linked(f"{job.base_url}{FILES}/{name}"))
        return responses.generated(job, images, contents)

    return render


async def _events(
    jobs: Jobs, job: AnyJob, stream: Stream, charged: Callable[[Caller, int], float] | None
) -> AsyncGenerator[bytes]:
    """The events of a job.

    Args:
        charged: charges the caller for an event and returns the seconds until the next one; None: the events are new.
    """
    try:
        async with aclosing(stream.events()) as coming:
            async for event in coming:
                yield event
                if charged is not None:
                    await asyncio.sleep(charged(job.request.caller, len(event)))
    finally:
        await _left(jobs, job)


async def _preceded(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event


def _repeated(job: AnyJob, answer: bytes) -> int:
    """Size of an answer with the images of a job; 0 when it has none, or is the first one that has."""
    repeated = len(answer) if job.delivered else 0
    job.delivered = job.delivered or job.body is not None
    return repeated


async def _left(jobs: Jobs, job: AnyJob) -> None:
    """Cancels a job whose client disconnected, unless the job can be fetched later."""
    if not jobs.is_kept(job):
        await job.cancel()


async def _ended(job: AnyJob, wait_s: float) -> bool:
    if wait_s:
        await job.wait(wait_s)
    return job.ended is not None


def _accepted(jobs: Jobs, job: AnyJob, headers: dict[str, str]) -> Response:
    """The 202 response, with ``Location`` and ``Retry-After``."""
    place = jobs.status(job)
    headers = {
        **headers,
        "Location": f"{GENERATIONS}/{job.id}",
        "Retry-After": str(max(1, math.ceil(place.estimated_s or 0))),
    }
    return Response(responses.state(jobs, job), 202, headers, "application/json")
