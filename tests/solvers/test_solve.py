"""Tests of the solver: every backend finds the optimum, and a failing backend leaves a usable solution."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import solve as solving
from solvers.backends import Answer, Backend, backend, installed
from solvers.enumerate import enumerate_optimum
from solvers.milp import formulate
from solvers.problem import CacheHit, GpuType, MiddleStage, Problem, PromptGroup, ShortRun
from solvers.solution import Status
from solvers.solve import solve
from weir.core import LatencyProfile
from weir.errors import ConfigError, PlanError
from weir.plan import HEAVY, LIGHT


@st.composite
def profiles(draw, slowest: float) -> LatencyProfile:
    sizes = (1, 2, 4)[: draw(st.integers(1, 3))]
    seconds = draw(st.lists(st.floats(0.05, slowest), min_size=len(sizes), max_size=len(sizes)))
    return LatencyProfile(sizes, tuple(round(s, 3) for s in seconds))  # not sorted: measured profiles are not always


@st.composite
def groups_of(draw, grid: int) -> PromptGroup:
    shares = sorted(draw(st.lists(st.integers(0, 100), min_size=grid, max_size=grid)))
    quality = draw(st.lists(st.integers(0, 10).map(float), min_size=grid, max_size=grid))
    share = draw(st.integers(1, 10))
    return PromptGroup(share, tuple(s / 100 for s in shares), tuple(quality), float(draw(st.integers(0, 10))))


@st.composite
def problems(draw) -> Problem:
    types = draw(st.integers(1, 2))
    gpus = []
    for index in range(types):
        count = draw(st.integers(0 if index else 1, 4 if types == 1 else 2))
        running = draw(st.none() | st.integers(0, count))
        gpus.append(GpuType.pair(f"type{index}", count, draw(profiles(1.0)), draw(profiles(4.0)), running))
    grid = draw(st.integers(1, 6))
    shares = sorted(draw(st.lists(st.integers(0, 100), min_size=grid, max_size=grid)))
    hits = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 100), st.integers(0, 10)), max_size=2))
    cuts = draw(st.lists(st.sampled_from((0.0, 0.2, 0.5, 1.0)), min_size=1, max_size=3))
    runs = draw(st.lists(st.tuples(st.integers(1, 100), st.integers(-2, 10)), max_size=2))
    groups = draw(st.lists(groups_of(grid), max_size=2))
    total = sum(group.share for group in groups)
    return Problem(
        gpus=tuple(gpus),
        demand_rps=draw(st.integers(0, 300)) / 10,
        slo_s=draw(st.sampled_from((0.04, 0.5, 2.0, 5.0))),
        thresholds=tuple(i / max(1, grid - 1) for i in range(grid)),
        deferral=tuple(s / 100 for s in shares),
        quality=tuple(draw(st.lists(st.integers(0, 10).map(float), min_size=grid, max_size=grid))),
        hits=tuple(CacheHit(s / 100, w / 100, float(q)) for s, w, q in hits),
        direct_cuts=tuple(cuts),
        may_run_whole=draw(st.booleans()),
        short_runs=tuple(ShortRun(work, work / 100, float(loss)) for work, loss in runs),
        groups=tuple(replace(group, share=group.share / total) for group in groups),
        light_utilisation=draw(st.sampled_from((0.7, 1.0))),
        heavy_utilisation=draw(st.sampled_from((0.9, 1.0))),
        fixed_s=draw(st.sampled_from((0.0, 0.1))),
        heavy_residual=draw(st.sampled_from((0.0, 0.2))),
        role_change_cost=draw(st.sampled_from((0.0, 0.01))),
        gpu_cost=draw(st.sampled_from((0.0, 0.001))),
        one_batch_size=draw(st.booleans()),
    )


@st.composite
def chains_of_three(draw) -> Problem:
    """Generates problems with a middle stage, whose grid consists of pairs of thresholds."""
    count, running = draw(st.integers(1, 4)), None
    if draw(st.booleans()):
        low = draw(st.integers(0, count))
        running = {"light": low, "medium": draw(st.integers(0, count - low)), "gone": 1}
        running["heavy"] = draw(st.integers(0, count - low - running["medium"]))
    latencies = {"light": draw(profiles(0.5)), "medium": draw(profiles(1.0)), "heavy": draw(profiles(3.0))}
    grid = draw(st.integers(1, 6))
    deferral = sorted(draw(st.lists(st.integers(0, 100), min_size=grid, max_size=grid)))
    reached = [min(100, share + draw(st.integers(0, 60))) for share in deferral]
    reached[0] = deferral[0]
    hits = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 100), st.integers(0, 10)), max_size=2))
    return Problem(
        gpus=(GpuType("gpu", count, latencies, running),),
        demand_rps=draw(st.integers(0, 200)) / 10,
        slo_s=draw(st.sampled_from((0.5, 2.0, 5.0))),
        thresholds=tuple(draw(st.lists(st.sampled_from((0.0, 0.5, 1.0)), min_size=grid, max_size=grid))),
        deferral=tuple(share / 100 for share in deferral),
        quality=tuple(draw(st.lists(st.integers(0, 10).map(float), min_size=grid, max_size=grid))),
        hits=tuple(CacheHit(s / 100, w / 100, float(q)) for s, w, q in hits),
        direct_cuts=tuple(draw(st.lists(st.sampled_from((0.0, 0.5, 1.0)), min_size=1, max_size=2))),
        may_run_whole=draw(st.booleans()),
        middle=(MiddleStage((0.5,) * grid, tuple(share / 100 for share in reached)),),
        light_utilisation=draw(st.sampled_from((0.7, 1.0))),
        fixed_s=draw(st.sampled_from((0.0, 0.1))),
        role_change_cost=draw(st.sampled_from((0.0, 0.01))),
        gpu_cost=draw(st.sampled_from((0.0, 0.001))),
        one_batch_size=draw(st.booleans()),
    )


@given(problem=chains_of_three())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_the_optimum_of_a_chain_of_three_equals_enumeration(problem):
    assert_optimal(problem, [name for name in installed() if name != "cbc"])


@given(problem=chains_of_three())
@settings(max_examples=100, derandomize=True, deadline=None)
def test_a_plan_of_a_chain_of_three_gives_every_gpu_a_role_of_the_chain(problem):
    plan = solve(problem).to_plan(problem, version=3)
    assert len(plan.assignments) == problem.gpus[0].count
    assert plan.chain == ("light", "medium", "heavy")
    assert set(plan.counts) <= set(plan.chain)


@given(problem=problems())
@settings(max_examples=500, derandomize=True)
def test_in_process_backends_find_the_optimum_of_enumeration(problem):
    assert_optimal(problem, [name for name in installed() if name != "cbc"])


@pytest.mark.skipif("cbc" not in installed(), reason="PuLP has no CBC binary here")
@given(problem=problems())
@settings(max_examples=60, derandomize=True)
def test_cbc_finds_the_optimum_of_enumeration(problem):
    assert_optimal(problem, ["cbc"])


def assert_optimal(problem: Problem, solvers: list[str]) -> None:
    best = enumerate_optimum(problem)
    for solver in solvers:
        found = solve(problem, solver)
        assert found.status is Status.OPTIMAL
        assert found.objective == pytest.approx(best.objective, abs=1e-5)


@given(problem=problems())
@settings(max_examples=100, derandomize=True)
def test_a_solution_never_uses_more_gpus_than_exist(problem):
    solution = solve(problem)
    for index, gpu in enumerate(problem.gpus):
        assert sum(a.count for a in solution.allocations if a.gpu == index) <= gpu.count
    rate = dict.fromkeys(problem.variants, 0.0)
    for a in solution.allocations:
        rate[a.variant] += a.count * a.batch_size / problem.gpus[a.gpu].latency(a.variant).at(a.batch_size)
    need = solution.served_rps * solution.point.light_work
    assert need <= rate[LIGHT] * problem.light_utilisation * (1 + 1e-6)
    assert solution.served_rps + solution.shed_rps == pytest.approx(problem.demand_rps)


@given(problem=problems())
@settings(max_examples=100, derandomize=True)
def test_a_plan_gives_every_gpu_a_role(problem):
    plan = solve(problem).to_plan(problem, version=3)
    assert len(plan.assignments) == sum(g.count for g in problem.gpus)
    assert plan.version == 3


def cascade_problem(**changes) -> Problem:
    light = LatencyProfile((1, 2, 4), (0.1, 0.15, 0.22))
    heavy = LatencyProfile((1, 2, 4), (1.78, 2.16, 3.68))
    grid = tuple(i / 20 for i in range(21))
    fields = {
        "gpus": (GpuType.pair("a100", 16, light, heavy),),
        "demand_rps": 20.0,
        "slo_s": 5.0,
        "thresholds": grid,
        "deferral": grid,
        "quality": grid,
    }
    return Problem(**{**fields, **changes})


def test_demand_beyond_the_capacity_is_shed_and_the_rest_is_served():
    problem = cascade_problem(demand_rps=1000.0)
    solution = solve(problem)
    assert solution.served_rps == pytest.approx(16 * 4 / 0.22)
    assert solution.deferral == 0
    assert solution.to_plan(problem, 1).admitted_rps == pytest.approx(solution.served_rps)


def test_a_deadline_that_no_option_meets_still_gives_a_plan():
    problem = cascade_problem(slo_s=0.05)
    solution = solve(problem)
    assert solution.served_rps == 0
    assert len(solution.to_plan(problem, 1).assignments) == 16


def test_no_demand_gives_the_best_quality():
    assert solve(cascade_problem(demand_rps=0.0)).deferral == 1.0


def test_deferral_stops_at_the_peak_of_the_quality_curve():
    grid = cascade_problem().thresholds
    peaked = tuple(-((t - 0.4) ** 2) for t in grid)
    assert solve(cascade_problem(demand_rps=2.0, quality=peaked)).deferral == pytest.approx(0.4)


def test_cache_hits_free_gpus_for_deferral():
    hit = CacheHit(share=0.4, work=0.2, quality=1.0)
    assert solve(cascade_problem(hits=(hit,))).deferral > solve(cascade_problem()).deferral


def test_requests_that_begin_heavy_do_not_overfill_the_heavy_stage():
    hit = CacheHit(share=0.9, work=0.5, quality=1.0)
    problem = cascade_problem(demand_rps=24.0, hits=(hit,), direct_cuts=(0.0, 1.0), heavy_utilisation=1.1)
    overfull, honest = solve(problem), solve(replace(problem, unbacked_utilisation=0.5))
    assert (overfull.point.direct, honest.point.direct) == (0.0, 1.0)


@pytest.mark.parametrize(("demand", "reuse"), [(1.0, False), (20.0, True)])
def test_hits_run_whole_when_there_is_time_and_resuming_lowers_quality(demand, reuse):
    hit = CacheHit(share=0.4, work=0.5, quality=0.9)
    solution = solve(cascade_problem(demand_rps=demand, hits=(hit,), direct_cuts=(0.0, 1.0), may_run_whole=True))
    assert solution.point.reuse is reuse


@pytest.mark.parametrize(("demand", "steps"), [(1.0, None), (20.0, 25), (60.0, 10)])
def test_runs_from_noise_get_shorter_with_growing_demand(demand, steps):
    runs = (ShortRun(steps=25, work=0.5, loss=0.01), ShortRun(steps=10, work=0.2, loss=0.1))
    solution = solve(cascade_problem(demand_rps=demand, short_runs=runs))
    assert solution.point.steps == steps
    assert solution.point.quality >= solve(cascade_problem(demand_rps=demand)).point.quality


def test_a_hit_with_more_steps_left_than_a_short_run_runs_from_noise():
    hit, run = CacheHit(share=0.4, work=0.5, quality=0.9), ShortRun(steps=10, work=0.2, loss=0.01)
    solution = solve(cascade_problem(demand_rps=60.0, hits=(hit,), short_runs=(run,)))
    assert (solution.point.steps, solution.point.reuse) == (10, False)
    cheap = solve(cascade_problem(demand_rps=60.0, hits=(replace(hit, work=0.1),), short_runs=(run,)))
    assert (cheap.point.steps, cheap.point.reuse) == (10, True)


def test_a_costly_role_change_keeps_the_running_split():
    gpus = cascade_problem().gpus
    running = (replace(gpus[0], running={LIGHT: 5, HEAVY: 11}),)
    free = solve(cascade_problem(gpus=running))
    costly = cascade_problem(gpus=running, role_change_cost=1.0)
    assert free.count(LIGHT) < 5
    assert solve(costly).to_plan(costly, 1).count(LIGHT) == 5


def test_a_running_split_that_suffices_is_kept():
    gpus = (replace(cascade_problem().gpus[0], running={LIGHT: 5, HEAVY: 11}),)
    problem = cascade_problem(gpus=gpus, demand_rps=3.0, gpu_cost=1e-4)
    assert solve(problem).to_plan(problem, 1).count(LIGHT) == 5


def test_a_faster_type_of_gpu_runs_the_variant_that_gains_most():
    slow, fast = LatencyProfile((1,), (4.0,)), LatencyProfile((1,), (1.0,))
    light = LatencyProfile((1,), (0.1,))
    gpus = (GpuType.pair("old", 4, light, slow), GpuType.pair("new", 4, light, fast))
    solution = solve(cascade_problem(gpus=gpus, demand_rps=8.0, gpu_cost=1e-4))
    assert solution.count(LIGHT, 1) == 0
    assert solution.count(HEAVY, 1) == 4


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("demand_rps", math.nan, "demand_rps is nan"),
        ("demand_rps", -1.0, "demand_rps is -1"),
        ("slo_s", 0.0, "slo_s is 0"),
        ("gpus", (), "gpus is empty"),
        ("deferral", (0.5, 0.2), "one entry for each grid point"),
        ("deferral", tuple(reversed(range(21))), "must not fall"),
        ("light_utilisation", 0.0, "light_utilisation"),
    ],
)
def test_an_invalid_problem_is_refused_and_its_field_named(field, value, message):
    with pytest.raises(PlanError, match=message):
        cascade_problem(**{field: value})


def test_an_unknown_solver_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="known: auto, gurobi, highs, cbc"):
        solve(cascade_problem(), "simplex")


class Broken(Backend):
    """A backend that fails in one of several ways."""

    name = "broken"

    def __init__(self, act):
        self.act = act

    def solve(self, program, time_limit_s):
        return self.act(program)


def crash(program):
    raise RuntimeError("segmentation fault, nearly")


FAILURES = {
    "crashes": crash,
    "times out": lambda program: Answer(None, False, "time limit"),
    "answers NaN": lambda program: Answer(np.full(len(program.objective), np.nan), True),
    "answers too many GPUs": lambda program: Answer(np.full(len(program.objective), 99.0), True),
    "answers fractions": lambda program: Answer(np.full(len(program.objective), 0.5), True),
    "answers a vector of the wrong length": lambda program: Answer(np.zeros(3), True),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_solver_that_fails_gives_the_lightest_plan(failure, monkeypatch):
    monkeypatch.setattr(solving, "backend", lambda name: Broken(FAILURES[failure]))
    problem = cascade_problem()
    solution = solve(problem, "highs")
    assert solution.status is Status.LIGHTEST
    assert solution.deferral == 0
    assert solution.to_plan(problem, 1).count(HEAVY) == 0


def test_another_backend_takes_over_from_one_that_fails(monkeypatch):
    monkeypatch.setattr(solving, "installed", lambda: ("broken", "highs"))
    monkeypatch.setattr(solving, "backend", lambda n: Broken(crash) if n == "broken" else backend(n))
    solution = solve(cascade_problem())
    assert (solution.backend, solution.status) == ("highs", Status.OPTIMAL)


def test_a_solver_too_slow_for_the_full_grid_is_retried_on_a_coarser_grid(monkeypatch):
    highs = backend("highs")
    full = len(formulate(cascade_problem()).program.objective)

    def only_small(program):
        return highs.solve(program, 2.0) if len(program.objective) < full else Answer(None, False, "time limit")

    monkeypatch.setattr(solving, "backend", lambda name: Broken(only_small))
    assert solve(cascade_problem(), "highs").status is Status.RELAXED


def test_the_program_does_not_grow_with_the_number_of_gpus():
    few = formulate(cascade_problem())
    many = formulate(cascade_problem(gpus=(replace(few.problem.gpus[0], count=1000),)))
    assert len(few.program.objective) == len(many.program.objective)
    assert len(few.program.values) == len(many.program.values)


@pytest.mark.parametrize("solver", installed())
def test_solving_prints_nothing(solver, capfd):
    solve(cascade_problem(), solver)
    assert capfd.readouterr() == ("", "")
