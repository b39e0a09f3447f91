"""Requests that outlive the connection they came on: found again by their id, or by their caller's idempotency key."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from load_balancer.http.api_keys import Caller
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage, GenerationTask
from weir.errors import Cancelled, KeyReused, NotFound, WeirError

log = logging.getLogger(__name__)

#: Seconds that an answer is kept.
KEPT_S = 600.0
#: Limits of what is kept; the oldest answers leave first.
MOST_JOBS = 1000
MOST_BYTES = 256 * 2**20

#: What a client is told of a failure that nobody foresaw.
UNFORESEEN = "something went wrong inside; the log of the service says what"

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Status(NamedTuple):
    """Where a job stands.

    Attributes:
        position: 1 for the first of those that wait at its replica; None when it does not wait there.
        estimated_s: until the variant at work should be through; None when that is not known.
    """

    state: State
    position: int | None = None
    estimated_s: float | None = None


class Job:
    """A request that is generated whether or not a client listens. All who ask get the same answer, rendered once.

    Args:
        base_url: the service as the client calls it.
        render: makes the answer's body.
    """

    def __init__(
        self,
        generation: GenerationTask,
        key: str | None,
        base_url: str,
        created: float,
        render: Callable[[Job, list[GeneratedImage]], Awaitable[bytes]],
        ended: Callable[[Job], None],
    ):
        #: Told to nobody but its caller, unlike the ids of its images, which the cache tells others.
        self.id = secrets.token_hex(16)
        self.request = generation.request
        self.generation = generation
        self.key = key
        self.base_url = base_url
        self.created = created
        self.ended: float | None = None
        self.error: WeirError | None = None
        self._body: bytes | None = None
        self._render = render
        self._on_end = ended
        self._task = asyncio.create_task(self._run())

    @property
    def caller(self) -> Caller:
        return self.request.caller

    @property
    def body(self) -> bytes | None:
        """The answer, once it is there."""
        return self._body

    @property
    def size_bytes(self) -> int:
        return self.generation.size_bytes + len(self._body or b"")

    async def answer(self) -> bytes:
        """The body of the answer; cancelling the call leaves the job as it is.

        Raises:
            WeirError: there will be none.
        """
        await asyncio.shield(self._task)
        if self.error is not None:
            raise self.error
        assert self._body is not None
        return self._body

    async def wait(self, seconds: float) -> None:
        """Until it has ended, but no longer than that."""
        await asyncio.wait({self._task}, timeout=seconds)

    async def cancel(self) -> None:
        """Takes it out of work before the next denoising step; nothing happens to one that has ended."""
        if self.ended is None:
            await self.generation.close()
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        try:
            self._body = await self._render(self, await self.generation.images())
        except WeirError as error:
            self.error = error
        except Exception:
            log.exception("a request failed")
            self.error = WeirError(UNFORESEEN)
        self._on_end(self)


class Jobs:
    """All jobs that are running, and those that ended a while ago and may be asked for. Bounded in number and bytes.

    Args:
        render: makes the body of an answer.
        clock: unix time, seconds.
    """

    def __init__(
        self,
        balancer: Balancer,
        render: Callable[[Job, list[GeneratedImage]], Awaitable[bytes]],
        *,
        kept_s: float = KEPT_S,
        most_jobs: int = MOST_JOBS,
        most_bytes: int = MOST_BYTES,
        clock: Callable[[], float] = time.time,
    ):
        self._balancer = balancer
        self._render = render
        self._kept_s = kept_s
        self._most_jobs = most_jobs
        self._most_bytes = most_bytes
        self._clock = clock
        self._running: dict[str, Job] = {}
        self._past: dict[str, Job] = {}  # the oldest first
        self._past_bytes = 0
        self._by_key: dict[tuple[str, str], Job] = {}
        self._kept: set[str] = set()

    def begin(
        self, request: GenerationRequest, base_url: str, *, key: str | None = None, keep: bool = False
    ) -> tuple[Job, bool]:
        """The job of a request, and whether it was there already: the caller sent the same one with the same key.

        Args:
            keep: it can be asked for after it has ended; so can one with a key.

        Raises:
            KeyReused: the caller sent another request with the key.
            RateLimited, Overloaded, NotReady: the request is not admitted.
        """
        self._expire()
        if key is not None and (known := self._by_key.get((request.caller.name, key))) is not None:
            if known.request != request:
                raise KeyReused(
                    "this idempotency key came with another request; use a new key for every new request",
                    param="Idempotency-Key",
                )
            return known, True
        job = Job(self._balancer.begin(request), key, base_url, self._clock(), self._render, self._ended)
        self._running[job.id] = job
        if keep or key is not None:
            self._kept.add(job.id)
        if key is not None:
            self._by_key[request.caller.name, key] = job
        return job, False

    def find(self, id: str, caller: Caller) -> Job:
        """
        Raises:
            NotFound: there is no such job of this caller, or it is forgotten.
        """
        self._expire()
        job = self._running.get(id) or self._past.get(id)
        if job is None or not (job.caller.name == caller.name or caller.admin):
            raise NotFound("there is no such request of yours, or it ended too long ago", param="id")
        return job

    def is_kept(self, job: Job) -> bool:
        """Whether the job goes on, and can be asked for, when nobody listens any more."""
        return job.id in self._kept

    def keep(self, job: Job) -> None:
        """Somebody will ask for it later."""
        self._kept.add(job.id)

    def forget(self, job: Job) -> None:
        """Drops what is kept of one that has ended."""
        if self._past.pop(job.id, None) is not None:
            self._past_bytes -= job.size_bytes
        self._kept.discard(job.id)
        self._forget_key(job)

    def status(self, job: Job) -> Status:
        if job.ended is not None:
            if job.error is None:
                return Status("succeeded")
            return Status("cancelled" if isinstance(job.error, Cancelled) else "failed")
        at = self._balancer.position(job.generation)
        if at is None:
            return Status("running" if job.generation.begun else "queued")
        estimated_s = round(max(0.0, at.ready_at - self._clock()), 3)
        if at.position and not job.generation.begun:
            return Status("queued", at.position, estimated_s)
        return Status("running", None, estimated_s)

    def expires_at(self, job: Job) -> float | None:
        """Unix time; None while it is running."""
        return None if job.ended is None else job.ended + self._kept_s

    def _ended(self, job: Job) -> None:
        job.ended = self._clock()
        del self._running[job.id]
        if job.error is not None:
            self._forget_key(job)  # nothing came of it: the same key generates again
        if job.id in self._kept:
            self._past[job.id] = job
            self._past_bytes += job.size_bytes
            self._expire()

    def _forget_key(self, job: Job) -> None:
        if job.key is not None and self._by_key.get((job.caller.name, job.key)) is job:
            del self._by_key[job.caller.name, job.key]

    def _expire(self) -> None:
        old = self._clock() - self._kept_s
        while self._past:
            job = next(iter(self._past.values()))
            crowded = len(self._past) > self._most_jobs or self._past_bytes > self._most_bytes
            if not crowded and job.ended is not None and job.ended > old:
                return
            self.forget(job)
