"""Shares of the devices by tenant: who has more work in flight than an equal part of it."""

from __future__ import annotations

from collections.abc import Iterable

#: How much more than an equal part is none yet, so that tenants that ask for the same are not told apart by chance.
TOLERANCE = 1.1
#: Seconds for which a tenant that has nothing in flight is counted among those that share the devices.
MEMORY_S = 5.0


class TenantShares:
    """The work in flight of each tenant, in predicted seconds of a device.

    Images of a tenant that already has more than an equal part of all work let those of other tenants go first, and do
    not share their batches. A tenant within its share is then served nearly as if it were alone, however much the
    others ask for. A tenant without company is never beyond its share, and gets whatever the others leave. Times are
    seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self._asked_at: dict[str, float] = {}
        self._tenants: dict[str, str] = {}  # by image
        self._seconds: dict[str, dict[str, float]] = {}  # by tenant, by image

    def asked(self, tenant: str, now: float) -> bool:
        """Takes in that a tenant asks for images; returns whether it is beyond its share before it gets them."""
        self._asked_at[tenant] = now
        for name in [it for it, at in self._asked_at.items() if now - at > MEMORY_S and it not in self._seconds]:
            del self._asked_at[name]
        if len(self._asked_at) < 2:
            return False
        work = {name: sum(self._seconds.get(name, {}).values()) for name in self._asked_at}
        return work[tenant] * len(work) > TOLERANCE * sum(work.values())

    def begun(self, tenant: str, images: Iterable[str], seconds: float) -> None:
        """Images of a tenant are in flight; the first run of each takes that many seconds."""
        for image in images:
            self._tenants[image] = tenant
            self._seconds.setdefault(tenant, {})[image] = seconds

    def runs(self, image: str, seconds: float) -> None:
        """A run of that many seconds generates the image now; 0: none does. Ignored for an image without a share."""
        if (tenant := self._tenants.get(image)) is not None:
            self._seconds[tenant][image] = seconds

    def ended(self, images: Iterable[str]) -> None:
        """The images are answered, or their work is cancelled."""
        for image in images:
            if (tenant := self._tenants.pop(image, None)) is not None:
                del self._seconds[tenant][image]
                if not self._seconds[tenant]:
                    del self._seconds[tenant]
