"""The allocation of levels: the optimum, whatever the backend; a usable answer, whatever the backend does."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import allocation
from solvers.allocation import LevelAllocation, LevelGpus, LevelProblem, allocate, enumerate_levels
from solvers.backends import Answer, Backend, installed
from solvers.solution import Status
from weir.errors import ConfigError, PlanError
from weir.levels import Strategy, load_ladder

LADDER = load_ladder(Path(__file__).parents[2] / "deploy" / "ladders" / "argus-sdxl.json")
LEVELS = LADDER.of(Strategy.AC)


def argus(gpus: int, per_min: float) -> LevelProblem:
    """The published ladder on GPUs of one type; qualities in percent."""
    rates = LADDER.rates_rps(LEVELS)
    return LevelProblem((LevelGpus("gpu", gpus, rates),), tuple(100 * level.quality for level in LEVELS), per_min / 60)


def assert_valid(problem: LevelProblem, found: LevelAllocation) -> None:
    """Every GPU has a level, none more than it can carry, and the loads are what is served, at the stated quality."""
    for t, gpu in enumerate(problem.gpus):
        mine = [load for load in found.loads if load.gpu == t]
        assert sum(load.count for load in mine) == gpu.count
        assert all(load.load_rps <= gpu.rate_rps[load.level] * (1 + 1e-5) for load in mine)
    assert found.served_rps + found.shed_rps == pytest.approx(problem.demand_rps)
    assert found.served_rps == pytest.approx(problem.served_rps)
    assert sum(load.count * load.load_rps for load in found.loads) == pytest.approx(found.served_rps)
    assert sum(found.target) == pytest.approx(1)
    assert found.quality == pytest.approx(np.dot(found.target, problem.quality))
    for level, share in enumerate(found.target):
        if found.served_rps > 0:
            load = sum(load.count * load.load_rps for load in found.loads if load.level == level)
            assert load == pytest.approx(share * found.served_rps, abs=1e-9)


@pytest.mark.parametrize("solver", installed())
def test_eight_gpus_get_what_enumeration_finds_at_every_load_on_the_published_ladder(solver):
    for per_min in range(60, 401, 20 if solver == "cbc" else 10):
        problem = argus(8, per_min)
        found = allocate(problem, solver, time_limit_s=20)
        assert_valid(problem, found)
        assert found.status is Status.OPTIMAL
        assert found.quality == pytest.approx(enumerate_levels(problem), abs=1e-4)


@pytest.mark.parametrize(
    ("per_min", "quality", "levels"),
    [
        (188, 100.0, (0,) * 8),
        (200, 98.82, (0,) * 7 + (4,)),
        (225, 97.15, (0,) * 6 + (4, 5)),
        (250, 95.79, (0,) * 5 + (4, 5, 5)),
        (275, 94.68, (0,) * 3 + (4,) * 4 + (5,)),
        (300, 93.63, (0, 3, 4, 4, 4, 4, 4, 5)),
        (325, 92.76, (4,) * 6 + (5,) * 2),
        (350, 92.10, (4,) * 3 + (5,) * 5),
        (370, 91.52, (5,) * 8),
        (400, 91.52, (5,) * 8),
    ],
)
def test_the_optima_of_the_published_ladder(per_min, quality, levels):
    found = allocate(argus(8, per_min))
    assert found.quality == pytest.approx(quality, abs=0.005)
    assert found.levels() == levels
    assert found.shed_rps * 60 == pytest.approx(max(0, per_min - 8 * 1.65 * 60 / 2.1), abs=1e-3)


@st.composite
def problems(draw) -> LevelProblem:
    levels = draw(st.integers(1, 4))
    types = draw(st.integers(1, 2))

    def ascending(low: int, high: int) -> list[int]:
        return sorted(draw(st.lists(st.integers(low, high), min_size=levels, max_size=levels)))

    gpus = tuple(
        LevelGpus(f"type{t}", draw(st.integers(0 if t else 1, 5)), tuple(r / 7 for r in ascending(0, 50)))
        for t in range(types)
    )
    return LevelProblem(gpus, tuple(map(float, reversed(ascending(0, 100)))), draw(st.integers(0, 400)) / 11)


@given(problem=problems())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_in_process_backends_find_what_enumeration_finds(problem):
    best = enumerate_levels(problem)
    for solver in installed():
        if solver != "cbc":
            found = allocate(problem, solver)
            assert_valid(problem, found)
            assert found.quality == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("per_min_each", [24, 32, 45])
def test_a_thousand_gpus_get_a_proven_optimum_that_all_backends_share(per_min_each):
    problem = argus(1000, 1000 * per_min_each)
    found = [allocate(problem, solver, time_limit_s=20) for solver in installed()]
    for each in found:
        assert_valid(problem, each)
        assert each.status is Status.OPTIMAL
        assert each.quality == pytest.approx(found[0].quality, abs=1e-5)


def test_without_demand_every_gpu_stands_by_at_level_0():
    found = allocate(argus(8, 0))
    assert found.levels() == (0,) * 8
    assert found.target == (1, 0, 0, 0, 0, 0)


def test_a_type_too_slow_for_level_0_stands_by_at_the_best_level_that_it_can_serve():
    gpus = (LevelGpus("fast", 2, (1.0, 2.0)), LevelGpus("slow", 2, (0.0, 1.0)))
    assert allocate(LevelProblem(gpus, (1.0, 0.9), 1.0)).levels() == (0, 0, 1, 1)


class Broken(Backend):
    """A backend that answers with ``x``, or raises it."""

    name = "broken"

    def __init__(self, x: np.ndarray | Exception | None):
        self.x = x

    def solve(self, program, time_limit_s):
        if isinstance(self.x, Exception):
            raise self.x
        return Answer(self.x, proven=False, reason="it is broken")


@pytest.mark.parametrize(
    "x",
    [
        RuntimeError("no licence"),
        None,
        np.array([]),
        np.full(12, math.nan),
        np.full(12, 0.5),
        np.array([9.0] + [0.0] * 11),
        np.array([-1.0, 9.0] + [0.0] * 10),
        np.zeros(12),
    ],
    ids=["raises", "none", "empty", "nan", "halves", "nine of eight", "negative", "too few"],
)
def test_without_a_usable_answer_every_gpu_goes_to_its_fastest_level(monkeypatch, x):
    monkeypatch.setattr(allocation, "backend", lambda name: Broken(x))
    problem = argus(8, 200)
    found = allocate(problem)
    assert found.status is Status.LIGHTEST
    assert_valid(problem, found)
    assert found.shed_rps == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"demand_rps": math.nan}, "demand_rps is nan"),
        ({"demand_rps": -1.0}, "demand_rps is -1"),
        ({"quality": ()}, "quality is empty"),
        ({"quality": (1.0, math.nan)}, "quality is .*finite"),
        ({"quality": (0.9, 1.0)}, "levels are out of order: it must not rise"),
        ({"gpus": ()}, "gpus is empty"),
        ({"gpus": (LevelGpus("a", -1, (1.0, 2.0)), LevelGpus("b", 2, (1.0, 2.0)))}, "a: count is -1"),
        ({"gpus": (LevelGpus("a", 1, (1.0,)),)}, "a: 1 rates for 2 levels"),
        ({"gpus": (LevelGpus("a", 1, (1.0, math.inf)),)}, "a: rate_rps is .*finite"),
        ({"gpus": (LevelGpus("a", 1, (2.0, 1.0)),)}, "a: rate_rps is .*out of order"),
    ],
)
def test_bad_input_is_named(change, says):
    good = LevelProblem((LevelGpus("a", 1, (1.0, 2.0)),), (1.0, 0.9), 1.0)
    with pytest.raises(PlanError, match=says):
        replace(good, **change)


def test_an_unknown_solver_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="known: auto, gurobi, highs, cbc"):
        allocate(argus(8, 200), "magic")
