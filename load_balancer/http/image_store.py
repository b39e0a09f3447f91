"""Keeps images that were requested as URLs in memory, for a promised time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from load_balancer.http.fair_room import FairRoom

#: Seconds for which an image can be fetched.
KEPT_S = 600.0
#: Room of all images, shared by the tenants. At 1.5 MB it has 340 images.
MOST_BYTES = 512 * 2**20
MOST_FILES = 20_000


class ImageStore(Protocol):
    """Files by name, bounded by the sum of their sizes.

    A file is kept for :data:`KEPT_S`. When there is no room, the tenant whose files take most of it loses its oldest.
    """

    async def put(self, tenant: str, name: str, content: bytes) -> None:
        """Keeps a file under a new name, unless it is larger than the whole store."""
        ...

    async def get(self, name: str) -> bytes | None: ...


class LocalImages:
    """An :class:`ImageStore` in the memory of this process.

    Args:
        clock: seconds of a monotonic clock.
    """

    def __init__(self, most_bytes: int = MOST_BYTES, clock: Callable[[], float] = time.monotonic):
        self._room: FairRoom[str] = FairRoom(MOST_FILES, most_bytes)
        self._files: dict[str, tuple[float, bytes]] = {}  # the time of its arrival, and the content
        self._clock = clock

    @property
    def size_bytes(self) -> int:
        return self._room.size_bytes

    async def put(self, tenant: str, name: str, content: bytes) -> None:
        self._expire()
        self._files[name] = self._clock(), content
        for crowded_out in self._room.add(tenant, name, len(content)):
            del self._files[crowded_out]

    async def get(self, name: str) -> bytes | None:
        self._expire()
        found = self._files.get(name)
        return None if found is None else found[1]

    def _expire(self) -> None:
        until = self._clock() - KEPT_S
        while (name := self._room.oldest) is not None and self._files[name][0] <= until:
            self._room.remove(name)
            del self._files[name]
