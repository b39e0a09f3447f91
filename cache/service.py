"""The cache as a Serve deployment: one replica holds the index and the ledger; the states lie in Redis."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from cache.cache import ApproximateCache
from cache.cache_metrics import CacheMetrics
from cache.factory import LoadJudge, open_cache, open_store
from cache.policy.partition import Settings
from cache.store.backend import StoreFailed
from weir.config import CacheConfig, FamilyConfig
from weir.core import NO_LOOKUP
from weir.loopback import keep_to_loopback
from weir.prompt_levels import WatchedHead
from weir.telemetry import RayMetrics

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
#: While the store is read, the log says this often how far it is, seconds.
_TELL_S = 10.0
#: How often the store is asked for what a worker is just storing, and seconds between.
_LOOKS, _LOOK_S = 5, 0.1


class CacheService:
    """Configuration and family are plain JSON, as the classes' ``model_dump`` writes them.

    Args:
        judge: as :func:`cache.factory.open_cache` has it.

    All work is done on one thread, in order; the event loop only waits. While the index is being rebuilt from the store
    every lookup is a miss, and requests go their way. Where the store cannot be read, lookups are answered and nothing
    is kept, for what lies there counts; it is read again with every look at health.

    Attributes:
        ready: lookups are answered.

    Raises:
        ConfigError: names the key and the remedy.
    """

    def __init__(
        self,
        config: dict[str, Any],
        family: dict[str, Any],
        judge: LoadJudge | None = None,
    ):
        import torch

        keep_to_loopback()
        torch.set_num_threads(1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache")
        settings, models, metrics = (
            CacheConfig.model_validate(config),
            FamilyConfig.model_validate(family),
            RayMetrics(),
        )
        self._cache = open_cache(settings, models, open_store(settings, metrics=metrics), judge)
        self._meter = CacheMetrics(self._cache, metrics, models.heavy.steps)
        self._levels = None
        if settings.levels is not None and self._cache.levels is not None:
            encoder = self._cache.levels.about.encoder
            self._levels = WatchedHead(Path(settings.levels), encoder=encoder, steps=models.heavy.steps)
        self.ready = False
        self._whole = False  # all that the store holds is in the index
        self._failed = False
        self._tending = self._thread.submit(self._tend)

    async def lookup(self, name: str, tenant: str, prompt: str, settings: dict[str, Any]) -> dict[str, Any]:
        """:meth:`ApproximateCache.lookup`; the fields of a :class:`weir.core.CacheLookup` come back."""
        if not self.ready:
            return NO_LOOKUP.to_dict()
        wanted = Settings(**settings)
        began = time.perf_counter()
        found = await self._do(lambda cache: cache.lookup(name, tenant, prompt, wanted))
        self._meter.looked_up(found, time.perf_counter() - began)
        return (found if self._whole else replace(found, capture=False)).to_dict()

    async def finish(
        self,
        name: str,
        resumed_at: int,
        captured: Sequence[int],
        sought: int,
        seen: bytes | None = None,
        refused: bool = False,
    ) -> None:
        """:meth:`ApproximateCache.finish`, once what was captured is in the store: the worker does not wait for that
        before it answers. What does not come counts as not there."""
        for _ in range(_LOOKS if captured else 0):
            if await self._do(lambda cache: cache.stored(name, captured)):
                break
            await asyncio.sleep(_LOOK_S)
        await self._do(lambda cache: cache.finish(name, resumed_at, captured, sought, seen, refused))

    async def check_health(self) -> None:
        """Serve asks every few seconds; it is the clock of what is not done with every request."""
        self._meter.tell()
        if self._tending.done():
            self._tending = self._thread.submit(self._tend)
        if self._levels is not None and self._levels.renewed():
            log.info("levels are predicted by %s from now on", self._levels.head.version)
            self._cache.levels = self._levels.head

    def _tend(self) -> None:
        """Reads the store where that is still to be done, and deletes what it did not delete when it was asked to."""
        if not self._whole:
            self.ready = False
            self._whole = self._rebuilt()
            self.ready = True
        with suppress(StoreFailed):  # the next time, then
            self._cache.sweep()

    def _rebuilt(self) -> bool:
        began = told = time.perf_counter()

        def tell(done: int) -> None:
            nonlocal told
            if (now := time.perf_counter()) - told >= _TELL_S:
                told = now
                log.info("%d entries are read from the store, after %.0f s", done, now - began)

        try:
            count = self._cache.rebuild(tell)
        except StoreFailed as error:
            log.log(
                logging.DEBUG if self._failed else logging.WARNING,
                "the cache keeps nothing until its store can be read, which is tried again: %s",
                error.message,
            )
            self._failed = True
            return False
        except Exception:
            log.exception("the cache begins empty")
            return True
        log.info("the index holds %d entries, read from the store in %.1f s", count, time.perf_counter() - began)
        return True

    async def _do(self, work: Callable[[ApproximateCache], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._cache)
