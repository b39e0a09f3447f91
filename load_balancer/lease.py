"""Which controller may publish, where several run: the one that came first, for as long as it is heard of."""

from __future__ import annotations

#: A holder that was not heard of for so long has lost it. Longer than a holder waits for what it publishes.
LEASE_S = 10.0


class Lease:
    """The load balancer keeps it, for every controller asks there first, and a plan is in force only there."""

    def __init__(self) -> None:
        self._holder = ""
        self._until = 0.0

    def take(self, holder: str, now: float) -> bool:
        """Takes or renews it; False while another one has it. ``now``: seconds of any clock that only moves forward."""
        if self._holder not in ("", holder) and now < self._until:
            return False
        self._holder, self._until = holder, now + LEASE_S
        return True

    def give_up(self, holder: str) -> None:
        """The next one need not wait."""
        if self._holder == holder:
            self._holder = ""
