"""The images at replicas, as everything that predicts or shares work by them has to know them."""

from __future__ import annotations

import time
from collections.abc import Callable

from load_balancer.admission.tenant_shares import TenantShares
from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.finish_time import BatchReport, Kind
from load_balancer.dispatch.peers import Left, Replied, Sent, Tell
from load_balancer.runner.dispatch_forecast import DispatchForecast
from weir.cascade import Run
from weir.core import ImageResult


class ImagesInFlight:
    """Passes on what happens to images at replicas: to the queue models, the shares of the tenants, the forecast and
    the other load balancers.

    Exactly one :meth:`left` has to follow every :meth:`sent`.

    Args:
        shares: learns which run generates each image.
        clock: seconds of a monotonic clock.
        tell: tells the other load balancers; None: there are none.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        shares: TenantShares,
        forecast: DispatchForecast,
        clock: Callable[[], float] = time.monotonic,
        tell: Tell | None = None,
    ):
        self._dispatcher = dispatcher
        self._shares = shares
        self._forecast = forecast
        self._clock = clock
        self._tell = tell or (lambda entry: None)

    def sent(self, replica: str, image: str, run: Run) -> None:
        """An image is sent to a replica."""
        kind = self._forecast.kind(run)
        self._dispatcher.assign(replica, image, kind, self._clock(), low_priority=run.low_priority)
        self._shares.runs(image, self._dispatcher.times.run_s(kind))
        self._tell(Sent(replica, image, kind, run.low_priority))
        self._forecast.forget([image])

    def replied(self, replica: str, image: str, result: ImageResult) -> Kind | None:
        """A replica answered with an image that a batch has generated.

        Returns:
            The kind of the image for the first reply of those that finished together; None for the others.
        """
        together = result.left_together or result.batch_size
        report = BatchReport(
            result.batch_size,
            result.compute_s,
            result.device_s,
            together,
            # The delay of an image that waited for its states to be stored is not the network's.
            queue_s=None if result.captured else result.queue_s + (result.fetch_s or 0.0),
            queued=result.queued,
        )
        kind = self._dispatcher.finished(replica, image, self._clock(), report)
        self._tell(Replied(replica, image, result.batch_size, result.device_s, together, result.queued))
        return kind

    def left(self, replica: str, image: str) -> None:
        """An image is no longer at a replica: it was answered, cancelled, or failed."""
        self._dispatcher.forget(replica, image, self._clock())
        self._shares.runs(image, 0.0)
        self._tell(Left(replica, image))
