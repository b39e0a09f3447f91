"""One plan for one demand, and why it is that plan: what ``weir plan`` answers."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Any

from controller.setting import Setting
from solvers.problem import Problem
from solvers.solution import Solution
from solvers.solve import solve
from weir.core import Role


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
    """Solves one instance on the profiled numbers alone: the whole throughput, no head-room, no running plan.

    Args:
        queue_delay_s: seconds that a request waits in front of the light and of the heavy stage.

    Raises:
        ConfigError: the solver is not known or cannot be used here.
        PlanError: a number is out of range; the message names it.
    """
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
        "gpus": {role.value: solution.count(role) for role in Role},
        "batch_sizes": {role.value: solution.batch_size(role) for role in Role},
        "spare_gpus": sum(g.count for g in problem.gpus) - sum(solution.count(role) for role in Role),
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
    needs = {role: solution.served_rps * solution.point.needs(role is Role.LIGHT) for role in Role}
    for role, unit in ((Role.LIGHT, "images/s"), (Role.HEAVY, "whole runs/s")):
        rate = 0.0
        for a in solution.allocations:
            if a.role is role:
                seconds = problem.gpus[a.gpu].latency(role).at(a.batch_size)
                rate += a.count * a.batch_size / seconds
                lines.append(
                    f"{role.value}: {a.count} × {problem.gpus[a.gpu].name}, batch {a.batch_size}, {seconds:g} s"
                )
        lines.append(f"{role.value}: {needs[role]:.2f} {unit} needed, {rate:.2f} possible")
    lines.append(
        f"threshold {solution.threshold:g}: {solution.deferral:.1%} of the light images are drawn again, heavy"
        + (f", with {solution.point.steps} steps" if solution.point.steps else "")
    )
    best = max(range(len(problem.quality)), key=lambda j: problem.quality[j])
    if solution.deferral == problem.deferral[best]:
        lines.append("more would not be better: this is the best mix")
    else:
        lines.append(f"the best mix would defer {problem.deferral[best]:.1%}; the GPUs do not carry it")
    return "\n".join(lines)
