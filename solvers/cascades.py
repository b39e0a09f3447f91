"""Cascades from variants: which of them are worth having, which chains they make, and the best chain for a load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from solvers.problem import Problem
from solvers.solution import Solution
from solvers.solve import solve
from weir.errors import PlanError

#: Shares of the demand that differ by less are served alike.
SAME_SHARE = 1e-6


@dataclass(frozen=True, slots=True)
class Variant:
    """A model as a cascade sees it.

    Attributes:
        image_s: seconds of one GPU for an image, in the best batch that meets the deadline.
        quality: mean of its images alone, larger being better; on one scale for all variants.
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
    """The Pareto front of quality and cost, from the cheapest to the best: variants that no other beats in one without
    losing in the other. Of equal ones the first stays.

    Raises:
        PlanError: two variants have one name.
    """
    if len({variant.name for variant in variants}) < len(variants):
        raise PlanError(f"variants: names must differ; they are {', '.join(v.name for v in variants)}")
    kept: list[Variant] = []
    for variant in sorted(variants, key=lambda v: (v.image_s, -v.quality)):
        if not kept or variant.quality > kept[-1].quality:
            kept.append(variant)
    return tuple(kept)


def chains(variants: Sequence[Variant], longest: int = 2) -> tuple[tuple[Variant, ...], ...]:
    """Every cascade of two to ``longest`` variants of the front, each from its cheapest to its best."""
    ordered = front(variants)
    return tuple(chain for length in range(2, longest + 1) for chain in combinations(ordered, length))


@dataclass(frozen=True, slots=True)
class Choice:
    """One chain's answer to a demand.

    Attributes:
        chain: index among those to choose from.
        served: share of the demand.
        quality: mean of the images served, on the scale of :attr:`Problem.quality`.
    """

    chain: int
    solution: Solution
    served: float
    quality: float


def choice(chain: int, problem: Problem, solution: Solution) -> Choice:
    """A solution on the scale that its problem's quality was given in."""
    low, high = min(problem.quality), max(problem.quality)
    served = solution.served_rps / problem.demand_rps if problem.demand_rps > 0 else 1.0
    return Choice(chain, solution, served, low + solution.point.quality * ((high - low) or 1.0))


def chosen_chain(
    problems: Sequence[Problem], *, running: int | None = None, switch_cost: float = 0.0, solver: str = "auto"
) -> Choice:
    """The chain that serves most of the demand and, of those that serve as much, gives the best images.

    Args:
        problems: one a chain, all of one demand, their qualities on one scale.
        running: the chain in use, which stays unless another serves more or is better by more than ``switch_cost``,
            in units of the quality.

    Raises:
        PlanError: there is no chain, or they are of different demands.
    """
    if not problems:
        raise PlanError("chains is empty; a cascade needs two variants of which one is better and dearer")
    if len({problem.demand_rps for problem in problems}) > 1:
        raise PlanError("the chains' problems are of different demands; they must be compared at one")
    found = [choice(i, problem, solve(problem, solver)) for i, problem in enumerate(problems)]
    most = max(it.served for it in found)
    able = [it for it in found if it.served >= most - SAME_SHARE]
    return max(able, key=lambda it: (it.quality + (switch_cost if it.chain == running else 0.0), it.chain == running))
