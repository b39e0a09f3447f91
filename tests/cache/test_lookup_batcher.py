"""Lookups are made in batches that end in time, and the failure of one is not the failure of others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.encoder import WordEncoder
from cache.lookup_batcher import LookupBatcher, LookupFailed, Query, batch_size
from cache.policy.partition import Settings
from weir.core import NO_LOOKUP, ImageSize
from weir.telemetry import NoMetrics

#: Time limit of a lookup on the clock of the test, which stands still.
LIMIT_S = 60.0


class GatedEncoder(WordEncoder):
    """Encodes a batch when the test lets it."""

    def __init__(self) -> None:
        super().__init__(64)
        self.batches: list[list[str]] = []
        self.gate = threading.Semaphore(0)

    def encode(self, prompts: Sequence[str]) -> np.ndarray:
        self.batches.append(list(prompts))
        assert self.gate.acquire(timeout=60)
        if "unreadable" in prompts:
            raise ValueError("unreadable")
        return super().encode(prompts)


class Setup:
    """A batcher over a gated encoder, and a cache that finds nothing."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.encoder = GatedEncoder()
        self.now = 0.0
        self.searched: list[list[str]] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.batcher = LookupBatcher(self.encoder, self.search, limit_s, NoMetrics(), lambda: self.now)

    async def search(self, queries: Sequence[Query], vectors: np.ndarray) -> list[dict[str, Any] | None]:
        assert vectors.shape == (len(queries), 64)
        await self.answers.wait()
        self.searched.append([it.prompt for it in queries])
        return [None if it.prompt == "unsearchable" else NO_LOOKUP.to_dict() for it in queries]

    def ask(self, *prompts: str) -> list[asyncio.Task[dict[str, Any]]]:
        """Starts lookups, one after another."""
        return [
            asyncio.create_task(self.batcher.lookup(Query(it, "acme", it, Settings(ImageSize(64, 64)))))
            for it in prompts
        ]

    async def begun(self, batches: int) -> None:
        """Waits until the encoder has got ``batches`` batches."""
        while len(self.encoder.batches) < batches:
            await asyncio.sleep(0.001)

    async def warm(self) -> None:
        """Teaches the batcher that encoding takes no time."""
        for i in range(12):
            self.encoder.gate.release()
            await self.ask(f"warm {i}")[0]
        self.encoder.batches.clear()
        self.searched.clear()


@given(st.integers(0, 100), st.floats(0, 10), st.floats(0.001, 5))
def test_a_lookup_that_just_missed_a_batch_is_encoded_within_its_time_limit(
    waiting: int, prompt_s: float, limit_s: float
) -> None:
    size = batch_size(waiting, prompt_s, limit_s)
    assert 1 <= size <= max(1, waiting)
    assert size == 1 or 2 * size * prompt_s <= limit_s


async def test_prompts_that_wait_together_are_encoded_and_looked_up_with_one_call() -> None:
    setup = Setup()
    await setup.warm()
    first = setup.ask("a")
    await setup.begun(1)
    others = setup.ask("b", "c", "d")
    await asyncio.sleep(0)
    setup.encoder.gate.release(2)
    assert await asyncio.gather(*first, *others) == [NO_LOOKUP.to_dict()] * 4
    assert setup.encoder.batches == setup.searched == [["a"], ["b", "c", "d"]]


async def test_a_batch_is_encoded_while_the_cache_is_asked_for_the_one_before() -> None:
    setup = Setup()
    setup.answers.clear()
    setup.encoder.gate.release(2)
    first = setup.ask("a")
    await setup.begun(1)
    second = setup.ask("b")
    await setup.begun(2)
    setup.answers.set()
    await asyncio.gather(*first, *second)


async def test_a_busy_cache_gets_one_call_for_all_that_was_encoded_meanwhile() -> None:
    setup = Setup()
    setup.answers.clear()
    lookups = []
    for number, prompt in enumerate("abcd"):
        lookups += setup.ask(prompt)
        await setup.begun(number + 1)
        setup.encoder.gate.release()
    setup.answers.set()
    await asyncio.gather(*lookups)
    assert setup.searched[0] == ["a"]
    assert sorted(prompt for call in setup.searched for prompt in call) == ["a", "b", "c", "d"]
    assert len(setup.searched) < 4


async def test_under_overload_the_latest_come_first_and_who_waited_too_long_is_not_encoded() -> None:
    setup = Setup()  # the time of a prompt is not known yet, so that a batch has one
    [first] = setup.ask("first")
    await setup.begun(1)
    [early] = setup.ask("early")
    await asyncio.sleep(0)
    setup.now = LIMIT_S / 2
    late = setup.ask("late", "latest")
    await asyncio.sleep(0)
    setup.encoder.gate.release()
    await first
    await setup.begun(2)
    setup.now = LIMIT_S + 1
    setup.encoder.gate.release(2)
    with pytest.raises(TimeoutError):
        await early
    await asyncio.gather(*late)
    assert setup.encoder.batches == [["first"], ["latest"], ["late"]]


async def test_a_cancelled_lookup_is_not_encoded() -> None:
    setup = Setup()
    [first] = setup.ask("first")
    await setup.begun(1)
    [cancelled] = setup.ask("cancelled")
    await asyncio.sleep(0)
    cancelled.cancel()
    setup.encoder.gate.release(2)
    await first
    await asyncio.gather(*setup.ask("next"))
    assert setup.encoder.batches == [["first"], ["next"]]


async def test_an_encoder_that_fails_fails_its_batch_and_not_the_next() -> None:
    setup = Setup()
    setup.encoder.gate.release(2)
    with pytest.raises(ValueError, match="unreadable"):
        await setup.ask("unreadable")[0]
    assert await setup.ask("a")[0] == NO_LOOKUP.to_dict()


async def test_a_lookup_that_the_cache_could_not_make_fails_alone() -> None:
    setup = Setup()
    await setup.warm()
    first = setup.ask("a")
    await setup.begun(1)
    bad, good = setup.ask("unsearchable", "b")
    await asyncio.sleep(0)
    setup.encoder.gate.release(2)
    await first[0]
    with pytest.raises(LookupFailed):
        await bad
    assert await good == NO_LOOKUP.to_dict()


async def test_a_cache_that_does_not_answer_ends_the_lookup_at_its_time_limit() -> None:
    setup = Setup(limit_s=0.01)
    setup.answers.clear()
    setup.encoder.gate.release()
    with pytest.raises(TimeoutError):
        await setup.ask("a")[0]
