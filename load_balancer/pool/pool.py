"""The interface of the pool of replicas: calls to a chosen replica, and descriptions of all replicas."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol


class ReplicaLost(Exception):
    """The replica died or became unreachable before it answered. The same request may be sent to another replica."""

    def __init__(self, replica: str, cause: str):
        super().__init__(f"{replica}: {cause}")
        self.replica = replica


class Pool(Protocol):
    """What the load balancer needs of a pool; tests use a fake."""

    async def generate(self, replica: str, variant: str, request: dict[str, Any], role: str) -> dict[str, Any]:
        """Generates one image on the replica; returns the fields of a :class:`weir.core.ImageResult`.

        Cancelling the call takes the request out of the replica's queue.

        Args:
            variant: key of the variant to run.
            role: the role that the image was dispatched to; a replica that no longer has it rejects its waiting images.

        Raises:
            ReplicaLost: the replica is gone; whether it generated the image is unknown.
        """
        ...

    def stream(self, replica: str, variant: str, request: dict[str, Any], role: str) -> AsyncGenerator[dict[str, Any]]:
        """Like :meth:`generate`, with previews (``workers.replica.Worker.stream``): every part but the last has a
        ``preview``; the last one is the result."""
        ...

    async def describe(self) -> list[dict[str, Any]]:
        """Descriptions of all live replicas (``Worker.describe``); empty when there is none.

        A replica that does not answer in time is included with its last description and ``silent`` set to true. It
        delays the answers of the others by at most that time. ``clock_skew_s`` is the number of seconds by which a
        replica's wall clock is ahead of this process's, or 0 where it is not known.
        """
        ...

    async def end(self, described: Mapping[str, Any]) -> None:
        """Kills a replica that stopped answering, given its last description, so that the cluster starts another one.
        Does nothing if it is gone already."""
        ...
