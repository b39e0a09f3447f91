"""What one caller may ask for: images per minute, and images at once. Pure: the time comes in as an argument."""

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
    """Every caller's use. A :meth:`take` that returns has to be answered by one :meth:`give_back`.

    Requests that the system refuses afterwards count too: whoever tries again in a tight loop pays for it.
    """

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}

    def take(self, caller: Caller, images: int, now: float) -> None:
        """Lets a caller ask for so many images.

        Raises:
            RateLimited: more than its key allows now; says when it does.
            InvalidRequest: more than its key ever allows.
        """
        rate, most = caller.images_per_minute, caller.concurrent_images
        limit = min(most or images, max(1, int(rate)) if rate is not None else images)
        if images > limit:
            raise InvalidRequest(f"n is {images}; this key may ask for at most {limit} at once", param="n")
        use = self._uses.setdefault(caller.name, _Use(0, float("inf"), now))
        if most is not None and use.in_flight + images > most:
            raise RateLimited(f"this key has {use.in_flight} images in flight and may have {most}", retry_after_s=1.0)
        if rate is not None:
            use.tokens = min(max(1.0, rate), use.tokens + rate / 60 * (now - use.filled_at))
            use.filled_at = now
            if use.tokens < images:
                wait_s = (images - use.tokens) * 60 / rate
                raise RateLimited(f"this key may ask for {rate:g} images per minute", retry_after_s=wait_s)
            use.tokens -= images
        use.in_flight += images

    def give_back(self, caller: Caller, images: int) -> None:
        """The images are answered, or never will be."""
        self._uses[caller.name].in_flight -= images
