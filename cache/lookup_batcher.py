"""Lookups in small batches: prompts that wait together are encoded together, and looked up with one call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from cache.encoder import Encoder
from cache.policy.partition import Settings
from weir import metrics as metrics_of
from weir import tracing
from weir.logs import logged_as
from weir.telemetry import Metrics

#: Largest number of prompts that are encoded at once.
_MOST = 32
#: Share of the time limit that encoding a batch may take. A lookup that just missed a batch waits for it and for its
#: own one, and a fifth of the time remains for everything else.
_SHARE = 0.4
#: Weight of the latest batch in the mean time of a prompt.
_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class Query:
    """A lookup to be made; the arguments of :meth:`cache.cache.ApproximateCache.lookup` without the vector."""

    name: str
    tenant: str
    prompt: str
    settings: Settings
    request_id: str = ""


#: Looks up queries with their vectors, float32 [N, dim]. The fields of a :class:`weir.core.CacheLookup` for each; None:
#: the lookup failed.
Search: TypeAlias = Callable[[Sequence[Query], np.ndarray], Awaitable[Sequence[dict[str, Any] | None]]]


class LookupFailed(Exception):
    """The cache could not make this lookup."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    query: Query
    since: float
    answer: asyncio.Future[dict[str, Any]]


def batch_size(waiting: int, prompt_s: float, limit_s: float) -> int:
    """Number of prompts, at least one, to encode at once.

    Args:
        waiting: number of prompts that wait.
        prompt_s: mean time to encode a prompt of a batch, seconds.
        limit_s: time limit of a lookup, seconds.
    """
    most = min(waiting, _MOST)
    in_time_s = _SHARE * limit_s
    return max(1, most if most * prompt_s <= in_time_s else int(in_time_s / prompt_s))


class LookupBatcher:
    """Encodes prompts in a thread of its own, and has what was encoded looked up while the next batch is being encoded.

    There is one call to the cache at a time, with all that was encoded during the one before. So a busy cache gets
    fewer and larger calls.

    When more prompts arrive than can be encoded, the latest come first: the others would be answered too late, and so
    would all that come after them.

    Args:
        limit_s: time limit of a lookup, seconds; a later answer is not used.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self,
        encoder: Encoder,
        search: Search,
        limit_s: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._encoder = encoder
        self._search = search
        self._limit_s = limit_s
        self._metrics = metrics
        self._clock = clock
        self._prompt_s = limit_s  # not known yet: the first batches are small
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._waiting: list[_Waiting] = []  # the oldest first
        self._encoding: asyncio.Task[None] | None = None
        self._encoded: list[tuple[_Waiting, np.ndarray]] = []
        self._searching: asyncio.Task[None] | None = None

    async def lookup(self, query: Query, traceparent: str = "") -> dict[str, Any]:
        """Encodes the prompt and looks it up; returns the fields of a :class:`weir.core.CacheLookup`.

        Raises:
            LookupFailed: the cache could not make this lookup.
            TimeoutError: it waited for longer than the time limit.
            Exception: the encoder, or the call to the cache, failed.
        """
        loop = asyncio.get_running_loop()
        with logged_as(query.request_id), tracing.span("lookup", "server", parent=traceparent) as span:
            own = _Waiting(query, self._clock(), loop.create_future())
            self._waiting.append(own)
            if self._encoding is None or self._encoding.done():
                # In an empty context, because it works for requests that come later, too.
                self._encoding = loop.create_task(self._encode(), context=Context())
            found = await own.answer
            resume = found["resume"]
            span.set(k=0 if resume is None else resume["step"], similarity=found["similarity"])
        self._metrics.observe(metrics_of.LOOKUP_SECONDS, self._clock() - own.since)
        return found

    async def _encode(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            began, prompts = self._clock(), [it.query.prompt for it in batch]
            try:
                vectors = await loop.run_in_executor(self._thread, self._encoder.encode, prompts)
            except Exception as error:
                _fail(batch, error)
                continue
            self._prompt_s += _WEIGHT * ((self._clock() - began) / len(batch) - self._prompt_s)
            self._encoded += zip(batch, vectors, strict=True)
            if self._searching is None or self._searching.done():
                self._searching = loop.create_task(self._look_up())

    def _next_batch(self) -> list[_Waiting]:
        """Takes the prompts that are encoded next out of those that wait, and gives up those that waited too long."""
        until = self._clock() - self._limit_s
        _fail([it for it in self._waiting if it.since < until], TimeoutError())
        waiting = [it for it in self._waiting if not it.answer.done()]
        size = batch_size(len(waiting), self._prompt_s, self._limit_s)
        self._waiting, batch = waiting[:-size], waiting[-size:]
        return batch

    async def _look_up(self) -> None:
        while self._encoded:
            encoded, self._encoded = self._encoded, []
            batch, vectors = [it for it, _ in encoded], np.stack([vector for _, vector in encoded])
            try:
                queries = [it.query for it in batch]
                answers = await asyncio.wait_for(self._search(queries, vectors), self._limit_s)
            except Exception as error:
                _fail(batch, error)
                continue
            for it, answer in zip(batch, answers, strict=True):
                if answer is None:
                    _fail([it], LookupFailed())
                elif not it.answer.done():
                    it.answer.set_result(answer)


def _fail(batch: Sequence[_Waiting], error: Exception) -> None:
    for it in batch:
        if not it.answer.done():
            it.answer.set_exception(error)
