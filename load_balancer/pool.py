"""The pool of replicas as the load balancer reaches it: calls to one chosen replica, and asking all who they are."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from weir.core import Role

#: A replica that does not say who it is within this time is left as it was last known.
DESCRIBE_TIMEOUT_S = 5.0


class ReplicaLost(Exception):
    """The replica died, or cannot be reached, before it answered. The same request may be sent to another one."""

    def __init__(self, replica: str, cause: str):
        super().__init__(f"{replica}: {cause}")
        self.replica = replica


class Pool(Protocol):
    """What the load balancer needs of a pool; tests put a fake in its place."""

    async def generate(self, replica: str, role: Role, request: dict[str, Any]) -> dict[str, Any]:
        """Draws one image on that replica; the fields of :class:`weir.core.ImageResult` come back.

        Cancelling the call takes the request out of the replica's queue.

        Raises:
            ReplicaLost: the replica is gone; nothing is known about the image.
        """
        ...

    async def describe(self) -> list[dict[str, Any]]:
        """What every live replica says of itself (``Worker.describe``); empty when there is none."""
        ...


class ServePool:
    """A pool behind a Serve deployment handle whose router is :class:`load_balancer.router.ChosenReplicaRouter`."""

    def __init__(self, handle: DeploymentHandle):
        self._handle = handle
        self._to: dict[str, DeploymentHandle] = {}

    async def generate(self, replica: str, role: Role, request: dict[str, Any]) -> dict[str, Any]:
        handle = self._to.get(replica)
        if handle is None:
            handle = self._handle.options(method_name="generate", session_id=replica)
            self._to[replica] = handle
        response = handle.remote(role.value, request)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (RayActorError, RayServeException) as error:
            raise ReplicaLost(replica, type(error).__name__) from error

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
