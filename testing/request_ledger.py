"""A ledger of requests: every one is kept until it has its answer, and is sent again with its key while it has none."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from load_balancer.http.openapi import GENERATIONS

#: A request that has no answer for so long is lost.
PATIENCE_S = 90.0
#: The pause after the first attempt; each other one is twice as long, or as the service asks, up to the second figure.
PAUSE_S, LONGEST_PAUSE_S = 0.2, 1.0
#: Answers before any work: the request was not accepted.
REFUSALS = (429, 503)


@dataclass(slots=True)
class Entry:
    """One request. Times are seconds since the ledger was opened.

    Attributes:
        image, seed: of its answer; None while there is none.
        troubles: what went wrong with its attempts and when each of these ended: a status, or "broken" where the
            connection ended without one.
    """

    key: str
    prompt: str
    sent_s: float
    answered_s: float | None = None
    image: str | None = None
    seed: int | None = None
    path: str = ""
    troubles: list[tuple[float, int | str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Account:
    """What became of all requests.

    Attributes:
        sent: requests, each of which is sent as often as it takes.
        refused: attempts that were told to come again (429, 503), before any work.
        errors: attempts that were accepted and ended in an error of the service (5xx).
        broken: attempts whose connection ended without an answer.
        lost: requests without an image in the end.
        duplicated: images that two requests got, and requests that got two different images.
        slowest_s: from the first attempt to the image.
        last_trouble_s: when the last attempt ended that did not bring an image; None when all did.
    """

    sent: int
    refused: int
    errors: int
    broken: int
    lost: int
    duplicated: int
    slowest_s: float
    last_trouble_s: float | None


class RequestLedger:
    """Keeps an open-loop load of images on a service, and the books of it.

    Args:
        prompts: asked for at random.
        transport: instead of the network.
    """

    def __init__(
        self,
        url: str,
        prompts: list[str],
        chance: random.Random,
        *,
        patience_s: float = PATIENCE_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self.entries: list[Entry] = []
        self._url = url
        self._prompts = prompts
        self._chance = chance
        self._patience_s = patience_s
        self._transport = transport
        self._opened = time.monotonic()
        self._again: Counter[str] = Counter()

    def now(self) -> float:
        return time.monotonic() - self._opened

    @property
    def in_flight(self) -> list[Entry]:
        return [it for it in self.entries if it.answered_s is None]

    async def run(self, rps: float, stop: asyncio.Event) -> None:
        """Sends requests at Poisson times until ``stop``; returns when each has its answer or is lost."""
        async with self._client() as client, asyncio.TaskGroup() as group:
            at_s = self.now()
            while not stop.is_set():
                at_s += self._chance.expovariate(rps)
                await asyncio.sleep(max(0.0, at_s - self.now()))
                key = f"{self._chance.getrandbits(64):016x}"
                entry = Entry(key, self._chance.choice(self._prompts), self.now())
                self.entries.append(entry)
                group.create_task(self._kept(client, entry))

    async def ask_again(self, entries: list[Entry]) -> None:
        """Sends answered requests once more with their keys: each has to get the image of the same seed."""
        async with self._client() as client:

            async def one(entry: Entry) -> None:
                again = Entry(entry.key, entry.prompt, self.now())
                await self._kept(client, again)
                self._again[entry.key] += again.seed != entry.seed

            await asyncio.gather(*(one(entry) for entry in entries if entry.image is not None))

    def account(self) -> Account:
        """The books; call it when :meth:`run` has returned."""
        images = Counter(it.image for it in self.entries if it.image is not None)
        troubles = [trouble for it in self.entries for trouble in it.troubles]
        codes = Counter(code for _, code in troubles)
        return Account(
            sent=len(self.entries),
            refused=sum(codes[code] for code in REFUSALS),
            errors=sum(n for code, n in codes.items() if isinstance(code, int) and code not in REFUSALS),
            broken=codes["broken"],
            lost=sum(it.image is None for it in self.entries),
            duplicated=sum(n - 1 for n in images.values()) + self._again.total(),
            slowest_s=max((it.answered_s - it.sent_s for it in self.entries if it.answered_s is not None), default=0.0),
            last_trouble_s=max((at_s for at_s, _ in troubles), default=None),
        )

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(
            base_url=self._url, timeout=self._patience_s, limits=limits, trust_env=False, transport=self._transport
        )

    async def _kept(self, client: httpx.AsyncClient, entry: Entry) -> None:
        """Until the request has its image, or patience ends."""
        until, pause_s = entry.sent_s + self._patience_s, PAUSE_S / 2
        while self.now() < until:
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
            try:
                answer = await client.post(
                    GENERATIONS, json={"prompt": entry.prompt}, headers={"idempotency-key": entry.key}
                )
            except httpx.HTTPError:
                entry.troubles.append((self.now(), "broken"))
            else:
                if answer.status_code == 200:
                    self._close(entry, answer.json()["data"][0]["weir"])
                    return
                entry.troubles.append((self.now(), answer.status_code))
                pause_s = min(LONGEST_PAUSE_S, float(answer.headers.get("retry-after", pause_s)))
            await asyncio.sleep(pause_s)

    def _close(self, entry: Entry, about: dict[str, Any]) -> None:
        entry.image, entry.seed, entry.path = about["id"], about["seed"], about["path"]
        entry.answered_s = self.now()
