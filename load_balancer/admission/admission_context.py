"""What an order was admitted under. It holds until the answer is out, whatever plan comes meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from weir.core import Plan, Role, margin_s

#: Nobody waits for an image longer than so many times the SLO.
PATIENCE = 3.0


@dataclass(frozen=True, slots=True)
class AdmissionContext:
    """The times are unix time, seconds.

    Attributes:
        role: the variant that draws first, as far as it is known before the cache has answered.
        admitted_at: the SLO counts from here.
    """

    plan: Plan
    role: Role
    admitted_at: float
    slo_s: float

    @property
    def deadline(self) -> float:
        """What the worker is told: by then the image is late, or dropped where the plan's rules say so."""
        return self.admitted_at + (self.plan.rules.drop_after_s or self.slo_s)

    @property
    def latest(self) -> float:
        """When the answer has to leave to be in time."""
        return self.admitted_at + self.slo_s - margin_s(self.slo_s)

    @property
    def patience(self) -> float:
        """When an image that nothing stands in for is given up."""
        return self.deadline + (PATIENCE - 1) * self.slo_s
