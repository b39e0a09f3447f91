"""The waits for replicas' answers, which end when a replica is declared dead."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from load_balancer.pool.pool import ReplicaLost


class AnswerWaits:
    """Lives on one event loop."""

    def __init__(self) -> None:
        self._waits: defaultdict[str, set[asyncio.Timeout]] = defaultdict(set)

    @asynccontextmanager
    async def on(self, replica: str) -> AsyncIterator[None]:
        """Context manager that aborts a wait for the replica's answer when the replica is declared dead.

        Raises:
            ReplicaLost: the replica stopped answering; see ``load_balancer/dispatch/failure_detector.py``.
        """
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._waits[replica].add(limit)
                try:
                    yield
                finally:
                    self._waits[replica].discard(limit)
                    if not self._waits[replica]:
                        del self._waits[replica]
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ReplicaLost(replica, "it does not answer") from error

    def abort(self, replica: str) -> None:
        """Declares a replica dead."""
        for wait in self._waits.get(replica, ()):
            if not wait.expired():
                wait.reschedule(0)  # in the past on any clock

    def count(self, replica: str) -> int:
        """Number of images that the replica has and has not answered."""
        return len(self._waits.get(replica, ()))
