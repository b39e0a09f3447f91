"""Jobs: requests that outlive their connection, and are found by their id or by their caller's idempotency key."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Literal, NamedTuple, Protocol

from load_balancer.http.api_keys import Caller
from load_balancer.http.fair_room import FairRoom
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage, GenerationTask
from weir.errors import Cancelled, KeyReused, NotFound, WeirError

log = logging.getLogger(__name__)

#: Seconds for which the answer of an ended job is kept.
KEPT_S = 600.0
#: Limits of the jobs that are kept, which the tenants share; see :class:`~load_balancer.http.fair_room.FairRoom`.
MOST_JOBS = 1000
MOST_BYTES = 256 * 2**20
#: Largest number of idempotency keys that are known after their answers had to leave, shared by the tenants too.
MOST_KEYS = 100_000

#: Largest number of ids of a job: each repetition of a request with an idempotency key has an id of its own.
MOST_IDS = 16

#: Error message of an unexpected failure.
UNFORESEEN = "an internal error occurred; see the log of the service"

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Status(NamedTuple):
    """The status of a job.

    Attributes:
        position: 1 for the first waiting image of its replica; None when it does not wait at a replica.
        estimated_s: predicted seconds until the running variant finishes; None when unknown.
    """

    state: State
    position: int | None = None
    estimated_s: float | None = None


class Stream(Protocol):
    """What a job needs of its event stream (:class:`load_balancer.http.events.EventStream`)."""

    @property
    def size_bytes(self) -> int: ...

    def events(self) -> AsyncGenerator[bytes]: ...


class Job:
    """A request that runs whether or not a client is connected. All clients get the same answer, rendered once.

    Args:
        base_url: URL by which the client calls the service.
        created: unix time, seconds.
        render: creates the body of the answer.
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
        self.request = generation.request
        self.id = self.request.id
        self.generation = generation
        self.key = key
        self.base_url = base_url
        self.created = created
        #: Time of the end, in seconds of a monotonic clock; None while the job runs.
        self.ended: float | None = None
        self.error: WeirError | None = None
        #: The events of a job that is streamed, for all its listeners.
        self.stream: Stream | None = None
        #: Whether a client has been sent the answer.
        self.delivered = False
        self._body: bytes | None = None
        self._render = render
        self._on_end = ended
        self._task = asyncio.create_task(self._run())

    @property
    def caller(self) -> Caller:
        return self.request.caller

    @property
    def body(self) -> bytes | None:
        """The answer; None while it is not ready."""
        return self._body

    @property
    def size_bytes(self) -> int:
        streamed = 0 if self.stream is None else self.stream.size_bytes
        return self.generation.size_bytes + len(self._body or b"") + streamed

    async def answer(self) -> bytes:
        """Waits for the answer and returns its body; cancelling the call does not cancel the job.

        Raises:
            WeirError: the request failed or was cancelled.
        """
        await asyncio.shield(self._task)
        if self.error is not None:
            raise self.error
        assert self._body is not None
        return self._body

    async def wait(self, seconds: float) -> None:
        """Waits until the job has ended, at most ``seconds``."""
        await asyncio.wait({self._task}, timeout=seconds)

    async def cancel(self) -> None:
        """Cancels the job before its next denoising step; does nothing if it has ended."""
        if self.ended is None:
            await self.generation.close()
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        try:
            images = await self.generation.images()
            self._body = await self._render(self, images)
            paths, latency_s = ", ".join(image.path for image in images), max(image.latency_s for image in images)
            log.info("answered after %.3f s with %d images: %s", latency_s, len(images), paths)
        except WeirError as error:
            self.error = error
            log.info("ended without an image: %s: %s", error.code, error.message)
        except Exception:
            log.exception("a request failed")
            self.error = WeirError(UNFORESEEN)
        self._on_end(self)


class Jobs:
    """The running jobs, and ended jobs whose answers are kept. Bounded in number and bytes.

    When there are too many, the tenant that has most loses those that ended without an answer, then its oldest. A key
    whose answer had to leave is known until its time is over: another request with it is refused, and the same request
    is generated again, with the same seed.

    Args:
        render: creates the body of an answer.
        clock: seconds of a monotonic clock, which measures lifetimes.
        unix_time: unix time, seconds, for people.
    """

    def __init__(
        self,
        balancer: Balancer,
        render: Callable[[Job, list[GeneratedImage]], Awaitable[bytes]],
        *,
        kept_s: float = KEPT_S,
        most_jobs: int = MOST_JOBS,
        most_bytes: int = MOST_BYTES,
        clock: Callable[[], float] = time.monotonic,
        unix_time: Callable[[], float] = time.time,
    ):
        self._balancer = balancer
        self._render = render
        self._kept_s = kept_s
        self._clock = clock
        self._unix_time = unix_time
        self._past: FairRoom[Job] = FairRoom(most_jobs, most_bytes)
        self._answered: FairRoom[tuple[str, str]] = FairRoom(MOST_KEYS, 1)  # callers and keys without their answers
        self._digests: dict[tuple[str, str], tuple[float, bytes]] = {}  # the end and the digest of their requests
        self._by_key: dict[tuple[str, str], Job] = {}
        self._by_id: dict[str, dict[str, Job]] = {}  # by id and name of the caller
        self._ids: dict[Job, list[str]] = {}
        self._kept: set[Job] = set()

    def begin(
        self, request: GenerationRequest, base_url: str, *, key: str | None = None, keep: bool = False
    ) -> tuple[Job, bool]:
        """Returns the job of a request, and whether it existed already, with the same caller, key and body.

        Args:
            keep: whether the job can be fetched after it has ended; a job with a key always can.

        Raises:
            KeyReused: the caller sent the key with another request.
            RateLimited, Overloaded, NotReady: the request is not admitted.
        """
        self._expire()
        if key is not None and (known := self._by_key.get((request.caller.name, key))) is not None:
            if known.request != request:
                raise _key_reused()
            self._name(known, request.id)
            return known, True
        if key is not None:
            _, digest = self._digests.get((request.caller.name, key), (0.0, None))
            if digest is not None and digest != request.digest:
                raise _key_reused()
        job = Job(self._balancer.begin(request), key, base_url, self._unix_time(), self._render, self._ended)
        self._name(job, job.id)
        if keep or key is not None:
            self._kept.add(job)
        if key is not None:
            self._by_key[request.caller.name, key] = job
        return job, False

    def find(self, id: str, caller: Caller) -> Job:
        """Finds a job of a caller by its id.

        Raises:
            NotFound: the caller has no such job, or it was removed.
        """
        self._expire()
        named = self._by_id.get(id, {})
        job = named.get(caller.name)
        if job is None and caller.admin:
            job = next(iter(named.values()), None)
        if job is None:
            raise NotFound("you have no such request, or it ended too long ago", param="id")
        return job

    def is_kept(self, job: Job) -> bool:
        """Whether the job continues, and can be fetched, after its client disconnects."""
        return job in self._kept

    def keep(self, job: Job) -> None:
        """Keeps the job after it has ended."""
        self._kept.add(job)

    def forget(self, job: Job) -> None:
        """Removes a job that has ended."""
        self._past.remove(job)
        self._kept.discard(job)
        self._forget_key(job)
        for id in self._ids.pop(job, ()):
            self._forget_id(job, id)

    def status(self, job: Job) -> Status:
        if job.ended is not None:
            if job.error is None:
                return Status("succeeded")
            return Status("cancelled" if isinstance(job.error, Cancelled) else "failed")
        at = self._balancer.position(job.generation)
        if at is None:
            return Status("running" if job.generation.begun else "queued")
        estimated_s = round(max(0.0, at.ready_at - self._balancer.clock()), 3)
        if at.position and not job.generation.begun:
            return Status("queued", at.position, estimated_s)
        return Status("running", None, estimated_s)

    def expires_at(self, job: Job) -> float | None:
        """Unix time at which the job is removed; None while it is running."""
        if job.ended is None:
            return None
        return self._unix_time() + job.ended + self._kept_s - self._clock()

    def _ended(self, job: Job) -> None:
        job.ended = self._clock()
        if job.error is not None:
            self._forget_key(job)  # without an answer, a retry with the key generates again
        if job in self._kept:
            self._expire()
            for other in self._past.add(job.caller.tenant, job, job.size_bytes, useless=job.error is not None):
                self._crowd_out(other)
        else:
            self.forget(job)

    def _name(self, job: Job, id: str) -> None:
        """Gives a job one more id, by which its caller finds it. An id names the latest of a caller's jobs with it."""
        ids = self._ids.setdefault(job, [])
        if id not in ids:
            ids.append(id)
        if len(ids) > MOST_IDS:
            self._forget_id(job, ids.pop(1))  # the first one is in its answer
        self._by_id.setdefault(id, {})[job.caller.name] = job

    def _forget_id(self, job: Job, id: str) -> None:
        named = self._by_id.get(id, {})
        if named.get(job.caller.name) is job:
            del named[job.caller.name]
            if not named:
                del self._by_id[id]

    def _forget_key(self, job: Job) -> None:
        if job.key is not None and self._by_key.get((job.caller.name, job.key)) is job:
            del self._by_key[job.caller.name, job.key]

    def _crowd_out(self, job: Job) -> None:
        """Removes a job for want of room, and keeps its key."""
        if job.key is not None and job.error is None and job.ended is not None:
            name = job.caller.name, job.key
            self._answered.remove(name)
            self._digests[name] = job.ended, job.request.digest
            for other in self._answered.add(job.caller.tenant, name):
                del self._digests[other]
        self.forget(job)

    def _expire(self) -> None:
        old = self._clock() - self._kept_s
        while (job := self._past.oldest) is not None and job.ended is not None and job.ended <= old:
            self.forget(job)
        while (name := self._answered.oldest) is not None and self._digests[name][0] <= old:
            self._answered.remove(name)
            del self._digests[name]


def _key_reused() -> KeyReused:
    return KeyReused(
        "this idempotency key was used for another request; use a new key for every request", param="Idempotency-Key"
    )
