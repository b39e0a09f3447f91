"""Threads for work on images, of which every caller has a share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from load_balancer.http.fair_turns import FairTurns
from weir.thread_priority import give_way

#: Niceness of the threads: answers that are ready must not wait for them.
_NICENESS = 5

T = TypeVar("T")


class SharedThreads:
    """Runs functions in threads of its own, in turns by caller (:class:`~load_balancer.http.fair_turns.FairTurns`).

    Args:
        threads: number of functions that run at once.
        name: of the threads.
    """

    def __init__(self, threads: int, name: str):
        self._turns = FairTurns(threads)
        self._threads = ThreadPoolExecutor(threads, name, initializer=partial(give_way, _NICENESS))

    async def run(self, caller: str, work: Callable[[], T]) -> T:
        """Runs a function in the caller's turn. If the call is cancelled, it ends when the function has ended."""
        async with self._turns.turn(caller):
            running = asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, work)
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                await asyncio.wait({running})  # the thread is in use until then
                raise
