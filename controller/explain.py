"""One plan for one demand, and why it is that plan: what ``weir plan`` answers."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Any

from controller.setting import Setting
from solvers.problem import Problem
from solvers.solution import Solution
from solvers.solve import solve


class Objective(StrEnum):
    """What a plan is to be best in."""

    THRESHOLD = "threshold"  #: DiffServe's: the largest threshold
    QUALITY = "quality"  #: the measured quality of the mix


def plan_for(
    setting: Setting,
    demand_rps: float,
    *,
    objective: Objective = Objective.QUALITY,
    queue_delay_s: tuple[float, float] = (0.0, 0.0),
    solver: str = "auto",
    time_limit_s: float = 2.0,
) -> tuple[Problem, Solution]:
    """Solves one instance on the profiled numbers alone: the cascade of the first and the last variant, the whole
    throughput, no head-room, no running plan.

    Args:
        queue_delay_s: seconds that a request waits in front of the first and of the last stage.

    Raises:
        ConfigError: the solver is not known or cannot be used here.
        PlanError: a number is out of range; the message names it.
    """
    setting = setting.chain((setting.variants[0], setting.last))
    problem = setting.published(demand_rps, gpus=setting.gpus[0].count, queue_delay_s=queue_delay_s, tie_break=1e-6)
    if objective is Objective.QUALITY:
        quality = setting.quality
        problem = replace(
            problem,
            gpus=setting.gpus,
            quality=tuple(quality.reward(1 - f) if quality else f for f in setting.deferral.shares),
            fixed_s=problem.fixed_s + setting.discriminator_s,
            one_batch_size=False,
            short_runs=setting.short_runs,
        )
    return problem, solve(problem, solver, time_limit_s)


def describe(problem: Problem, solution: Solution) -> dict[str, Any]:
    """The answer, JSON-ready. ``gpus`` and ``batch_sizes`` are by role; spare GPUs count for neither."""
    return {
        "threshold": solution.threshold,
        "heavy_steps": solution.point.steps,
        "deferral": solution.deferral,
        "gpus": {variant: solution.count(variant) for variant in problem.variants},
        "batch_sizes": {variant: solution.batch_size(variant) for variant in problem.variants},
        "spare_gpus": sum(g.count for g in problem.gpus) - sum(a.count for a in solution.allocations),
        "served_rps": solution.served_rps,
        "shed_rps": solution.shed_rps,
        "status": "infeasible" if solution.shed_rps > 0 else solution.status.value,
        "solver": solution.backend,
        "solve_ms": round(1000 * solution.seconds, 3),
    }


def explain(problem: Problem, solution: Solution) -> str:
    """The answer in words: what each stage needs, what it gets, and what stands in the way of more."""
    total = sum(g.count for g in problem.gpus)
    lines = [
        f"{problem.demand_rps:g} requests/s on {total} GPUs within {problem.slo_s:g} s "
        f"({solution.status.value}, {solution.backend}, {1000 * solution.seconds:.1f} ms)"
    ]
    if solution.shed_rps > 0:
        lines.append(
            f"cannot be served whole: {solution.served_rps:.2f} requests/s fit, {solution.shed_rps:.2f} are refused"
        )
    for variant, needed in solution.needed(problem).items():
        unit = "whole runs/s" if variant == problem.variants[-1] else "images/s"
        rate = 0.0
        for a in solution.allocations:
            if a.variant == variant:
                seconds = problem.gpus[a.gpu].latency(variant).at(a.batch_size)
                rate += a.count * a.batch_size / seconds
                lines.append(f"{variant}: {a.count} × {problem.gpus[a.gpu].name}, batch {a.batch_size}, {seconds:g} s")
        lines.append(f"{variant}: {needed:.2f} {unit} needed, {rate:.2f} possible")
    lines.append(
        f"threshold {solution.threshold:g}: {solution.deferral:.1%} of the {problem.variants[0]} images are deferred"
        + (f" to runs of {solution.point.steps} steps" if solution.point.steps else "")
    )
    best = max(range(len(problem.quality)), key=lambda j: problem.quality[j])
    if solution.deferral == problem.deferral[best]:
        lines.append("more would not be better: this is the best mix")
    else:
        lines.append(f"the best mix would defer {problem.deferral[best]:.1%}; the GPUs do not carry it")
    return "\n".join(lines)
