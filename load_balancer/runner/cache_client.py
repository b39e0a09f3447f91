"""The approximate cache as the load balancer needs it: asked before an image is generated, told the end afterwards."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from weir.core import CacheLookup, ImageRequest, ImageResult


class CacheClient(Protocol):
    """What the load balancer needs of a cache; tests put a fake in its place.

    Attributes:
        failures: lookups that found nothing because something went wrong, by reason.
    """

    failures: Counter[str]

    async def find(self, request: ImageRequest) -> CacheLookup:
        """What the cache has for the request of its tenant; a miss when the cache fails or is slow. Never raises."""
        ...

    def finished(self, image: str, result: ImageResult | None, sought: int) -> None:
        """Tells the cache how the request ended that it was asked for. Never waits and never raises.

        Args:
            image: id of the request.
            result: of the last run of the last variant; None: there was none.
            sought: step K that this run should have resumed from; 0: from noise.
        """
        ...
