"""The plan for one demand with its explanation: the output of ``weir plan``."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Any

from controller.setting import Setting
from solvers.problem import Problem
from solvers.solution import Solution
from solvers.solve import solve


class Objective(StrEnum):
    """The quantity that a plan maximises."""

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
    """Solves one instance with profiled numbers only: the cascade of the first and the last variant, the whole
    throughput, no head-room and no running plan.

    Args:
        queue_delay_s: seconds that a request waits before the first and before the last stage.

    Raises:
        ConfigError: the solver is unknown or cannot be used on this machine.
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
    """Returns the solution as a JSON-ready dictionary. ``gpus`` and ``batch_sizes`` are by role and leave out spare
    GPUs."""
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
    """Returns the solution as text: the need and the capacity of each stage, and what limits the deferral."""
    total = sum(g.count for g in problem.gpus)
    lines = [
        f"{problem.demand_rps:g} requests/s on {total} GPUs within {problem.slo_s:g} s "
        f"({solution.status.value}, {solution.backend}, {1000 * solution.seconds:.1f} ms)"
    ]
    if solution.shed_rps > 0:
        lines.append(
            f"the demand exceeds the capacity: {solution.served_rps:.2f} requests/s are served and "
            f"{solution.shed_rps:.2f} refused"
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
        lines.append("this is the best mix: deferring more would lower the quality")
    else:
        lines.append(f"the best mix would defer {problem.deferral[best]:.1%}, which exceeds the capacity of the GPUs")
    return "\n".join(lines)
