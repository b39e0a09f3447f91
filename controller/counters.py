"""What the load balancer counts, and the observation that two looks at it make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from controller.observation import Batch, Observation
from weir.plan import Plan

Key = TypeVar("Key", float, int)


@dataclass(frozen=True, slots=True)
class Counters:
    """One look at the load balancer. Counts run from its start, so that a look that failed loses nothing.

    Attributes:
        plan: the one in force.
        ranks: of the live replicas.
        queued: images waiting at replicas, by role.
        arrivals: images asked for, refused ones included.
        judged: images of the chain's first variant that its judge decided about.
        deferred: of these, how many were deferred to the next variant.
        confidences: of those judged since the last look, newest last; the oldest may be left out.
        verdicts: images that any judge of the chain decided about.
        confidences_by_variant: of those since the last look, by key of the variant, newest last; the oldest may be left
            out.
        batches_run: by the workers.
        batches: those since the last look, newest last; the oldest may be left out.
        reused, found, missed: see :class:`Observation`.
        levels: of ``confidences``; empty without a classifier.
        fetched: states that workers asked the cache's store for.
        fetches: seconds that each took, of those since the last look, newest last; the oldest may be left out.
        in_flight, deferred_in_flight, late_answers, late_deferred: see :class:`Observation`.
        classes: requests that came in, by the class predicted for their prompt.
    """

    plan: Plan
    ranks: tuple[int, ...]
    queued: Mapping[str, int]
    arrivals: int
    judged: int
    deferred: int
    confidences: tuple[float, ...]
    batches_run: int = 0
    batches: tuple[Batch, ...] = ()
    in_flight: int = 0
    deferred_in_flight: int = 0
    late_answers: int = 0
    late_deferred: int = 0
    reused: Mapping[float, int] = field(default_factory=dict)
    found: Mapping[float, int] = field(default_factory=dict)
    missed: Mapping[int, int] = field(default_factory=dict)
    levels: tuple[int, ...] = ()
    fetched: int = 0
    fetches: tuple[float, ...] = ()
    confidences_by_variant: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    classes: Mapping[int, int] = field(default_factory=dict)
    verdicts: int = 0

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Counters:
        """Reads what ``Balancer.counters`` gives.

        Raises:
            PlanError, KeyError, TypeError, ValueError: it is something else.
        """
        return cls(
            plan=Plan.from_dict(fields["plan"]),
            ranks=tuple(sorted(int(rank) for rank in fields["ranks"])),
            queued={str(role): int(count) for role, count in fields["queued"].items()},
            arrivals=int(fields["arrivals"]),
            judged=int(fields["judged"]),
            deferred=int(fields["deferred"]),
            confidences=tuple(float(c) for c in fields["confidences"]),
            batches_run=int(fields["batches_run"]),
            batches=tuple(
                Batch(str(variant), int(size), float(seconds)) for variant, size, seconds in fields["batches"]
            ),
            in_flight=int(fields["in_flight"]),
            deferred_in_flight=int(fields["deferred_in_flight"]),
            late_answers=int(fields["late_answers"]),
            late_deferred=int(fields["late_deferred"]),
            reused={float(saved): int(count) for saved, count in fields.get("reused", {}).items()},
            found={float(saved): int(count) for saved, count in fields.get("found", {}).items()},
            missed={int(level): int(count) for level, count in fields.get("missed", {}).items()},
            levels=tuple(int(level) for level in fields.get("levels", ())),
            fetched=int(fields.get("fetched", 0)),
            fetches=tuple(float(seconds) for seconds in fields.get("fetches", ())),
            confidences_by_variant={
                str(variant): tuple(map(float, values))
                for variant, values in fields.get("confidences_by_variant", {}).items()
            },
            classes={int(each): int(count) for each, count in fields.get("classes", {}).items()},
            verdicts=int(fields.get("verdicts", 0)),
        )

    def since(self, before: Counters | None, now_s: float) -> Observation:
        """What happened since the look before. None, or a load balancer that started again: since its start."""
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
            batches=self.batches,
            replicas=(len(self.ranks),),
            queued=self.queued,
            in_flight=self.in_flight,
            deferred_in_flight=self.deferred_in_flight,
            late_answers=self.late_answers,
            late_deferred=self.late_deferred,
            reused=_grown(self.reused, before.reused if before else {}),
            found=_grown(self.found, before.found if before else {}),
            missed=_grown(self.missed, before.missed if before else {}),
            levels=self.levels if len(self.levels) == kept else (),
            fetches=self.fetches,
            confidences_by_variant=self.confidences_by_variant,
            classes=_grown(self.classes, before.classes if before else {}),
        )


def _grown(now: Mapping[Key, int], before: Mapping[Key, int]) -> dict[Key, int]:
    return {key: count - before.get(key, 0) for key, count in now.items()}
