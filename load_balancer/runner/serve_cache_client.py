"""The approximate cache behind a Serve deployment handle. A failure of the cache counts as a miss."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import Counter
from dataclasses import asdict
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from weir import tracing
from weir.core import NO_LOOKUP, CacheLookup, CacheReport, ImageRequest, ImageResult
from weir.errors import NotReady
from weir.logs import REQUEST_ID, request_ids

log = logging.getLogger(__name__)

#: After this many failed lookups in a row, lookups are misses without a call for :data:`_REST_S` seconds.
_FAILURES = 5
_REST_S = 1.0
#: Seconds for which the ends of requests are collected: a call costs the cache more than what it does with a report.
_COLLECT_S = 0.1
#: Time limit of such a call, seconds, so that calls to an unreachable cache do not pile up.
_FINISH_S = 60.0
#: Time limit of an operator's call, seconds: a purge deletes value by value.
_CONTROL_S = 120.0


class ServeCacheClient:
    """A :class:`~load_balancer.runner.cache_client.CacheClient` and a
    :class:`~load_balancer.admin_controls.CacheControl` for ``cache.service.CacheService``.

    Args:
        encoders: handle for ``cache.encoder_service.EncoderService``, which takes the lookups if there is one.
        wait_s: longest wait for a lookup.
    """

    def __init__(self, cache: DeploymentHandle, encoders: DeploymentHandle | None = None, *, wait_s: float):
        self.failures: Counter[str] = Counter()
        self._cache = cache
        self._lookups = encoders or cache
        self._wait_s = wait_s
        self._reports: list[CacheReport] = []  # of the next call
        self._reporting: set[asyncio.Task[None]] = set()
        self._failed = 0
        self._rests_until = 0.0

    async def find(self, request: ImageRequest) -> CacheLookup:
        now = asyncio.get_running_loop().time()
        if now < self._rests_until:
            self.failures["resting"] += 1
            return NO_LOOKUP
        settings = {
            "size": str(request.size),
            "steps": request.overrides.steps,
            "guidance": request.overrides.guidance,
            "sampler": request.overrides.sampler,
            "negative_prompt": request.negative_prompt,
            "prompt_syntax": request.prompt_syntax,
            "adapters": [asdict(use) for use in request.adapters],
        }
        about = request.id, request.tenant, request.prompt, settings, REQUEST_ID.get()
        with tracing.span("cache lookup", "client") as span:
            lookup = self._call(self._lookups, "lookup", *about, tracing.traceparent())
            try:
                found = CacheLookup.from_dict(await asyncio.wait_for(lookup, self._wait_s))
            except Exception as error:
                span.fail(tracing.code_of(error))
                self.failures[type(error).__name__] += 1
                self._failed += 1
                if self._failed >= _FAILURES:
                    self._failed, self._rests_until = 0, now + _REST_S
                    log.warning("cache lookups fail and are suspended for %g s: %s", _REST_S, type(error).__name__)
                return NO_LOOKUP
        self._failed = 0
        return found

    def finished(self, image: str, result: ImageResult | None, sought: int) -> None:
        report = CacheReport(image, request_id=REQUEST_ID.get())
        if result is not None:
            what = result.resumed_at, result.captured, sought, result.seen, result.refused
            report = CacheReport(image, *what, report.request_id)
        self._reports.append(report)
        if len(self._reports) == 1:
            task = asyncio.create_task(self._report(), context=contextvars.Context())
            self._reporting.add(task)
            task.add_done_callback(self._reporting.discard)

    async def statistics(self) -> dict[str, Any]:
        return await self._control("statistics")

    async def purge(self, tenant: str | None) -> dict[str, Any]:
        deleted = await self._control("purge", tenant)
        if "error" in deleted:
            raise NotReady(f"the store of the cache failed, and a part may remain: {deleted['error']}; purge again")
        return deleted

    async def _control(self, method: str, *arguments: object) -> dict[str, Any]:
        """Calls the cache for an operator.

        Raises:
            NotReady: it does not answer.
        """
        try:
            answer: dict[str, Any] = await asyncio.wait_for(self._call(self._cache, method, *arguments), _CONTROL_S)
        except (TimeoutError, RayError, RayServeException) as error:
            raise NotReady(f"the cache does not answer: {type(error).__name__}; try again") from error
        return answer

    async def _report(self) -> None:
        await asyncio.sleep(_COLLECT_S)
        reports, self._reports = self._reports, []
        try:
            await asyncio.wait_for(self._call(self._cache, "finish", reports), _FINISH_S)
        except Exception as error:
            self.failures["finish"] += len(reports)
            about = request_ids(it.request_id for it in reports)
            log.info("the end of a request was not reported to the cache: %s", type(error).__name__, extra=about)

    @staticmethod
    async def _call(handle: DeploymentHandle, method: str, *arguments: object) -> Any:
        # In an empty context, as in serve_pool.py: calls for images of one HTTP request would get the same name.
        return await contextvars.Context().run(handle.options(method_name=method).remote, *arguments)
