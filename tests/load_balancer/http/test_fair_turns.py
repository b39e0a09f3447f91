"""Turns at once: bounded, in shares by caller, and none is lost."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_balancer.http.fair_turns import FairTurns


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), max_size=25))
def test_turns_are_bounded_and_everybody_gets_one(most: int, work: list[tuple[str, int, bool]]) -> None:
    running: Counter[str] = Counter()
    done: list[int] = []

    async def one(turns: FairTurns, number: int, caller: str, steps: int) -> None:
        async with turns.turn(caller):
            running[caller] += 1
            assert running.total() <= most
            assert running[caller] <= max(1, most // 2)
            try:
                for _ in range(steps):
                    await asyncio.sleep(0)
            finally:
                running[caller] -= 1
        done.append(number)

    async def check() -> None:
        turns = FairTurns(most)
        tasks = [asyncio.create_task(one(turns, i, caller, steps)) for i, (caller, steps, _) in enumerate(work)]
        await asyncio.sleep(0)
        for task, (_, _, leaves) in zip(tasks, work, strict=True):
            if leaves:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stayed = {number for number, (_, _, leaves) in enumerate(work) if not leaves}
        assert stayed <= set(done)
        assert not running.total()
        async with turns.turn("d"):
            pass

    asyncio.run(check())


@pytest.mark.parametrize("most", [1, 2, 4])
async def test_a_caller_with_many_waiting_delays_another_by_one_turn_at_most(most: int) -> None:
    turns = FairTurns(most)
    order: list[str] = []

    async def one(caller: str) -> None:
        async with turns.turn(caller):
            order.append(caller)
            await asyncio.sleep(0)

    hostile = [asyncio.create_task(one("mallory")) for _ in range(60)]
    await asyncio.sleep(0)
    await one("alice")
    assert order.index("alice") <= max(1, most // 2)
    await asyncio.gather(*hostile)
