"""A pool of replicas behind a Serve deployment handle."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from load_balancer.pool.clock_skew import clock_skew_s
from load_balancer.pool.pool import ReplicaLost
from weir.actor_process import end
from weir.adapters import AdapterUse
from weir.errors import InvalidRequest, NotReady
from weir.ray_private import broadcast_results

#: A replica that does not describe itself within this time is silent.
DESCRIBE_TIMEOUT_S = 2.0
#: Longest time that replicas take to fetch an adapter and to check it, seconds.
CHECK_TIMEOUT_S = 110.0


class ServePool:
    """A :class:`~load_balancer.pool.pool.Pool`. The deployment has to route by ``ChosenReplicaRouter``."""

    def __init__(self, handle: DeploymentHandle):
        self._handle = handle
        self._to: dict[str, DeploymentHandle] = {}
        self._known: dict[str, dict[str, Any]] = {}

    async def generate(self, replica: str, variant: str, request: dict[str, Any], role: str) -> dict[str, Any]:
        handle = self._to.get(replica)
        if handle is None:
            handle = self._handle.options(method_name="generate", session_id=replica)
            self._to[replica] = handle
        response = _called(handle, variant, request, role)
        with self._lost(replica, response):
            return await response

    async def stream(
        self, replica: str, variant: str, request: dict[str, Any], role: str
    ) -> AsyncGenerator[dict[str, Any]]:
        handle = self._handle.options(method_name="stream", session_id=replica, stream=True)
        response = _called(handle, variant, request, role)
        with self._lost(replica, response):
            async for part in response:
                yield part

    async def describe(self) -> list[dict[str, Any]]:
        try:
            async with asyncio.timeout(DESCRIBE_TIMEOUT_S):
                results = await broadcast_results(self._handle.broadcast("describe"))
        except RayServeException:  # no replica is routable
            results = []
        asked = {asyncio.ensure_future(_description(it, time.time())): it for it in results}
        done, late = await asyncio.wait(asked, timeout=DESCRIBE_TIMEOUT_S) if asked else (set(), set())
        for task in late:
            asked[task].cancel()
            task.cancel()
        known = {it["replica"]: it for task in done if not task.cancelled() and (it := task.result())}
        if (
            late
        ):  # results have no names: the silent replicas are those known before, not found dead, and without an answer
            known = {replica: it | {"silent": True} for replica, it in self._known.items()} | known
        self._known = known
        self._to = {replica: handle for replica, handle in self._to.items() if replica in known}
        return list(known.values())

    async def check_adapter(self, use: AdapterUse) -> None:
        """See :meth:`load_balancer.admin_controls.AdapterCheck.check_adapter`."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                results = await broadcast_results(self._handle.broadcast("check_adapter", asdict(use)))
                problems = await asyncio.gather(*(it.get_async() for it in results))
        except (TimeoutError, RayError, RayServeException) as error:
            raise NotReady(f"a replica does not answer: {type(error).__name__}; try again") from error
        if problem := next(filter(None, problems), None):
            raise InvalidRequest(problem, param="file" if use.weights.is_file else "repository")

    async def end(self, described: Mapping[str, Any]) -> None:
        if (process := described.get("process")) is not None:
            await asyncio.to_thread(end, process)

    @contextmanager
    def _lost(self, replica: str, response: Any) -> Iterator[None]:
        """Context manager around a remote call. Cancelling the wait, or leaving a stream early, cancels the call.

        Raises:
            ReplicaLost: the replica is gone.
        """
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            response.cancel()
            raise
        except (RayActorError, RayServeException) as error:
            self._known.pop(replica, None)
            raise ReplicaLost(replica, type(error).__name__) from error


async def _description(answer: Any, asked: float) -> dict[str, Any] | None:
    """The description that a replica returns, with the skew of its clock; None when it died or the call failed.

    Args:
        asked: unix time of the call.
    """
    try:
        described = await answer.get_async()
    except Exception:
        return None
    if not isinstance(described, dict):
        return None
    return described | {"clock_skew_s": clock_skew_s(described["unix_time"], asked, time.time())}


def _called(handle: DeploymentHandle, variant: str, request: dict[str, Any], role: str) -> Any:
    # Serve names a call after the HTTP request in the context, and its router loses one of two waiting calls of one
    # name. So each call is made in an empty context.
    return contextvars.Context().run(handle.remote, variant, request, role)
