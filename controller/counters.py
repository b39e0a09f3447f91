"""Counters of the load balancer, and the observation that the difference of two snapshots makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from controller.observation import Batch, Observation
from weir.pin import Pin
from weir.plan import Plan

Key = TypeVar("Key", float, int)


@dataclass(frozen=True, slots=True)
class Counters:
    """Snapshot of the counters of the load balancer.

    Counts run from the start of the load balancer, so a snapshot that fails loses nothing. "Since the last snapshot"
    lists are ordered with the newest entry last, and may lack the oldest entries.

    Attributes:
        plan: the plan in force.
        ranks: ranks of the live replicas.
        queued: number of images waiting at replicas, by role.
        arrivals: number of requested images, refused ones included; an image of another size than the family's own
            counts by its share of the pixels.
        judged: number of images of the chain's first variant that its judge has rated.
        deferred: number of these images that were deferred to the next variant.
        confidences: confidences of these images since the last snapshot.
        verdicts: number of images that any judge of the chain has rated.
        confidences_by_variant: confidences of all judged images since the last snapshot, by key of the variant.
        batches_run: number of batches that the workers ran.
        batches: the batches since the last snapshot.
        reused, found, missed: see :class:`Observation`.
        levels: predicted levels of ``confidences``; empty without a classifier.
        fetched: number of states that workers requested from the store of the cache.
        fetches: seconds of each fetch since the last snapshot.
        in_flight, deferred_in_flight, late_answers, late_deferred: see :class:`Observation`.
        classes: number of requests, by the predicted class of their prompt.
        policy: name of the policy that is to plan; "" for that of the configuration.
        pin: the operator's pin in force.
        size: number of replicas that the pool is to have; 0 for that of the configuration.
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
    policy: str = ""
    pin: Pin | None = None
    size: int = 0

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Counters:
        """Parses the result of ``Balancer.counters``.

        Raises:
            PlanError, KeyError, TypeError, ValueError: the fields are not such a result.
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
            policy=str(fields.get("policy", "")),
            pin=None if fields.get("pin") is None else Pin.from_dict(fields["pin"]),
            size=int(fields.get("size", 0)),
        )

    def since(self, before: Counters | None, now_s: float) -> Observation:
        """Returns the observation of the time since an earlier snapshot.

        It covers the time since the start of the load balancer when ``before`` is None or the load balancer has
        restarted since then.
        """
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
