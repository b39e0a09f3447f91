"""A limited number of turns at once, of which each caller has a share."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairTurns:
    """Lets a limited number of pieces of work run at once. Lives on one event loop.

    A caller has at most half of the turns, so that another one does not wait for it, as far as there are several. When
    callers wait, the one with the fewest turns is next, and of several the one that had none for longest.

    Args:
        most: number of turns.
    """

    def __init__(self, most: int):
        self._most = most
        self._most_each = max(1, most // 2)
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the caller that had a turn last is the last

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """Context manager in which a caller has a turn; waits for it."""
        await self._begin(caller)
        try:
            yield
        finally:
            self._end(caller)

    async def _begin(self, caller: str) -> None:
        if self._may_run(caller) and not self._waiting:
            self._running[caller] += 1
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(mine)
        self._give_turns()
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                self._forget(caller, mine)
            else:  # it has got its turn meanwhile
                self._end(caller)
            raise

    def _end(self, caller: str) -> None:
        self._running[caller] -= 1
        if not self._running[caller]:
            del self._running[caller]
        if caller in self._waiting:
            self._waiting[caller] = self._waiting.pop(caller)
        self._give_turns()

    def _may_run(self, caller: str) -> bool:
        return self._running.total() < self._most and self._running[caller] < self._most_each

    def _give_turns(self) -> None:
        while able := [caller for caller in self._waiting if self._may_run(caller)]:
            caller = min(able, key=lambda it: self._running[it])
            first = self._waiting[caller][0]
            self._forget(caller, first)
            if first.cancelled():
                continue
            self._running[caller] += 1
            first.set_result(None)

    def _forget(self, caller: str, one: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(caller, deque())
        if one in waiting:
            waiting.remove(one)
        if not waiting:
            self._waiting.pop(caller, None)
