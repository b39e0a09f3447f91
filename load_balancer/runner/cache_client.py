"""The approximate cache as the load balancer sees it: ask before drawing, tell afterwards, and never depend on it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ray.serve.handle import DeploymentHandle

from weir.core import ImageRequest, ImageResult

log = logging.getLogger(__name__)

#: After so many lookups in a row that failed, the next ones are misses for a while, at no wait.
_FAILURES = 5
_REST_S = 1.0
#: A cache that is away is not told later than this how a request ended, seconds: calls would pile up.
_TELL_S = 60.0


@dataclass(frozen=True, slots=True)
class CacheLookup:
    """What the cache has for a request.

    Attributes:
        partition: where states of this request belong; "" without a cache.
        similarity: cosine to the nearest cached prompt; None where none was looked for.
        entry, key, k: id of the cached prompt, where its state lies, and the step it enters; k = 0 is a miss.
        stride: of the steps that are left every so-many-th runs.
        accept: the least confidence in the resumed picture; below, it is drawn anew from noise.
        capture: whether the states of a heavy run from noise are worth keeping.
        level: predicted for the prompt (``weir/prompt_levels.py``); None without a classifier.
    """

    partition: str = ""
    similarity: float | None = None
    entry: str | None = None
    key: str | None = None
    k: int = 0
    stride: int = 1
    accept: float = 0.0
    capture: bool = False
    level: int | None = None

    def of(self, request: ImageRequest) -> ImageRequest:
        """The request for the heavy variant: resumed where there is a match, captured where that is worth it."""
        return replace(
            request,
            resume_key=self.key,
            resume_step=self.k,
            resume_stride=self.stride if self.k else 1,
            accept=self.accept if self.k else 0.0,
            capture=self.capture,
            cache_partition=self.partition,
        )

    def left(self, steps: int) -> int:
        """Steps that run, of a run that has so many from noise."""
        return (steps - self.k) // self.stride if self.k else steps

    def saved(self, steps: int) -> float:
        """The share of the steps that do not run."""
        return (steps - self.left(steps)) / steps


#: No cache was asked.
NO_REUSE = CacheLookup()


class CacheClient(Protocol):
    """What the load balancer needs of a cache; tests put a fake in its place."""

    #: Lookups that gave nothing for another reason than that there was nothing, by reason.
    failures: Counter[str]

    async def find(self, request: ImageRequest, tenant: str) -> CacheLookup:
        """What may be reused; a miss when the cache fails or is slow. Never raises."""
        ...

    def finished(self, request: ImageRequest, drawn: ImageResult | None, sought: bool) -> None:
        """Tells what became of the request. Never waits and never raises.

        Args:
            drawn: by the heavy variant, at last; None: it drew nothing.
            sought: that run was asked to resume, if there was a match.
        """
        ...


class ServeCacheClient:
    """A :class:`CacheClient` behind the handle of ``cache.service.CacheService``.

    Args:
        wait_s: longest wait for a lookup.
    """

    def __init__(self, handle: DeploymentHandle, wait_s: float):
        self._handle = handle
        self._wait_s = wait_s
        self._telling: set[asyncio.Task[None]] = set()
        self._failed = 0
        self._rests_until = 0.0
        self.failures: Counter[str] = Counter()

    async def find(self, request: ImageRequest, tenant: str) -> CacheLookup:
        now = asyncio.get_running_loop().time()
        if now < self._rests_until:
            self.failures["resting"] += 1
            return NO_REUSE
        settings = {
            "width": request.width,
            "height": request.height,
            "steps": request.steps,
            "guidance": request.guidance,
            "negative_prompt": request.negative_prompt,
        }
        try:
            found = await asyncio.wait_for(
                self._call("lookup", request.id, tenant, request.prompt, settings), self._wait_s
            )
        except Exception as error:  # whatever a cache does, it costs speed and nothing else
            self.failures[type(error).__name__] += 1
            self._failed += 1
            if self._failed >= _FAILURES:
                self._failed, self._rests_until = 0, now + _REST_S
                log.warning("the cache fails and is left alone for %g s: %s", _REST_S, type(error).__name__)
            return NO_REUSE
        self._failed = 0
        return CacheLookup(**found)

    def finished(self, request: ImageRequest, drawn: ImageResult | None, sought: bool) -> None:
        what: tuple[object, ...] = (0, (), False, None, False)
        if drawn is not None:
            what = drawn.resumed_at, drawn.captured, sought, drawn.seen, drawn.refused
        task = asyncio.create_task(self._tell(request.id, *what))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, *what: object) -> None:
        try:
            await asyncio.wait_for(self._call("finish", *what), _TELL_S)
        except Exception as error:
            self.failures["tell"] += 1
            log.info("the cache was not told how a request ended: %s", type(error).__name__)

    async def _call(self, method: str, *arguments: object) -> Any:
        # From an empty context, as in serve_pool.py: images of one HTTP request would get calls of one name.
        handle = self._handle.options(method_name=method)
        return await contextvars.Context().run(handle.remote, *arguments)
