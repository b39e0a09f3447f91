"""Quotas of callers: images per minute, and concurrent images. Pure: the time is an argument."""

from __future__ import annotations

from dataclasses import dataclass

from load_balancer.http.api_keys import Caller
from weir.errors import InvalidRequest, RateLimited


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

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}

    def take(self, caller: Caller, images: int, now: float) -> None:
        """Charges ``images`` images to the caller's quota.

        Raises:
            RateLimited: the key does not allow that many now; the error has the time after which it does.
            InvalidRequest: the key never allows that many.
        """
        rate, most = caller.images_per_minute, caller.concurrent_images
        limit = min(most or images, max(1, int(rate)) if rate is not None else images)
        if images > limit:
            raise InvalidRequest(f"n is {images}; this key may ask for at most {limit} at once", param="n")
        use = self._uses.setdefault(caller.name, _Use(0, float("inf"), now))
        if most is not None and use.in_flight + images > most:
            raise RateLimited(
                f"this key has {use.in_flight} images in flight and may have at most {most}", retry_after_s=1.0
            )
        if rate is not None:
            use.tokens = min(max(1.0, rate), use.tokens + rate / 60 * (now - use.filled_at))
            use.filled_at = now
            if use.tokens < images:
                wait_s = (images - use.tokens) * 60 / rate
                raise RateLimited(f"this key may ask for {rate:g} images per minute", retry_after_s=wait_s)
            use.tokens -= images
        use.in_flight += images

    def give_back(self, caller: Caller, images: int) -> None:
        """Ends the concurrent use of images that are answered or failed."""
        self._uses[caller.name].in_flight -= images
