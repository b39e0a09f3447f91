"""The pool behind a Serve deployment handle."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from load_balancer.pool import ReplicaLost
from weir.core import Role

#: A replica that does not say who it is within this time is left as it was last known.
DESCRIBE_TIMEOUT_S = 5.0


class ServePool:
    """A :class:`~load_balancer.pool.Pool`. The deployment has to route by ``ChosenReplicaRouter``."""

    def __init__(self, handle: DeploymentHandle):
        self._handle = handle
        self._to: dict[str, DeploymentHandle] = {}

    async def generate(self, replica: str, role: Role, request: dict[str, Any]) -> dict[str, Any]:
        handle = self._to.get(replica)
        if handle is None:
            handle = self._handle.options(method_name="generate", session_id=replica)
            self._to[replica] = handle
        response = _called(handle, role, request)
        with _lost(replica, response):
            return await response

    async def stream(self, replica: str, role: Role, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        handle = self._handle.options(method_name="stream", session_id=replica, stream=True)
        response = _called(handle, role, request)
        with _lost(replica, response):
            async for part in response:
                yield part

    async def describe(self) -> list[dict[str, Any]]:
        try:
            answers = await self._handle.broadcast("describe").results_async(
                timeout_s=DESCRIBE_TIMEOUT_S, return_exceptions=True
            )
        except RayServeException:  # no replica is routable
            return []
        described = [it for it in answers if isinstance(it, dict)]
        here = {it["replica"] for it in described}
        self._to = {replica: handle for replica, handle in self._to.items() if replica in here}
        return described


def _called(handle: DeploymentHandle, role: Role, request: dict[str, Any]) -> Any:
    # Serve names a call after the HTTP request that it finds in the context, and its router loses one of two calls of
    # one name that wait at the same time. So the images of a request are called for from an empty context.
    return contextvars.Context().run(handle.remote, role.value, request)


@contextmanager
def _lost(replica: str, response: Any) -> Iterator[None]:
    """Who is cancelled while waiting for the response, or leaves it half read, cancels it; its failures get their name.

    Raises:
        ReplicaLost: the replica is gone.
    """
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        response.cancel()
        raise
    except (RayActorError, RayServeException) as error:
        raise ReplicaLost(replica, type(error).__name__) from error
