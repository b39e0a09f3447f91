"""The cache as a Serve deployment: one replica has the index and the catalog; the states are in Redis.

Prompts are encoded in its process, or in those of :mod:`cache.encoder_service`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cache.cache import ApproximateCache
from cache.cache_metrics import CacheMetrics
from cache.encoder import family_encoder
from cache.factory import LoadJudge, open_cache, open_store
from cache.lookup_batcher import LookupBatcher, Query
from cache.policy.partition import Settings
from cache.store.backend import StoreFailed
from weir import tracing
from weir.config import CacheConfig, FamilyConfig
from weir.core import NO_LOOKUP, CacheLookup, CacheReport
from weir.errors import ConfigError
from weir.logs import configure, logged_as
from weir.loopback import keep_to_loopback
from weir.prompt_levels import WatchedHead
from weir.telemetry import RayMetrics

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
#: Seconds between two log messages while the store is read.
_PROGRESS_S = 10.0
#: How many times the store is checked for states that a worker is still storing, and seconds between the checks.
_STORE_CHECKS, _STORE_CHECK_S = 5, 0.1


class CacheService:
    """The cache's deployment. Configuration and family are JSON values, as ``model_dump`` of the classes writes them.

    Args:
        judge: see :func:`cache.factory.open_cache`.

    One thread searches and keeps the catalog, in order; the event loop only waits. While the index is rebuilt from the
    store, every lookup is a miss. While the store cannot be read, lookups are answered and nothing is inserted, because
    the states in the store count against the budget; every health check tries to read it again.

    Attributes:
        ready: whether lookups are answered.

    Raises:
        ConfigError: the configuration is invalid; the message names the key and the remedy.
    """

    def __init__(
        self,
        config: dict[str, Any],
        family: dict[str, Any],
        judge: LoadJudge | None = None,
    ):
        import torch

        keep_to_loopback()
        configure("cache")
        tracing.configure("cache")
        torch.set_num_threads(1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache")
        settings, models, metrics = (
            CacheConfig.model_validate(config),
            FamilyConfig.model_validate(family),
            RayMetrics(),
        )
        encoder = family_encoder(models, settings.encoder)
        self._encoder = encoder.version
        self._cache = open_cache(settings, models, encoder, open_store(settings, metrics=metrics), judge)
        self._batcher: LookupBatcher | None = None
        if not settings.encoder_replicas:  # else the encoder is not kept: what is needed of it is its version
            self._batcher = LookupBatcher(encoder, self._search_here, settings.lookup_s, metrics)
        self._metrics = CacheMetrics(self._cache, metrics, models.heavy.steps)
        self._levels = None
        if settings.levels is not None and self._cache.levels is not None:
            fitted_on = self._cache.levels.about.encoder
            self._levels = WatchedHead(Path(settings.levels), encoder=fitted_on, steps=models.heavy.steps)
        self.ready = False
        self._rebuilt_from_store = False  # whether the index has all entries of the store
        self._failed = False
        self._tending = self._thread.submit(self._maintain)

    async def lookup(
        self,
        name: str,
        tenant: str,
        prompt: str,
        settings: dict[str, Any],
        request_id: str = "",
        traceparent: str = "",
    ) -> dict[str, Any]:
        """Encodes the prompt and looks it up; returns the fields of a :class:`weir.core.CacheLookup`."""
        assert self._batcher is not None, "the load balancers ask the encoders"
        return await self._batcher.lookup(
            Query(name, tenant, prompt, Settings.from_dict(settings), request_id), traceparent
        )

    async def search(self, queries: Sequence[Query], vectors: np.ndarray, encoder: str) -> list[dict[str, Any] | None]:
        """Calls :meth:`ApproximateCache.lookup` for encoded prompts; returns the fields of a
        :class:`weir.core.CacheLookup` for each, or None where the lookup failed.

        Args:
            vectors: float32 [N, dim].
            encoder: version of the encoder that encoded them.

        Raises:
            ConfigError: it is not the version whose vectors are in the index.
        """
        if encoder != self._encoder:
            raise ConfigError(
                f"a prompt was encoded with {encoder}, and the index has vectors of {self._encoder}; give every node "
                "the same weights, and start the service again"
            )
        if not self.ready:
            return [NO_LOOKUP.to_dict() for _ in queries]
        began = time.perf_counter()
        found = await self._do(lambda cache: [_look_up(cache, *it) for it in zip(queries, vectors, strict=True)])
        for one in filter(None, found):
            self._metrics.looked_up(one, time.perf_counter() - began)
        capture = self._rebuilt_from_store
        return [None if one is None else replace(one, capture=one.capture and capture).to_dict() for one in found]

    async def _search_here(self, queries: Sequence[Query], vectors: np.ndarray) -> list[dict[str, Any] | None]:
        return await self.search(queries, vectors, self._encoder)

    async def finish(self, reports: Sequence[CacheReport]) -> None:
        """Calls :meth:`ApproximateCache.finish` for each request, once the states that it captured are in the store,
        because the worker answers before it has stored them. States that do not arrive in time count as missing."""
        plain = [it for it in reports if not it.captured]

        def finish_plain(cache: ApproximateCache) -> None:
            for report in plain:
                _finish(cache, report)

        await asyncio.gather(
            self._do(finish_plain),
            *(self._insert(it) for it in reports if it.captured),
        )

    async def _insert(self, report: CacheReport) -> None:
        for _ in range(_STORE_CHECKS):
            if await self._do(lambda cache: cache.stored(report.name, report.captured)):
                break
            await asyncio.sleep(_STORE_CHECK_S)
        await self._do(lambda cache: _finish(cache, report))

    async def statistics(self) -> dict[str, Any]:
        """Calls :meth:`ApproximateCache.statistics`, and says whether lookups are answered."""
        return {"ready": self.ready, **await self._do(lambda cache: cache.statistics())}

    async def purge(self, tenant: str | None) -> dict[str, Any]:
        """Calls :meth:`ApproximateCache.purge`; returns ``error`` where the store failed."""
        try:
            return dict(await self._do(lambda cache: cache.purge(tenant)))
        except StoreFailed as error:
            return {"error": error.message}

    async def check_health(self) -> None:
        """Runs the periodic work. Serve calls it every few seconds."""
        self._metrics.record()
        if self._tending.done():
            self._tending = self._thread.submit(self._maintain)
        if self._levels is not None and self._levels.renewed():
            log.info("levels are now predicted by %s", self._levels.head.version)
            self._cache.levels = self._levels.head

    def _maintain(self) -> None:
        """Reads the store if that has not succeeded yet, and retries failed deletions."""
        if not self._rebuilt_from_store:
            self.ready = False
            self._rebuilt_from_store = self._rebuilt()
            self.ready = True
        with suppress(StoreFailed):  # the next call tries again
            self._cache.sweep()

    def _rebuilt(self) -> bool:
        began = logged_at = time.perf_counter()

        def log_progress(done: int) -> None:
            nonlocal logged_at
            if (now := time.perf_counter()) - logged_at >= _PROGRESS_S:
                logged_at = now
                log.info("read %d entries from the store after %.0f s", done, now - began)

        try:
            count = self._cache.rebuild(log_progress)
        except StoreFailed as error:
            log.log(
                logging.DEBUG if self._failed else logging.WARNING,
                "the cache inserts nothing until its store can be read, and tries again: %s",
                error.message,
            )
            self._failed = True
            return False
        except Exception:
            log.exception("the store could not be read; the cache starts empty")
            return True
        log.info("the index has %d entries, read from the store in %.1f s", count, time.perf_counter() - began)
        return True

    async def _do(self, work: Callable[[ApproximateCache], Answer]) -> Answer:
        work_as_here = partial(copy_context().run, work, self._cache)  # with the request id of this task
        return await asyncio.get_running_loop().run_in_executor(self._thread, work_as_here)


def _look_up(cache: ApproximateCache, query: Query, vector: np.ndarray) -> CacheLookup | None:
    """Looks one query up; None if that fails."""
    with logged_as(query.request_id):
        try:
            found = cache.lookup(query.name, query.tenant, query.prompt, query.settings, vector)
        except Exception:
            log.exception("%s: the lookup failed", query.name)
            return None
        k = 0 if found.resume is None else found.resume.step
        log.info("%s: looked up, K = %d, %s", query.name, k, _nearest(found))
        return found


def _finish(cache: ApproximateCache, report: CacheReport) -> None:
    name, resumed_at, captured, sought, seen, refused, request_id = report
    with logged_as(request_id):
        cache.finish(name, resumed_at, captured, sought, seen, refused)
        log.info("%s: ended, resumed at step %d, stored steps: %s", name, resumed_at, list(captured) or "none")


def _nearest(found: CacheLookup) -> str:
    """Describes the nearest cached prompt in the log."""
    if found.similarity is None:
        return "no similar prompt"
    return f"similarity {found.similarity:.3f}" + (f" to {found.entry}" if found.entry else "")
