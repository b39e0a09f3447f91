"""The cache as a Serve deployment: one replica holds the index and the ledger; the states lie in Redis."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from cache.approximate import ApproximateCache, Judge, Lookup
from cache.meter import CacheMeter
from cache.opening import open_cache, open_store
from cache.partition import Settings
from weir.config import CacheConfig, FamilyConfig
from weir.errors import WeirError
from weir.loopback import keep_to_loopback
from weir.prompt_levels import WatchedHead
from weir.telemetry import RayMetrics

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class CacheService:
    """Configuration and family are plain JSON, as the classes' ``model_dump`` writes them.

    Args:
        judge: as :func:`cache.opening.open_cache` has it.

    All work is done on one thread, in order; the event loop only waits. Until the index is rebuilt from the store every
    lookup is a miss, and requests go their way.

    Raises:
        ConfigError: names the key and the remedy.
    """

    def __init__(self, config: dict[str, Any], family: dict[str, Any], judge: Callable[[str], Judge] | None = None):
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
        self._meter = CacheMeter(self._cache, metrics, models.heavy.steps)
        self._levels = None
        if settings.levels is not None and self._cache.levels is not None:
            encoder = self._cache.levels.about.encoder
            self._levels = WatchedHead(Path(settings.levels), encoder=encoder, steps=models.heavy.steps)
        self._read = 0
        self._ready = False
        self._thread.submit(self._rebuild)

    async def lookup(self, name: str, tenant: str, prompt: str, settings: dict[str, Any]) -> dict[str, Any]:
        """:meth:`ApproximateCache.lookup`; the fields of a :class:`cache.approximate.Lookup` come back."""
        if not self._ready:
            return Lookup("").to_dict()
        wanted = Settings(**settings)
        began = time.perf_counter()
        found = await self._do(lambda cache: cache.lookup(name, tenant, prompt, wanted))
        self._meter.looked_up(found, time.perf_counter() - began)
        return found.to_dict()

    async def finish(
        self,
        name: str,
        resumed_at: int,
        captured: Sequence[int],
        sought: bool,
        seen: bytes | None = None,
        refused: bool = False,
    ) -> None:
        """:meth:`ApproximateCache.finish`."""
        if self._ready:
            await self._do(lambda cache: cache.finish(name, resumed_at, captured, sought, seen, refused))

    async def stats(self) -> dict[str, Any]:
        """What is cached and what happened; ``rebuilding`` counts the records read while it is not ready."""
        found = await asyncio.get_running_loop().run_in_executor(None, self._cache.stats) if self._ready else {}
        return {"ready": self._ready, "rebuilding": self._read, **found}

    async def check_health(self) -> None:
        """Serve asks every few seconds; it is the clock of what is not told with every request."""
        self._meter.tell()
        if self._levels is not None and self._levels.renewed():
            log.info("levels are predicted by %s from now on", self._levels.head.version)
            self._cache.levels = self._levels.head

    async def purge(self, tenant: str | None) -> int:
        """:meth:`ApproximateCache.purge`."""
        return await self._do(lambda cache: cache.purge(tenant))

    def _rebuild(self) -> None:
        def tell(done: int) -> None:
            self._read = done

        try:
            count = self._cache.rebuild(tell)
            log.info("the index holds %d entries", count)
        except WeirError as error:
            log.warning("the cache begins empty: %s", error.message)
        except Exception:
            log.exception("the cache begins empty")
        self._ready = True

    async def _do(self, work: Callable[[ApproximateCache], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._cache)
