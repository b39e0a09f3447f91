"""Jobs: requests that outlive their connection, and are found by their id or by their caller's idempotency key."""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

from load_balancer.admission.quotas import Charge, Quotas
from load_balancer.http.api_keys import Caller
from load_balancer.http.fair_room import FairRoom
from load_balancer.http.remote_job import RemoteJob, Stream
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage, GenerationTask
from load_balancer.shared.job_ledger import JobLedger, JobRecord, Sharing
from weir.clocks import Clocks
from weir.errors import Cancelled, KeyReused, NotFound, NotReady, RateLimited, WeirError

log = logging.getLogger(__name__)

#: Largest number of idempotency keys that are known after their answers had to leave, shared by the tenants too.
MOST_KEYS = 100_000

#: Largest number of ids of a job: each repetition of a request with an idempotency key has an id of its own.
MOST_IDS = 16

#: Error message of an unexpected failure.
UNFORESEEN = "an internal error occurred; see the log of the service"

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class JobLimits(NamedTuple):
    """What is kept of ended jobs.

    Attributes:
        kept_s: seconds for which the answer of one is kept.
        jobs, size_bytes: largest number and size of those that are kept, which the tenants share; see
            :class:`~load_balancer.http.fair_room.FairRoom`.
    """

    kept_s: float = 600.0
    jobs: int = 1000
    size_bytes: int = 256 * 2**20


class Status(NamedTuple):
    """The status of a job.

    Attributes:
        position: 1 for the first waiting image of its replica; None when it does not wait at a replica.
        estimated_s: predicted seconds until the running variant finishes; None when unknown.
    """

    state: State
    position: int | None = None
    estimated_s: float | None = None


class Job:
    """A request that runs whether or not a client is connected. All clients get the same answer, rendered once.

    Args:
        record: what others have to know of it.
        render: creates the body of the answer.
    """

    def __init__(
        self,
        generation: GenerationTask,
        record: JobRecord,
        render: Callable[[Job, list[GeneratedImage]], Awaitable[bytes]],
        ended: Callable[[Job], None],
    ):
        self.request = generation.request
        self.id = self.request.id
        self.generation = generation
        self.record = record
        self.key = record.key
        self.base_url = record.base_url
        self.created = record.created
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
        self._give_back: Callable[[], None] = lambda: None
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
        edit = self.request.edit
        given = 0 if edit is None else edit.size_bytes
        return self.generation.size_bytes + len(self._body or b"") + streamed + given

    def when_ended(self, give_back: Callable[[], None]) -> None:
        """Has the quota of the caller given back when the job ends."""
        self._give_back = give_back

    async def refresh(self) -> None:
        """Does nothing: what this load balancer runs is up to date."""

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
        self._give_back()
        self._on_end(self)


#: A job that this load balancer runs, or another one.
AnyJob: TypeAlias = Job | RemoteJob


class Jobs:
    """The running jobs, and ended jobs whose answers are kept. Bounded in number and bytes.

    When there are too many, the tenant that has most loses those that ended without an answer, then its oldest. A key
    whose answer had to leave is known until its time is over: another request with it is refused, and the same request
    is generated again, with the same seed.

    Args:
        render: creates the body of an answer.
        charge: charges requests to the quotas of their callers; default: quotas of this load balancer alone.
        sharing: with other load balancers; None where there is only this one.
    """

    def __init__(
        self,
        balancer: Balancer,
        render: Callable[[Job, list[GeneratedImage]], Awaitable[bytes]],
        *,
        charge: Charge | None = None,
        sharing: Sharing | None = None,
        limits: JobLimits = JobLimits(),
        clocks: Clocks = Clocks(),
    ):
        self._balancer = balancer
        self._render = render
        self._charge = charge or Quotas().charge
        self._sharing = sharing
        self._kept_s = limits.kept_s
        self._clock = clocks.monotonic
        self._unix_time = clocks.unix
        self._past: FairRoom[Job] = FairRoom(limits.jobs, limits.size_bytes)
        self._answered: FairRoom[tuple[str, str]] = FairRoom(MOST_KEYS, 1)  # callers and keys without their answers
        self._digests: dict[tuple[str, str], tuple[float, bytes]] = {}  # the end and the digest of their requests
        self._by_key: dict[tuple[str, str], Job] = {}
        self._by_id: dict[str, dict[str, Job]] = {}  # by id and name of the caller
        self._ids: dict[Job, list[str]] = {}
        self._kept: set[Job] = set()
        self._shared: dict[str, Job] = {}  # running jobs that have a record in Redis, by number
        self._entering: set[asyncio.Task[None]] = set()

    async def begin(
        self, request: GenerationRequest, base_url: str, *, key: str | None = None, keep: bool = False
    ) -> tuple[AnyJob, bool]:
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
        record = JobRecord(uuid.uuid4().hex, request, key, base_url, self._unix_time(), "")
        if self._sharing is None or not (keep or key is not None):
            return await self._begin(record, keep), False
        if request.seed is None:  # a load balancer that takes the job over has to generate the same images
            record = replace(record, request=replace(request, seed=secrets.randbelow(2**32)))
        record = replace(record, owner=self._sharing.ledger.owner)
        if (claimed := await self._claim(self._sharing.ledger, record)) is not None:
            await self._sharing.ledger.name(claimed, request.id)
            return RemoteJob(claimed, *self._sharing), True
        try:
            job = await self._begin(record, keep)
        except BaseException as error:  # also of a client that has left meanwhile: nobody may wait for this job
            cause = error if isinstance(error, WeirError) else Cancelled("the request ended before it was admitted")
            await asyncio.shield(self._sharing.ledger.end(record, None, cause.to_dict()))
            raise
        self._shared[record.number] = job
        return job, False

    @staticmethod
    async def _claim(ledger: JobLedger, record: JobRecord) -> JobRecord | None:
        """Enters a job, or returns the record of the job that has its key and an answer, or will have one.

        Raises:
            KeyReused: the caller sent the key with another request.
            NotReady: Redis does not answer.
        """
        known = await ledger.claim(record)
        if known is None:
            return None
        if not known.is_of(record.request):
            raise _key_reused()
        if known.ended is None or await ledger.answer(known) is not None:
            return known
        await ledger.forget(known)  # its answer had to leave, so that it is generated again
        return await ledger.claim(record)

    async def take_over(self, record: JobRecord) -> None:
        """Runs a job of a load balancer that is lost. Admission does not refuse it again."""
        log.warning("%s is taken over", record.id)
        job = self._started(record, again=True)
        self._kept.add(job)
        self._shared[record.number] = job

    async def cancel(self, number: str) -> None:
        """Cancels the job with a number, if this load balancer runs it."""
        if (job := self._shared.get(number)) is not None:
            await job.cancel()

    async def _begin(self, record: JobRecord, keep: bool) -> Job:
        """Charges and admits a request.

        Raises:
            RateLimited, Overloaded, NotReady: it is not admitted.
        """
        request = record.request
        try:
            give_back = await self._charge(request.caller, request.n, self._balancer.price(request))
        except RateLimited as error:
            self._balancer.metrics.refused(request.n, error)
            raise
        try:
            job = self._started(record)
        except BaseException:
            give_back()
            raise
        job.when_ended(give_back)
        if keep or record.key is not None:
            self._kept.add(job)
        return job

    def _started(self, record: JobRecord, *, again: bool = False) -> Job:
        job = Job(self._balancer.begin(record.request, again=again), record, self._render, self._ended)
        self._name(job, job.id)
        if record.key is not None:
            self._by_key[record.request.caller.name, record.key] = job
        return job

    async def find(self, id: str, caller: Caller) -> AnyJob:
        """Finds a job of a caller by its id.

        Raises:
            NotFound: the caller has no such job, or it was removed.
            NotReady: another load balancer may have it, and Redis does not answer.
        """
        self._expire()
        named = self._by_id.get(id, {})
        job = named.get(caller.name)
        if job is None and caller.admin:
            job = next(iter(named.values()), None)
        if job is not None:
            return job
        if self._sharing is not None and (record := await self._sharing.ledger.find(id, caller)) is not None:
            remote = RemoteJob(record, *self._sharing)
            await remote.refresh()
            return remote
        raise NotFound("you have no such request, or it ended too long ago", param="id")

    def is_kept(self, job: AnyJob) -> bool:
        """Whether the job continues, and can be fetched, after its client disconnects."""
        return isinstance(job, RemoteJob) or job in self._kept

    def keep(self, job: AnyJob) -> None:
        """Keeps the job after it has ended."""
        if isinstance(job, Job):
            self._kept.add(job)

    async def forget(self, job: AnyJob) -> None:
        """Removes a job that has ended, here and in Redis.

        Raises:
            NotReady: Redis does not answer.
        """
        if self._sharing is not None:
            await self._sharing.ledger.forget(job.record)
        if isinstance(job, Job):
            self._drop(job)

    def _drop(self, job: Job) -> None:
        self._past.remove(job)
        self._kept.discard(job)
        self._forget_key(job)
        for id in self._ids.pop(job, ()):
            self._forget_id(job, id)

    def status(self, job: AnyJob) -> Status:
        if job.ended is not None:
            if job.error is None:
                return Status("succeeded")
            return Status("cancelled" if isinstance(job.error, Cancelled) else "failed")
        if isinstance(job, RemoteJob):
            return Status("running")
        at = self._balancer.position(job.generation)
        if at is None:
            return Status("running" if job.generation.begun else "queued")
        estimated_s = round(max(0.0, at.ready_at - self._balancer.clock()), 3)
        if at.position and not job.generation.begun:
            return Status("queued", at.position, estimated_s)
        return Status("running", None, estimated_s)

    def expires_at(self, job: AnyJob) -> float | None:
        """Unix time at which the job is removed; None while it is running."""
        if job.ended is None:
            return None
        if isinstance(job, RemoteJob):
            return job.ended + self._kept_s
        return self._unix_time() + job.ended + self._kept_s - self._clock()

    def _ended(self, job: Job) -> None:
        job.ended = self._clock()
        if self._sharing is not None and self._shared.pop(job.record.number, None) is not None:
            task = asyncio.get_running_loop().create_task(self._enter_end(self._sharing.ledger, job))
            self._entering.add(task)
            task.add_done_callback(self._entering.discard)
        if job.error is not None:
            self._forget_key(job)  # without an answer, a retry with the key generates again
        if job in self._kept:
            self._expire()
            for other in self._past.add(job.caller.tenant, job, job.size_bytes, useless=job.error is not None):
                self._crowd_out(other)
        else:
            self._drop(job)

    @staticmethod
    async def _enter_end(ledger: JobLedger, job: Job) -> None:
        try:
            await ledger.end(job.record, job.body, None if job.error is None else job.error.to_dict())
        except NotReady:
            log.warning("the other load balancers do not know that %s has ended", job.id)

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
        self._drop(job)

    def _expire(self) -> None:
        old = self._clock() - self._kept_s
        while (job := self._past.oldest) is not None and job.ended is not None and job.ended <= old:
            self._drop(job)
        while (name := self._answered.oldest) is not None and self._digests[name][0] <= old:
            self._answered.remove(name)
            del self._digests[name]


def _key_reused() -> KeyReused:
    return KeyReused(
        "this idempotency key was used for another request; use a new key for every request", param="Idempotency-Key"
    )
