"""The pool of replicas as the load balancer needs it: calls to a chosen replica, and descriptions of all of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol


class ReplicaLost(Exception):
    """The replica died, or cannot be reached, before it answered. The same request may be sent to another one."""

    def __init__(self, replica: str, cause: str):
        super().__init__(f"{replica}: {cause}")
        self.replica = replica


class Pool(Protocol):
    """What the load balancer needs of a pool; tests put a fake in its place."""

    async def generate(self, replica: str, variant: str, request: dict[str, Any], role: str) -> dict[str, Any]:
        """Generates one image on that replica; the fields of :class:`weir.core.ImageResult` come back.

        Cancelling the call takes the request out of the replica's queue.

        Args:
            variant: key of the variant to run.
            role: that the image is dispatched for; a replica that gave it up sends away what waits there.

        Raises:
            ReplicaLost: the replica is gone; nothing is known about the image.
        """
        ...

    def stream(self, replica: str, variant: str, request: dict[str, Any], role: str) -> AsyncGenerator[dict[str, Any]]:
        """As :meth:`generate`, with previews on the way (``workers.replica.Worker.stream``): each part has a
        ``preview`` but for the last, which is the result."""
        ...

    async def describe(self) -> list[dict[str, Any]]:
        """Descriptions of all live replicas (``Worker.describe``); empty when there is none.

        One that does not answer in time comes as last known, with ``silent`` true; it never delays the others' answers
        by more than that time.
        """
        ...

    async def end(self, described: Mapping[str, Any]) -> None:
        """Ends a replica that will not come back, as it last described itself; the cluster starts another one. Nothing
        happens if it is gone already."""
        ...
