"""An operator's pin: parts of the plan that stay as they are for a time, whatever the policy plans. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weir.errors import Conflict, InvalidRequest
from weir.plan import PINNED, Assignment, Plan


@dataclass(frozen=True, slots=True)
class PinValues:
    """The values that an operator pins, by variant, with the names and meanings of ``plan`` in a service file.

    A part that is None stays with the policy. If all of them are None, the whole plan in force is pinned.

    Attributes:
        replicas: number of replicas; its variants are the chain.
        thresholds: thresholds of judged variants of the chain; the others stay as they are.
        batch: largest batches; the others stay as they are.
    """

    replicas: Mapping[str, int] | None = None
    thresholds: Mapping[str, float] | None = None
    batch: Mapping[str, int] | None = None

    @property
    def parts(self) -> dict[str, Mapping[str, Any]]:
        """The pinned parts by name."""
        named = {"replicas": self.replicas, "thresholds": self.thresholds, "batch": self.batch}
        return {name: part for name, part in named.items() if part is not None}


@dataclass(frozen=True, slots=True)
class Pin:
    """A pin that was checked against the plan and the pool.

    Attributes:
        plan: the plan in force when it was set, with the pinned values, for the replicas that took work then.
        values: the pinned values.
        reason: who pinned it and why, in words.
    """

    plan: Plan
    values: PinValues
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; :meth:`from_dict` reads it back."""
        return {"plan": self.plan.to_dict(), "values": self.values.parts, "reason": self.reason}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Pin:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            PlanError: the plan is invalid.
        """
        return cls(Plan.from_dict(given["plan"]), PinValues(**given["values"]), str(given["reason"]))


def pinned(
    values: PinValues, running: Plan, configured: Plan, ladder: Sequence[str], ranks: Sequence[int], reason: str
) -> Pin:
    """Checks values and returns their pin.

    Args:
        running: the plan in force.
        configured: the plan of the configuration, whose batches and thresholds serve variants that are not in use.
        ladder: the variants that the replicas hold, from the fastest to the best.
        ranks: ranks of the replicas that are not drained.

    Raises:
        InvalidRequest: a value is out of range; ``param`` and the message name it.
        Conflict: no replica takes work, or the plan in force has no chain.
    """
    if not ranks:
        raise Conflict("every replica is drained, so there is nothing to plan; return a replica first")
    if running.routing is not None and values.parts:
        raise Conflict(
            "the plan in force deals requests to approximation levels; pin it as a whole, without "
            f"{' and '.join(values.parts)}, or switch to a policy for chains"
        )
    for name, part in values.parts.items():
        for variant in part:
            _need(variant in ladder, name, variant, f"no replica holds this variant; accepted: {', '.join(ladder)}")
    assignments = tuple(running.assignment(rank) for rank in ranks)
    if values.replicas is not None:
        _check_replicas(values.replicas, ladder, len(ranks))
        counts = [(variant, values.replicas.get(variant, 0)) for variant in ladder]
        assignments = tuple(Assignment(variant, 1) for variant, count in counts for _ in range(count))
    chain = running.chain if values.replicas is None else tuple(it for it in ladder if it in values.replicas)
    plan = replace(
        running,
        chain=chain,
        thresholds=_thresholds(values.thresholds or {}, chain, (running, configured)),
        assignments=_batched(assignments, values, chain, (running, configured)),
        reason=reason,
        origin=PINNED,
    )
    return Pin(plan, values, reason)


def held(plan: Plan, pin: Pin, replicas: int) -> Plan:
    """The plan that holds while a pin is in force, for a number of live replicas.

    Args:
        plan: the plan that the policy wants.
    """
    values, kept = pin.values, pin.plan
    if values.parts and plan.routing is None:
        follows = plan.chain == kept.chain  # else the policy's replicas and thresholds are for other variants
        assignments = plan.assignments if follows and values.replicas is None else kept.assignments
        thresholds = plan.thresholds if follows and values.thresholds is None else kept.thresholds
        batch = values.batch or {}
        kept = replace(
            plan,
            chain=kept.chain,
            thresholds=thresholds,
            assignments=tuple(Assignment(a.role, batch.get(a.role, a.batch_size)) for a in assignments),
        )
    return fitted(replace(kept, version=plan.version, reason=pin.reason, origin=PINNED), replicas)


def fitted(plan: Plan, replicas: int) -> Plan:
    """The plan for another number of replicas: the most numerous role loses some, the last assignment is repeated.

    Of equally numerous roles the later one loses a replica, so that the fastest variants go on answering in time.
    """
    assignments = list(plan.assignments)
    while len(assignments) > replicas:
        counts = Counter(a.role for a in reversed(assignments))  # of equal counts, the first one is the later role
        largest = counts.most_common(1)[0][0]
        last = max(i for i, a in enumerate(assignments) if a.role == largest)
        del assignments[last]
    assignments += [assignments[-1]] * (replicas - len(assignments))
    return replace(plan, assignments=tuple(assignments))


def _check_replicas(replicas: Mapping[str, int], ladder: Sequence[str], count: int) -> None:
    best = ladder[-1]
    if best not in replicas:
        raise InvalidRequest(
            f"replicas lacks {best}, the best variant, which ends every chain; give it 0 or more replicas",
            param="replicas",
        )
    if sum(replicas.values()) != count:
        raise InvalidRequest(
            f"replicas add up to {sum(replicas.values())}; they must add up to {count}, the number of replicas that "
            "are not drained",
            param="replicas",
        )


def _thresholds(given: Mapping[str, float], chain: Sequence[str], plans: Sequence[Plan]) -> tuple[float, ...]:
    judged = chain[:-1]
    for variant in given:
        _need(
            variant in judged,
            "thresholds",
            variant,
            f"it is not judged in the chain {' → '.join(chain)}; accepted: {', '.join(judged) or 'none'}",
        )
    found = []
    for variant in judged:
        known = (plan.thresholds[plan.chain.index(variant)] for plan in plans if variant in plan.chain[:-1])
        threshold = given.get(variant, next(known, None))
        if threshold is None:
            raise InvalidRequest(
                f"thresholds lacks {variant}, which is not in use now; give a number in 0…1", param="thresholds"
            )
        found.append(threshold)
    return tuple(found)


def _batched(
    assignments: Sequence[Assignment], values: PinValues, chain: Sequence[str], plans: Sequence[Plan]
) -> tuple[Assignment, ...]:
    """The assignments with their batch sizes: a pinned one, else that of the plan in force, else the configured one."""
    given = values.batch or {}
    for variant in given:
        _need(variant in chain, "batch", variant, f"it is not in the chain {' → '.join(chain)}")
    if values.replicas is None:
        return tuple(Assignment(a.role, given.get(a.role, a.batch_size)) for a in assignments)
    sizes = dict(given)
    for role in {a.role for a in assignments} - sizes.keys():
        known = (plan.batch_size(role) for plan in plans if plan.count(role))
        size = next(known, None)
        if size is None:
            raise InvalidRequest(
                f"batch lacks {role}, which is not in use now; give the largest batch, at least 1", param="batch"
            )
        sizes[role] = size
    return tuple(Assignment(a.role, sizes[a.role]) for a in assignments)


def _need(condition: bool, part: str, variant: str, problem: str) -> None:
    if not condition:
        raise InvalidRequest(f"{part}.{variant}: {problem}", param=f"{part}.{variant}"[:64])
