"""Tests of the request ledger: it notices lost, duplicated and failed requests."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from testing import request_ledger as ledgers
from testing.request_ledger import Account, RequestLedger

#: Answers the given attempt of the request with the given key.
Service = Callable[[str, int], httpx.Response]


def image(key: str, seed: int = 1) -> httpx.Response:
    return httpx.Response(200, json={"data": [{"weir": {"id": f"image of {key}", "seed": seed, "path": "light"}}]})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "PAUSE_S", 0.001)
    monkeypatch.setattr(ledgers, "LONGEST_PAUSE_S", 0.001)


async def account(service: Service, *, plain: bool = False, patience_s: float = 30.0, requests: int = 20) -> Account:
    attempts: Counter[str] = Counter()

    def answer(request: httpx.Request) -> httpx.Response:
        key = request.headers.get("idempotency-key", "none")
        attempts[key] += 1
        return service(key, attempts[key])

    ledger = RequestLedger(
        "http://nowhere",
        ["a"],
        random.Random(1),
        plain=plain,
        patience_s=patience_s,
        transport=httpx.MockTransport(answer),
    )
    stop = asyncio.Event()
    running = asyncio.create_task(ledger.run(1000.0, stop))
    while len(ledger.entries) < requests:
        await asyncio.sleep(0)
    stop.set()
    await running
    await ledger.resend(ledger.entries)
    return ledger.account()


async def test_the_account_of_a_healthy_service_is_clean():
    found = await account(lambda key, attempt: image(key))
    assert found.sent >= 20
    assert (found.refused, found.errors, found.broken, found.lost, found.duplicated) == (0, 0, 0, 0, 0)
    assert found.last_failure_s is None


async def test_failed_attempts_are_repeated_and_counted_by_kind():
    def service(key: str, attempt: int) -> httpx.Response:
        if attempt == 1:
            return httpx.Response(503, headers={"retry-after": "1"})
        if attempt == 2:
            return httpx.Response(500)
        if attempt == 3:
            raise httpx.ReadError("gone")
        return image(key)

    found = await account(service)
    assert found.refused == found.errors == found.broken == found.sent
    assert (found.lost, found.duplicated) == (0, 0)
    assert found.last_failure_s is not None


async def test_a_plain_client_sends_its_request_once_and_without_a_key():
    def service(key: str, attempt: int) -> httpx.Response:
        assert key == "none"
        return httpx.Response(503) if attempt == 1 else image(f"attempt {attempt}")

    found = await account(service, plain=True)
    assert (found.refused, found.lost, found.duplicated) == (1, 1, 0)


async def test_a_request_without_an_image_in_the_end_is_lost():
    found = await account(lambda key, attempt: httpx.Response(500), patience_s=0.02)
    assert found.lost == found.sent


async def test_one_image_for_two_requests_is_a_duplicate():
    found = await account(lambda key, attempt: image("all"))
    assert found.duplicated == found.sent - 1


async def test_another_image_for_the_same_key_is_a_duplicate():
    found = await account(lambda key, attempt: image(key, seed=attempt))
    assert found.duplicated == found.sent
