"""Carries messages between the load balancers of a service: their books, and the cancellation of jobs.

Messages are JSON, published in Redis. One that is lost costs a prediction, which the next report of a replica corrects.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import RedisError

from load_balancer.dispatch.finish_time import Kind
from load_balancer.dispatch.peers import Entry, Left, PeerBooks, Replied, Sent
from load_balancer.shared.store import SharedStore
from weir.core import ImageSize
from weir.errors import NotReady

log = logging.getLogger(__name__)

#: Seconds for which entries are collected before they are published.
COLLECT_S = 0.02
#: Seconds until a link that broke is tried again.
AGAIN_S = 0.5
#: Largest number of entries that wait for Redis; newer ones are dropped.
MOST_ENTRIES = 10_000


class PeerLink:
    """The link of one load balancer to the others.

    Args:
        name: of this load balancer.
        cancel: called with the number of a job that another load balancer asks to cancel.
        clock: seconds of the clock of the load balancer.
    """

    def __init__(
        self,
        store: SharedStore,
        name: str,
        cancel: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._store, self._name, self._cancel, self._clock = store, name, cancel, clock
        self._channel = store.key("books")
        self._entries: list[Entry] = []
        self._waiting = asyncio.Event()

    def tell(self, entry: Entry) -> None:
        """Tells the others of an entry of this load balancer's book, some milliseconds later."""
        if len(self._entries) < MOST_ENTRIES:
            self._entries.append(entry)
        self._waiting.set()

    async def ask_to_cancel(self, number: str) -> None:
        """Asks the load balancer that runs the job with a number to cancel it.

        Raises:
            NotReady: Redis does not answer.
        """
        await self._publish({"cancel": number})

    async def publish(self) -> None:
        """Publishes what is told, until cancelled."""
        while True:
            await self._waiting.wait()
            await asyncio.sleep(COLLECT_S)
            self._waiting.clear()
            entries, self._entries = self._entries, []
            try:
                await self._publish({"entries": [_row(entry) for entry in entries]})
            except NotReady:
                await asyncio.sleep(AGAIN_S)

    async def hear(self, books: PeerBooks) -> None:
        """Takes in what the others publish, until cancelled."""
        while True:
            try:
                async with self._store.subscriber() as subscriber:
                    await subscriber.subscribe(self._channel)
                    async for message in subscriber.listen():
                        self._take_in(message["data"], books)
            except (RedisError, OSError) as error:
                log.debug("nothing is heard of the other load balancers: %s", error)  # the store has warned
            await asyncio.sleep(AGAIN_S)

    async def _publish(self, fields: dict[str, Any]) -> None:
        message = json.dumps({"from": self._name, **fields}, separators=(",", ":"))
        async with self._store.redis("the books of the load balancers") as redis:
            await redis.publish(self._channel, message)

    def _take_in(self, data: bytes, books: PeerBooks) -> None:
        try:
            message = json.loads(data)
            peer, rows, number = message["from"], message.get("entries", ()), message.get("cancel")
            if peer == self._name:
                return
            if number is not None:
                self._cancel(number)
            books.hear(peer, _entries(rows), self._clock())
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("a message of another load balancer is invalid, and was ignored")


def _row(entry: Entry) -> list[Any]:
    if isinstance(entry, Sent):
        return ["sent", entry.replica, entry.image, *entry.kind, entry.low_priority]
    return ["replied" if isinstance(entry, Replied) else "left", *entry]


def _entries(rows: Iterable[Any]) -> list[Entry]:
    """Raises ValueError or TypeError: a row is no entry."""
    found: list[Entry] = []
    for what, replica, image, *rest in rows:
        if what == "sent":
            role, variant, work, size, low_priority = rest
            kind = Kind(str(role), str(variant), float(work), None if size is None else ImageSize(*map(int, size)))
            found.append(Sent(str(replica), image, kind, bool(low_priority)))
        elif what == "replied":
            batch_size, device_s, together, queued = rest
            waiting = None if queued is None else int(queued)
            found.append(Replied(str(replica), image, int(batch_size), float(device_s), int(together), waiting))
        else:
            found.append(Left(str(replica), image))
    return found
