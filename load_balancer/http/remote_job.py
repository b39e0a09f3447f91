"""A job that another load balancer runs, or ran, as its record in Redis shows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol

from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.shared.job_ledger import JobLedger, JobRecord
from weir.errors import NotFound, WeirError, error_from

#: Seconds between two looks at the record of a job that runs.
LOOK_S = 0.1


class Stream(Protocol):
    """What a job needs of its event stream (:class:`load_balancer.http.events.EventStream`)."""

    @property
    def size_bytes(self) -> int: ...

    def events(self) -> AsyncGenerator[bytes]: ...


class RemoteJob:
    """The same to a client as a :class:`load_balancer.http.jobs.Job` of this load balancer, without previews.

    Args:
        ask_to_cancel: asks the load balancer that runs the job to cancel it.
    """

    def __init__(self, record: JobRecord, ledger: JobLedger, ask_to_cancel: Callable[[str], Awaitable[None]]):
        self.record, self._ledger, self._ask_to_cancel = record, ledger, ask_to_cancel
        #: The events of a job that is streamed, for all its listeners here.
        self.stream: Stream | None = None
        #: Whether a client has been sent the answer: what is known of it here is always a repetition.
        self.delivered = True
        self._body: bytes | None = None

    @property
    def request(self) -> GenerationRequest:
        return self.record.request

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def created(self) -> float:
        return self.record.created

    @property
    def ended(self) -> float | None:
        return self.record.ended

    @property
    def error(self) -> WeirError | None:
        return None if self.record.error is None else error_from(self.record.error)

    @property
    def body(self) -> bytes | None:
        """The answer, once :meth:`refresh` has read it."""
        return self._body

    async def refresh(self) -> None:
        """Reads the record, and the answer if the job has ended.

        Raises:
            NotReady: Redis does not answer.
            NotFound: the record, or its answer, has expired.
        """
        if self.record.ended is None:
            record = await self._ledger.read(self.record.number)
            if record is None:
                raise NotFound("the request ended too long ago", param="id")
            self.record = record
        if self.record.ended is not None and self.record.error is None and self._body is None:
            self._body = await self._ledger.answer(self.record)
            if self._body is None:
                raise NotFound("newer answers have replaced the answer of this request", param="id")

    async def answer(self) -> bytes:
        """Waits for the answer and returns its body; cancelling the call does not cancel the job.

        Raises:
            WeirError: the request failed or was cancelled, or as :meth:`refresh`.
        """
        await self.wait(float("inf"))
        if self.error is not None:
            raise self.error
        assert self._body is not None
        return self._body

    async def wait(self, seconds: float) -> None:
        """Waits until the job has ended, at most ``seconds``."""
        until = time.monotonic() + seconds
        await self.refresh()
        while self.ended is None and time.monotonic() < until:
            await asyncio.sleep(LOOK_S)
            await self.refresh()

    async def cancel(self) -> None:
        """Cancels the job before its next denoising step; does nothing if it has ended."""
        await self.refresh()
        if self.ended is None:
            await self._ask_to_cancel(self.record.number)
            await self.wait(5.0)
