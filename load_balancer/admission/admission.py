"""Admission control. A refusal comes before any work is done, and names the time after which to try again."""

from __future__ import annotations

from weir.errors import NotReady, Overloaded

#: Length of the largest admitted burst, in seconds of the admitted rate.
BURST_S = 1.0
#: ``Retry-After`` while there is no replica: replacing one takes a few seconds.
RESTART_S = 5.0


class Admission:
    """Admits or refuses requests, and counts the images in flight.

    One :meth:`release` has to follow every :meth:`admit` that returns.
    """

    def __init__(self, queued: int):
        self.queued = queued
        self.in_flight = 0
        self._tokens: float | None = None
        self._filled_at = 0.0

    def admit(
        self,
        images: int,
        *,
        now: float,
        deadline: float,
        finish_at: float | None,
        rps: float | None = None,
        share: float = 1.0,
        price: float = 1.0,
    ) -> None:
        """Admits a request for ``images`` images. However many they are, they are not too many for an idle service.

        Args:
            finish_at: predicted finish time of the request's last image on the first variant; None without a replica.
            rps: images per second that the plan admits, of the family's own size; None admits all.
            share: share of the limit on images in flight that is available to this request.
            price: number of images of the family's own size that take the same work.

        Raises:
            NotReady: no replica is ready.
            Overloaded: too many images are in flight, the predicted finish is after the deadline, or the rate is used
                up.
        """
        if finish_at is None:
            raise NotReady("no replica is ready", retry_after_s=RESTART_S)
        most = max(1, int(self.queued * share))
        if self.in_flight and self.in_flight + images > most:
            raise Overloaded(
                f"{self.in_flight} images are in flight and at most {most} are allowed",
                retry_after_s=finish_at - now,
            )
        if finish_at > deadline:
            raise Overloaded(
                f"the image would be ready {finish_at - deadline:.1f} s after its deadline",
                retry_after_s=finish_at - deadline,
            )
        if rps is not None:
            self._take_tokens(now, rps, price)
        self.in_flight += images

    def admit_again(self, images: int) -> None:
        """Counts images that were admitted before, by a load balancer that is lost."""
        self.in_flight += images

    def release(self, images: int) -> None:
        self.in_flight -= images

    def _take_tokens(self, now: float, rps: float, price: float) -> None:
        """Takes the price of a request. One that costs more than the largest burst waits for a whole one, and leaves a
        debt."""
        most = max(1.0, rps * BURST_S)
        tokens = most if self._tokens is None else min(most, self._tokens + rps * (now - self._filled_at))
        self._filled_at = now
        needed = min(price, most)
        if tokens < needed:
            self._tokens = tokens
            raise Overloaded(
                f"the plan admits {rps:g} images per second",
                retry_after_s=(needed - tokens) / rps if rps > 0 else RESTART_S,
            )
        self._tokens = tokens - price
