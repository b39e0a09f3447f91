"""Who gets in. Refusing is cheap and early: before any work, with the time after which a retry makes sense."""

from __future__ import annotations

from weir.errors import NotReady, Overloaded

#: Seconds of the admitted rate that may come at once.
BURST_S = 1.0
#: Replacing a replica takes a few seconds.
RESTART_S = 5.0


class Admission:
    """Counts the images in flight. Every :meth:`admit` that returns has to be answered by one :meth:`release`."""

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
    ) -> None:
        """Lets a request of so many images in.

        Args:
            finish_at: predicted time of its last first-stage image; None when no replica is there.
            share: of all images that may be in flight, those that this request may add to.
            rps: the plan's admitted rate of requests; None admits all.

        Raises:
            NotReady: there is no replica.
            Overloaded: too many images in flight, the prediction is beyond the deadline, or the rate is used up.
        """
        if finish_at is None:
            raise NotReady("no replica is ready to draw", retry_after_s=RESTART_S)
        most = int(self.queued * share)
        if self.in_flight + images > most:
            raise Overloaded(
                f"{self.in_flight} images are in flight and at most {most} may be",
                retry_after_s=finish_at - now,
            )
        if finish_at > deadline:
            raise Overloaded(
                f"the image would be ready {finish_at - deadline:.1f} s after its deadline",
                retry_after_s=finish_at - deadline,
            )
        if rps is not None:
            self._take_token(now, rps)
        self.in_flight += images

    def release(self, images: int) -> None:
        self.in_flight -= images

    def _take_token(self, now: float, rps: float) -> None:
        most = max(1.0, rps * BURST_S)
        tokens = most if self._tokens is None else min(most, self._tokens + rps * (now - self._filled_at))
        self._filled_at = now
        if tokens < 1:
            self._tokens = tokens
            raise Overloaded(
                f"the plan admits {rps:g} requests per second",
                retry_after_s=(1 - tokens) / rps if rps > 0 else RESTART_S,
            )
        self._tokens = tokens - 1
