"""Quotas of callers: images per minute, and concurrent images."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from load_balancer.http.api_keys import Caller
from weir.errors import InvalidRequest, RateLimited

#: Charges images and their price to a caller's quota, and returns what ends their concurrent use; raises as
#: :meth:`Quotas.take`.
Charge: TypeAlias = Callable[[Caller, int, float], Awaitable[Callable[[], None]]]


def check_size(caller: Caller, images: int, price: float) -> None:
    """Checks that the caller's key ever allows that many images, and such a price, in one request.

    Raises:
        InvalidRequest: it does not.
    """
    rate, most = caller.images_per_minute, caller.concurrent_images
    limit = min(most or images, max(1, int(rate)) if rate is not None else images)
    if images > limit:
        raise InvalidRequest(f"n is {images}; this key may ask for at most {limit} at once", param="n")
    if rate is not None and price > max(1.0, rate):
        raise InvalidRequest(
            f"the request takes the work of {price:g} images of the family's own size and steps, and this key may ask "
            f"for {rate:g} images per minute; ask for fewer or smaller images, or for fewer steps",
            param="size",
        )


def at_most_at_once(in_flight: int, most: int) -> RateLimited:
    """The refusal of a caller that has too many images in flight."""
    return RateLimited(f"this key has {in_flight} images in flight and may have at most {most}", retry_after_s=1.0)


def at_most_a_minute(rate: float, wait_s: float) -> RateLimited:
    """The refusal of a caller that has used up its rate for the next ``wait_s`` seconds."""
    return RateLimited(f"this key may ask for {rate:g} images per minute", retry_after_s=wait_s)


@dataclass(slots=True)
class _Use:
    in_flight: int
    tokens: float
    filled_at: float


class Quotas:
    """The use of every caller. One :meth:`give_back` has to follow every :meth:`take` that returns.

    Requests that admission refuses afterwards count too, so that a client that retries in a tight loop uses up its
    quota.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    async def charge(self, caller: Caller, images: int, price: float) -> Callable[[], None]:
        """Charges images now; a :data:`Charge`."""
        self.take(caller, images, self._clock(), price)
        return partial(self.give_back, caller, images)

    def take(self, caller: Caller, images: int, now: float, price: float | None = None) -> None:
        """Charges ``images`` images to the caller's quota.

        Args:
            price: what counts against the rate: the number of images of the family's own size and steps that take the
                same work. None: each image counts as one.

        Raises:
            RateLimited: the key does not allow that many now; the error has the time after which it does.
            InvalidRequest: the key never allows that many.
        """
        rate, most = caller.images_per_minute, caller.concurrent_images
        price = images if price is None else price
        check_size(caller, images, price)
        use = self._uses.setdefault(caller.name, _Use(0, float("inf"), now))
        if most is not None and use.in_flight + images > most:
            raise at_most_at_once(use.in_flight, most)
        if rate is not None:
            use.tokens = min(max(1.0, rate), use.tokens + rate / 60 * (now - use.filled_at))
            use.filled_at = now
            if use.tokens < price:
                raise at_most_a_minute(rate, (price - use.tokens) * 60 / rate)
            use.tokens -= price
        use.in_flight += images

    def give_back(self, caller: Caller, images: int) -> None:
        """Ends the concurrent use of images that are answered or failed."""
        self._uses[caller.name].in_flight -= images
