"""Selection of cascades: the Pareto front of the variants, the chains on it, and the best chain for a demand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from solvers.problem import Problem
from solvers.solution import Solution
from solvers.solve import solve
from weir.errors import PlanError

#: Shares of the demand that differ by less count as equal.
SAME_SHARE = 1e-6


@dataclass(frozen=True, slots=True)
class Variant:
    """Cost and quality of a model in a cascade.

    Attributes:
        image_s: GPU seconds per image, at the best batch size that meets the deadline.
        quality: mean quality of its images alone; larger is better; on the same scale for all variants.
    """

    name: str
    image_s: float
    quality: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.image_s) and self.image_s > 0 and math.isfinite(self.quality)):
            raise PlanError(
                f"variant {self.name}: image_s is {self.image_s} and quality {self.quality}; give seconds above 0 and "
                "a finite quality"
            )


def front(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """Returns the Pareto front of quality and cost, from the cheapest variant to the best. Of equal variants the first
    one is kept.

    Raises:
        PlanError: two variants have the same name.
    """
    if len({variant.name for variant in variants}) < len(variants):
        raise PlanError(f"variants: names must differ; they are {', '.join(v.name for v in variants)}")
    kept: list[Variant] = []
    for variant in sorted(variants, key=lambda v: (v.image_s, -v.quality)):
        if not kept or variant.quality > kept[-1].quality:
            kept.append(variant)
    return tuple(kept)


def chains(variants: Sequence[Variant], longest: int = 2) -> tuple[tuple[Variant, ...], ...]:
    """Returns every cascade of two to ``longest`` variants of the front, each from its cheapest variant to its best."""
    ordered = front(variants)
    return tuple(chain for length in range(2, longest + 1) for chain in combinations(ordered, length))


@dataclass(frozen=True, slots=True)
class Choice:
    """The solution of one chain for a demand.

    Attributes:
        chain: index of the chain among the candidates.
        served: share of the demand that is served.
        quality: mean quality of the served images, on the scale of :attr:`Problem.quality`.
    """

    chain: int
    solution: Solution
    served: float
    quality: float


def choice(chain: int, problem: Problem, solution: Solution) -> Choice:
    """Converts a solution to the quality scale of its problem."""
    low, high = min(problem.quality), max(problem.quality)
    served = solution.served_rps / problem.demand_rps if problem.demand_rps > 0 else 1.0
    return Choice(chain, solution, served, low + solution.point.quality * ((high - low) or 1.0))


def chosen_chain(
    problems: Sequence[Problem], *, running: int | None = None, switch_cost: float = 0.0, solver: str = "auto"
) -> Choice:
    """Returns the chain that serves the largest share of the demand and, among equals, has the best images.

    Args:
        problems: one per chain, all with the same demand and the same quality scale.
        running: the chain in use. It is kept unless another chain serves more, or is better by more than
            ``switch_cost`` (in units of the quality).

    Raises:
        PlanError: there is no chain, or the demands differ.
    """
    if not problems:
        raise PlanError("chains is empty; a cascade needs two variants, one of which is better and more expensive")
    if len({problem.demand_rps for problem in problems}) > 1:
        raise PlanError("the problems of the chains have different demands; compare them at the same demand")
    found = [choice(i, problem, solve(problem, solver)) for i, problem in enumerate(problems)]
    most = max(it.served for it in found)
    able = [it for it in found if it.served >= most - SAME_SHARE]
    return max(able, key=lambda it: (it.quality + (switch_cost if it.chain == running else 0.0), it.chain == running))
