"""Tests of the level allocation: every backend finds the optimum, and a failing backend leaves a usable allocation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import allocation
from solvers.alignment import align
from solvers.allocation import LevelAllocation, LevelGpus, LevelProblem, PromptClass, allocate, share_levels
from solvers.backends import Answer, Backend, installed
from solvers.enumerate_levels import enumerate_levels
from solvers.solution import Status
from weir.approximation_levels import Strategy, load_ladder
from weir.errors import ConfigError, PlanError

LADDER = load_ladder(Path(__file__).parents[2] / "deploy" / "ladders" / "argus-sdxl.json")
LEVELS = LADDER.of(Strategy.AC)


def argus(gpus: int, per_min: float) -> LevelProblem:
    """Builds the problem of the published ladder on GPUs of one type; qualities are in percent."""
    rates = LADDER.rates_rps(LEVELS)
    return LevelProblem.of(
        (LevelGpus("gpu", gpus, rates),), tuple(100 * level.quality for level in LEVELS), per_min / 60
    )


def assert_valid(problem: LevelProblem, found: LevelAllocation) -> None:
    """Asserts that every GPU has a level and is within its capacity, and that loads and quality add up."""
    for t, gpu in enumerate(problem.gpus):
        mine = [load for load in found.loads if load.gpu == t]
        assert sum(load.count for load in mine) == gpu.count
        assert all(load.load_rps <= gpu.rate_rps[load.level] * (1 + 1e-5) for load in mine)
    assert found.served_rps + found.shed_rps == pytest.approx(problem.demand_rps)
    assert found.served_rps == pytest.approx(min(problem.demand_rps, problem.capacity_rps))
    assert sum(load.count * load.load_rps for load in found.loads) == pytest.approx(found.served_rps)
    assert sum(found.target) == pytest.approx(1)
    assert np.sum(found.shift, axis=1) == pytest.approx(1)
    assert problem.shares @ np.array(found.shift) == pytest.approx(np.array(found.target))
    assert found.quality == pytest.approx(problem.shares @ (np.array(found.shift) * problem.qualities).sum(axis=1))
    for level, share in enumerate(found.target):
        if found.served_rps > 0:
            load = sum(load.count * load.load_rps for load in found.loads if load.level == level)
            assert load == pytest.approx(share * found.served_rps, abs=1e-9)


@pytest.mark.parametrize("solver", installed())
def test_the_allocation_of_eight_gpus_equals_enumeration_at_every_load_of_the_published_ladder(solver):
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
def problems(draw, classes: int = 1) -> LevelProblem:
    levels = draw(st.integers(1, 4 if classes == 1 else 3))
    types = draw(st.integers(1, 2))

    def ascending(high: int) -> list[int]:
        return sorted(draw(st.lists(st.integers(0, high), min_size=levels, max_size=levels)))

    gpus = tuple(
        LevelGpus(f"type{t}", draw(st.integers(0 if t else 1, 5 // classes)), tuple(r / 7 for r in ascending(50)))
        for t in range(types)
    )
    weights = [draw(st.integers(1 if i == 0 else 0, 5)) for i in range(classes)]
    kinds = tuple(PromptClass(weight / sum(weights), tuple(map(float, reversed(ascending(100))))) for weight in weights)
    return LevelProblem(gpus, kinds, draw(st.integers(0, 400)) / 11)


@given(problem=problems() | problems(classes=2))
@settings(max_examples=150, derandomize=True)
def test_in_process_backends_find_the_optimum_of_enumeration(problem):
    best = enumerate_levels(problem)
    for solver in installed():
        if solver != "cbc" and (problem.demand_rps < problem.capacity_rps or len(problem.classes) == 1):
            found = allocate(problem, solver)
            assert_valid(problem, found)
            assert found.quality == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("per_min", [190, 220, 250, 280, 310, 340, 370])
def test_deciding_levels_and_prompts_at_once_is_at_least_as_good_as_aligning_afterwards(per_min):
    """Prompts of class i lose no quality up to level i and 5 points at each further level."""
    h = (0.1, 0.1, 0.2, 0.2, 0.2, 0.2)
    classes = tuple(PromptClass(h[i], tuple(100.0 - 5 * max(0, j - i) for j in range(6))) for i in range(6))
    at_once = allocate(replace(argus(8, per_min), classes=classes))
    first = allocate(argus(8, per_min))
    aligned = align(h, first.target)
    afterwards = sum(h[i] * aligned[i] @ np.array(classes[i].quality) for i in range(6))
    told_nothing = sum(h[i] * np.dot(first.target, classes[i].quality) for i in range(6))
    assert at_once.quality >= afterwards - 1e-4
    assert afterwards >= told_nothing - 1e-9


@pytest.mark.parametrize("per_min_each", [24, 32, 45])
def test_all_backends_prove_the_same_optimum_for_a_thousand_gpus(per_min_each):
    problem = argus(1000, 1000 * per_min_each)
    found = [allocate(problem, solver, time_limit_s=20) for solver in installed()]
    for each in found:
        assert_valid(problem, each)
        assert each.status is Status.OPTIMAL
        assert each.quality == pytest.approx(found[0].quality, abs=1e-5)


@pytest.mark.parametrize(("per_min", "quality"), [(150, 100.0), (200, 99.03), (300, 93.72), (377, 91.52), (400, 91.52)])
def test_sharing_levels_reaches_the_bound_that_whole_gpus_miss(per_min, quality):
    problem = argus(8, per_min)
    for solver in installed():
        found = share_levels(problem, solver)
        assert found.quality == pytest.approx(quality, abs=0.01)
        assert found.quality >= allocate(problem, solver).quality - 1e-6
        assert sum(load.count for load in found.loads) <= 8 * (1 + 1e-5)
        assert sum(load.count * load.load_rps for load in found.loads) == pytest.approx(found.served_rps)


def test_without_demand_every_gpu_is_at_level_0():
    found = allocate(argus(8, 0))
    assert found.levels() == (0,) * 8
    assert found.target == (1, 0, 0, 0, 0, 0)


def test_an_idle_gpu_too_slow_for_level_0_is_at_the_best_level_it_can_serve():
    gpus = (LevelGpus("fast", 2, (1.0, 2.0)), LevelGpus("slow", 2, (0.0, 1.0)))
    assert allocate(LevelProblem.of(gpus, (1.0, 0.9), 1.0)).levels() == (0, 0, 1, 1)


class Broken(Backend):
    """A backend that returns the vector ``x``, or raises it when it is an exception."""

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
        np.array([8.0] + [0.0] * 5 + [1.0] + [0.0] * 5),
    ],
    ids=["raises", "none", "empty", "nan", "halves", "nine of eight", "negative", "none served", "overloaded"],
)
def test_without_a_usable_solution_every_gpu_gets_its_fastest_level(monkeypatch, x):
    monkeypatch.setattr(allocation, "backend", lambda name: Broken(x))
    problem = argus(8, 200)
    found = allocate(problem)
    assert found.status is Status.LIGHTEST
    assert_valid(problem, found)
    assert found.shed_rps == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"demand_rps": math.nan}, "demand_rps is nan"),
        ({"demand_rps": -1.0}, "demand_rps is -1"),
        ({"classes": ()}, "classes is empty"),
        ({"classes": (PromptClass(1.0, ()),)}, "quality is empty"),
        ({"classes": (PromptClass(1.0, (1.0, math.nan)),)}, r"classes\[0\]: quality is .*finite"),
        ({"classes": (PromptClass(1.0, (0.9, 1.0)),)}, "levels are out of order: it must not rise"),
        ({"classes": (PromptClass(0.5, (1.0, 0.9)),)}, "shares of classes adds up to 0.5"),
        ({"classes": (PromptClass(math.nan, (1.0, 0.9)),)}, "shares of classes is .*number"),
        (
            {"classes": (PromptClass(0.5, (1.0, 0.9)), PromptClass(0.5, (1.0,)))},
            r"classes\[1\]: quality has 1 levels instead of 2",
        ),
        ({"gpus": ()}, "gpus is empty"),
        ({"gpus": (LevelGpus("a", -1, (1.0, 2.0)), LevelGpus("b", 2, (1.0, 2.0)))}, "a: count is -1"),
        ({"gpus": (LevelGpus("a", 1, (1.0,)),)}, "a: 1 rates for 2 levels"),
        ({"gpus": (LevelGpus("a", 1, (1.0, math.inf)),)}, "a: rate_rps is .*finite"),
        ({"gpus": (LevelGpus("a", 1, (2.0, 1.0)),)}, "a: rate_rps is .*out of order"),
    ],
)
def test_invalid_input_is_refused_and_named(change, message):
    good = LevelProblem.of((LevelGpus("a", 1, (1.0, 2.0)),), (1.0, 0.9), 1.0)
    with pytest.raises(PlanError, match=message):
        replace(good, **change)


def test_an_unknown_solver_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="known: auto, gurobi, highs, cbc"):
        allocate(argus(8, 200), "magic")
