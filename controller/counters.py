"""What the load balancer counts, and the observation that two looks at it make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.observation import Observation
from weir.core import Plan, Role


@dataclass(frozen=True, slots=True)
class Counters:
    """One look at the load balancer. Counts run from its start, so that a look that failed loses nothing.

    Attributes:
        plan: the one in force.
        ranks: of the live replicas.
        queued: images waiting at replicas, by role.
        arrivals: images asked for, refused ones included.
        judged: light images finished that the cascade decided about.
        deferred: of these, how many were to be drawn again.
        confidences: of those judged since the last look, newest last; the oldest may be left out.
    """

    plan: Plan
    ranks: tuple[int, ...]
    queued: dict[Role, int]
    in_flight: int
    arrivals: int
    judged: int
    deferred: int
    confidences: tuple[float, ...]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Counters:
        """Reads what ``Balancer.counters`` gives.

        Raises:
            PlanError, KeyError, TypeError, ValueError: it is something else.
        """
        return cls(
            plan=Plan.from_dict(fields["plan"]),
            ranks=tuple(sorted(int(rank) for rank in fields["ranks"])),
            queued={role: int(fields["queued"][role.value]) for role in Role},
            in_flight=int(fields["in_flight"]),
            arrivals=int(fields["arrivals"]),
            judged=int(fields["judged"]),
            deferred=int(fields["deferred"]),
            confidences=tuple(float(c) for c in fields["confidences"]),
        )

    def since(self, before: Counters | None, now_s: float) -> Observation:
        """What happened since the look before. None, or a load balancer that started anew: since its start."""
        if before is not None and (self.arrivals < before.arrivals or self.judged < before.judged):
            before = None
        judged = self.judged - (before.judged if before else 0)
        deferred = self.deferred - (before.deferred if before else 0)
        kept = len(self.confidences)
        return Observation(
            now_s=now_s,
            arrivals=self.arrivals - (before.arrivals if before else 0),
            confidences=self.confidences,
            deferred=deferred if kept == judged else round(deferred * kept / max(1, judged)),
            replicas=(len(self.ranks),),
            queued=self.queued,
            in_flight=self.in_flight,
        )
