"""The interface of the approximate cache: a lookup before an image is generated, and a report of its end."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from weir.core import CacheLookup, ImageRequest, ImageResult


class CacheClient(Protocol):
    """What the load balancer needs of a cache; tests use a fake.

    Attributes:
        failures: number of failed calls, by reason.
    """

    failures: Counter[str]

    async def find(self, request: ImageRequest) -> CacheLookup:
        """Looks up the request among its tenant's entries; a miss when the cache fails or is slow. Never raises."""
        ...

    def finished(self, image: str, result: ImageResult | None, sought: int) -> None:
        """Reports the end of a looked-up request to the cache. Never waits and never raises.

        Args:
            image: id of the request.
            result: result of the last run of the last variant; None: there was none.
            sought: step K that this run was to resume from; 0: from noise.
        """
        ...
