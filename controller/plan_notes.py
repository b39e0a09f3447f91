"""Explanations of plans as text, for the log of the controller and for reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from solvers.problem import Problem
from solvers.solution import Solution, Status
from weir.plan import Plan

#: A relative change of the demand below this value counts as no change.
SAME_DEMAND = 0.1
#: Number of notes that a controller keeps.
MOST_NOTES = 200


@dataclass(frozen=True, slots=True)
class PlanNote:
    """Summary of one published plan.

    Attributes:
        at_s: unix time of its publication.
        demand_rps: requests per second that it was made for, head-room included.
        roles: number of replicas by role.
        reason: see :attr:`weir.plan.Plan.reason`.
    """

    version: int
    at_s: float
    demand_rps: float
    chain: tuple[str, ...]
    roles: dict[str, int]
    thresholds: tuple[float, ...]
    reason: str

    @classmethod
    def of(cls, plan: Plan, demand_rps: float, at_s: float) -> PlanNote:
        """Builds the note of a plan."""
        return cls(plan.version, at_s, demand_rps, plan.chain, dict(plan.counts), plan.thresholds, plan.reason)

    def to_dict(self) -> dict[str, Any]:
        """Returns the note as a JSON-ready dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        roles = ", ".join(f"{count} × {role}" for role, count in self.roles.items())
        return f"plan {self.version}: {roles}; {self.reason or 'without a reason'}"


def demand_words(demand_rps: float, before_rps: float | None) -> str:
    """Describes the forecast and its change since the previous plan (``before_rps``; None when there was none)."""
    now, before = (None if rps is None else f"{rps:.1f}" for rps in (demand_rps, before_rps))
    if before_rps is None or now == before or abs(demand_rps - before_rps) <= SAME_DEMAND * before_rps:
        return f"demand is {now}/s"
    return f"demand {'rose' if demand_rps > before_rps else 'fell'} from {before} to {now}/s"


def solution_words(problem: Problem, solution: Solution, deferred: Iterable[float]) -> list[str]:
    """Describes the decisions of a solution.

    Args:
        deferred: share that each judge of the chain defers of the images it sees.
    """
    point = solution.point
    words = [
        f"{share:.0%} of the {variant} images are deferred"
        for variant, share in zip(problem.variants[:-1], deferred, strict=True)
    ]
    if problem.hits and not point.reuse:
        words.append("there is time for runs from noise, so cached states are not used")
    elif problem.hits and point.direct >= 1:
        words.append(f"{problem.hit_share:.0%} find a cached state and use it when they are deferred")
    elif problem.hits:
        words.append(f"{problem.hit_share:.0%} find a cached state and resume from it at once where it saves enough")
    if point.entry < len(problem.groups):
        hard = sum(group.share for group in problem.groups[point.entry :])
        words.append(f"the hardest {hard:.0%} of the prompts go to {problem.variants[-1]} at once")
    if point.steps is not None:
        words.append(f"runs from noise are shortened to {point.steps} steps")
    if solution.shed_rps > 1e-9 * max(1.0, solution.served_rps):
        words.append(f"{solution.shed_rps:.1f}/s exceed the capacity and are refused")
    if solution.status is not Status.OPTIMAL:
        words.append(f"the solution is {solution.status.value}")
    return words
