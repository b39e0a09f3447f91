"""Shares of the devices by tenant: who took more than an equal part of them lately."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Seconds after which the use of a device counts e times less, and without a request of which a tenant has gone.
MEMORY_S = 30.0
#: How much more than an equal share is none yet, so that tenants that take the same are not told apart by chance.
TOLERANCE = 1.1


@dataclass(slots=True)
class _Use:
    seconds: float
    as_of: float
    asked_at: float

    def at(self, now: float) -> float:
        return self.seconds * math.exp(-max(0.0, now - self.as_of) / MEMORY_S)


class TenantShares:
    """The recent use of the devices by each tenant that asks for images.

    Images of a tenant that took more than an equal share let those of other tenants go first, and do not share their
    batches. A tenant within its share is then served nearly as if it were alone, whatever the others ask for. A tenant
    without company is never beyond its share, and gets whatever the others leave. Times are seconds of a monotonic
    clock.
    """

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}

    def asked(self, tenant: str, now: float) -> None:
        """Counts the tenant among those that share the devices, from its request on."""
        use = self._uses.setdefault(tenant, _Use(0.0, now, now))
        use.asked_at = now

    def charge(self, tenant: str, seconds: float, now: float) -> None:
        """Charges device time to a tenant; ignored for one that has no share, such as a caller of batch priority.

        It is charged when work is sent to a device: work that is cancelled afterwards has kept others waiting, too.
        """
        if (use := self._uses.get(tenant)) is not None:
            use.seconds, use.as_of = use.at(now) + seconds, now

    def beyond(self, tenant: str, now: float) -> bool:
        """Whether the tenant took more than an equal share of what all tenants took."""
        self._uses = {name: use for name, use in self._uses.items() if now - use.asked_at <= MEMORY_S}
        own = self._uses.get(tenant)
        if own is None or len(self._uses) < 2:
            return False
        equal = sum(use.at(now) for use in self._uses.values()) / len(self._uses)
        return own.at(now) > TOLERANCE * equal
