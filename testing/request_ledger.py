"""Load generator with a ledger: every request is recorded. It is sent once, or repeated with its idempotency key until
it is answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from load_balancer.http.openapi import GENERATIONS

#: Seconds after which a request without an answer is lost.
PATIENCE_S = 90.0
#: Pause after the first attempt, which doubles with each attempt or follows ``Retry-After``, and its upper limit,
#: seconds.
PAUSE_S, LONGEST_PAUSE_S = 0.2, 1.0
#: Statuses of requests that were refused before any work.
REFUSALS = (429, 503)


@dataclass(slots=True)
class Entry:
    """One request. Times are seconds since the start of the ledger.

    Attributes:
        image, seed: image id and seed of its answer; None while there is none.
        failures: end time and result of each failed attempt: a status, or "broken" when the connection ended without
            one.
    """

    key: str
    prompt: str
    sent_s: float
    answered_s: float | None = None
    image: str | None = None
    seed: int | None = None
    path: str = ""
    failures: list[tuple[float, int | str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Account:
    """Summary of all requests.

    Attributes:
        sent: number of requests.
        refused: number of attempts that were refused before any work (429, 503).
        errors: number of attempts that were accepted and ended in an error of the service (5xx).
        broken: number of attempts whose connection ended without an answer.
        lost: number of requests without an image in the end.
        duplicated: number of images that two requests received, plus requests that received two different images.
        slowest_s: longest time from the first attempt to the image.
        last_failure_s: end time of the last failed attempt; None without failures.
    """

    sent: int
    refused: int
    errors: int
    broken: int
    lost: int
    duplicated: int
    slowest_s: float
    last_failure_s: float | None


class RequestLedger:
    """Sends an open-loop load of requests to a service and records every request.

    Args:
        prompts: prompts to choose from at random.
        plain: whether clients send each request once and without an idempotency key; otherwise they repeat it.
        transport: replaces the network in tests.
    """

    def __init__(
        self,
        url: str,
        prompts: list[str],
        chance: random.Random,
        *,
        plain: bool = False,
        patience_s: float = PATIENCE_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self.entries: list[Entry] = []
        self._url = url
        self._prompts = prompts
        self._chance = chance
        self._plain = plain
        self._patience_s = patience_s
        self._transport = transport
        self._opened = time.monotonic()
        self._again: Counter[str] = Counter()

    def now(self) -> float:
        return time.monotonic() - self._opened

    @property
    def in_flight(self) -> list[Entry]:
        return [it for it in self.entries if it.answered_s is None and not (self._plain and it.failures)]

    async def run(self, rps: float, stop: asyncio.Event) -> None:
        """Sends requests at Poisson times until ``stop`` is set; returns when each is answered or lost."""
        async with self._client() as client, asyncio.TaskGroup() as group:
            at_s = self.now()
            while not stop.is_set():
                at_s += self._chance.expovariate(rps)
                await asyncio.sleep(max(0.0, at_s - self.now()))
                key = f"{self._chance.getrandbits(64):016x}"
                entry = Entry(key, self._chance.choice(self._prompts), self.now())
                self.entries.append(entry)
                group.create_task(self._send_until_answered(client, entry))

    async def resend(self, entries: list[Entry]) -> None:
        """Sends answered requests again with their keys, and counts those that receive an image of another seed. Plain
        requests have no keys, and are not sent again."""
        if self._plain:
            return
        async with self._client() as client:

            async def one(entry: Entry) -> None:
                again = Entry(entry.key, entry.prompt, self.now())
                await self._send_until_answered(client, again)
                self._again[entry.key] += again.seed != entry.seed

            await asyncio.gather(*(one(entry) for entry in entries if entry.image is not None))

    def account(self) -> Account:
        """Returns the summary; call it after :meth:`run` has returned."""
        images = Counter(it.image for it in self.entries if it.image is not None)
        failures = [failure for it in self.entries for failure in it.failures]
        codes = Counter(code for _, code in failures)
        return Account(
            sent=len(self.entries),
            refused=sum(codes[code] for code in REFUSALS),
            errors=sum(n for code, n in codes.items() if isinstance(code, int) and code not in REFUSALS),
            broken=codes["broken"],
            lost=sum(it.image is None for it in self.entries),
            duplicated=sum(n - 1 for n in images.values()) + self._again.total(),
            slowest_s=max((it.answered_s - it.sent_s for it in self.entries if it.answered_s is not None), default=0.0),
            last_failure_s=max((at_s for at_s, _ in failures), default=None),
        )

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(
            base_url=self._url, timeout=self._patience_s, limits=limits, trust_env=False, transport=self._transport
        )

    async def _send_until_answered(self, client: httpx.AsyncClient, entry: Entry) -> None:
        """Sends a request, and unless clients are plain repeats it, until it has its image or is lost."""
        until, pause_s = entry.sent_s + self._patience_s, PAUSE_S / 2
        while self.now() < until:
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
            try:
                answer = await client.post(
                    GENERATIONS,
                    json={"prompt": entry.prompt},
                    headers={} if self._plain else {"idempotency-key": entry.key},
                )
            except httpx.HTTPError:
                entry.failures.append((self.now(), "broken"))
            else:
                if answer.status_code == 200:
                    self._close(entry, answer.json()["data"][0]["weir"])
                    return
                entry.failures.append((self.now(), answer.status_code))
                pause_s = min(LONGEST_PAUSE_S, float(answer.headers.get("retry-after", pause_s)))
            if self._plain:
                return
            await asyncio.sleep(pause_s)

    def _close(self, entry: Entry, about: dict[str, Any]) -> None:
        entry.image, entry.seed, entry.path = about["id"], about["seed"], about["path"]
        entry.answered_s = self.now()
