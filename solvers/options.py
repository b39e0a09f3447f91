"""What one GPU can be set to do, and which of these settings can meet the deadline together."""

from __future__ import annotations

from dataclasses import dataclass

from solvers.problem import Problem
from weir.core import Role


@dataclass(frozen=True, slots=True)
class Option:
    """One GPU of type ``gpu`` (index into ``Problem.gpus``) in a role at a batch size.

    Attributes:
        rate_rps: images per second that a plan may count on: utilisation × batch / latency.
        stage_s: wait for the replica and its batch, seconds.
    """

    gpu: int
    role: Role
    batch_size: int
    rate_rps: float
    stage_s: float


def options(problem: Problem) -> tuple[Option, ...]:
    """Every profiled setting that can meet the deadline: light alone, heavy behind the fastest light one."""
    found = [
        Option(
            index,
            role,
            size,
            problem.utilisation(role) * size / seconds,
            (1 + problem.residual(role)) * seconds,
        )
        for index, gpu in enumerate(problem.gpus)
        for role in Role
        for size, seconds in zip(gpu.latency(role).batch_sizes, gpu.latency(role).latency_s, strict=True)
        if gpu.count > 0
    ]
    budget = problem.slo_s - problem.fixed_s
    light = [o for o in found if o.role is Role.LIGHT and o.stage_s <= budget]
    fastest = min((o.stage_s for o in light), default=budget)
    heavy = [o for o in found if o.role is Role.HEAVY and fastest + o.stage_s <= budget]
    return (*light, *heavy)


def modes(problem: Problem, choices: tuple[Option, ...]) -> tuple[frozenset[int], ...]:
    """The largest sets of options (as indices) in which every light and heavy pair meets the deadline.

    A pair meets it when ``light.stage_s + heavy.stage_s + fixed_s ≤ slo_s``. Only the slowest option of either role
    counts, so the sets form a chain, one for each distinct slowest heavy option: a handful, whatever the number of
    GPUs. A plan obeys the deadline exactly when it draws all its options from one of these sets.
    """
    budget = problem.slo_s - problem.fixed_s
    light = [i for i, o in enumerate(choices) if o.role is Role.LIGHT]
    heavy = [i for i, o in enumerate(choices) if o.role is Role.HEAVY]
    slowest_heavy = sorted({0.0, *(choices[i].stage_s for i in heavy)})
    sets = [
        frozenset(
            [i for i in light if choices[i].stage_s + slowest <= budget]
            + [i for i in heavy if choices[i].stage_s <= slowest]
        )
        for slowest in slowest_heavy
    ]
    return tuple(s for s in dict.fromkeys(sets) if not any(s < other for other in sets))
