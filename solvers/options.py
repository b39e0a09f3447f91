"""Options of a GPU (variant and batch size), and the sets of options that meet the deadline together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from solvers.problem import Problem


@dataclass(frozen=True, slots=True)
class Option:
    """One GPU of type ``gpu`` (index into ``Problem.gpus``) that serves a variant at a batch size.

    Attributes:
        rate_rps: images per second that a plan may count on: utilisation × batch / latency.
        stage_s: seconds of waiting for the replica and of running the batch.
    """

    gpu: int
    variant: str
    batch_size: int
    rate_rps: float
    stage_s: float


def options(problem: Problem) -> tuple[Option, ...]:
    """Returns every profiled option that can meet the deadline: an option of the first variant alone, an option of the
    others after the fastest one of the first."""
    found = [
        Option(
            index,
            variant,
            size,
            problem.utilisation(variant) * size / seconds,
            (1 + problem.residual(variant)) * seconds,
        )
        for index, gpu in enumerate(problem.gpus)
        for variant, latency in gpu.latencies.items()
        for size, seconds in zip(latency.batch_sizes, latency.latency_s, strict=True)
        if gpu.count > 0
    ]
    budget = problem.slo_s - problem.fixed_s
    first, *others = problem.variants
    chosen = [o for o in found if o.variant == first and o.stage_s <= budget]
    fastest = min((o.stage_s for o in chosen), default=budget)
    for variant in others:
        chosen += [o for o in found if o.variant == variant and fastest + o.stage_s <= budget]
    return tuple(chosen)


def modes(problem: Problem, choices: tuple[Option, ...]) -> tuple[frozenset[int], ...]:
    """Returns the maximal sets of options (as indices) in which every combination of one option per stage meets the
    deadline.

    A combination meets it when the sum of its ``stage_s`` and ``fixed_s`` is at most ``slo_s``. Only the slowest option
    of each stage matters, so there is at most one set for each combination of slowest options after the first stage:
    few sets, independent of the number of GPUs. A plan meets the deadline exactly when all its options are in one of
    these sets.
    """
    budget = problem.slo_s - problem.fixed_s
    first, *others = ([i for i, o in enumerate(choices) if o.variant == variant] for variant in problem.variants)
    limits = [sorted({0.0, *(choices[i].stage_s for i in stage)}) for stage in others]
    sets = [
        frozenset(
            [i for i in first if choices[i].stage_s + sum(slowest) <= budget]
            + [i for stage, limit in zip(others, slowest, strict=True) for i in stage if choices[i].stage_s <= limit]
        )
        for slowest in product(*limits)
        if len(others) == 1 or sum(slowest) <= budget
    ]
    return tuple(s for s in dict.fromkeys(sets) if not any(s < other for other in sets))
