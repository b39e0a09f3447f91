"""The lease of the controller that may publish plans: where several run, the first one holds it while it renews it."""

from __future__ import annotations

#: Seconds after which a lease expires unless it is renewed. A holder waits less than this for a publication.
LEASE_S = 10.0


class Lease:
    """A lease that one controller holds at a time.

    The load balancer keeps it, because every controller calls the load balancer before it publishes.
    """

    def __init__(self) -> None:
        self._holder = ""
        self._until = 0.0

    def take(self, holder: str, now: float) -> bool:
        """Takes or renews the lease; False while another controller holds it. ``now``: seconds of a monotonic clock."""
        if self._holder not in ("", holder) and now < self._until:
            return False
        self._holder, self._until = holder, now + LEASE_S
        return True

    def give_up(self, holder: str) -> None:
        """Releases the lease if ``holder`` has it, so that the next controller does not have to wait for its expiry."""
        if self._holder == holder:
            self._holder = ""
