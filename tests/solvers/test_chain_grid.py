"""Tests of the grid of a chain of three: the shares of its two judges and the quality of the mix."""

from __future__ import annotations

import pytest

from solvers.chain_grid import FIRST_SHARES, SECOND_SHARES, chain_grid, mixed
from solvers.problem import GpuType, Problem
from solvers.solve import solve
from weir.core import LatencyProfile
from weir.errors import PlanError


def rising(loss: float):
    """Quality that falls linearly with the share that a variant answers."""
    return lambda share: 1 - loss * share


def grid():
    return chain_grid(lambda share: share, lambda share: share / 2, mixed([rising(0.4), rising(0.1)]))


def problem(demand_rps: float, **changes) -> Problem:
    found = grid()
    latencies = {
        "light": LatencyProfile((1, 4), (0.05, 0.1)),
        "medium": LatencyProfile((1, 4), (0.3, 0.8)),
        "heavy": LatencyProfile((1, 4), (1.5, 4.0)),
    }
    fields = {
        "gpus": (GpuType("gpu", 8, latencies),),
        "demand_rps": demand_rps,
        "slo_s": 8.0,
        "thresholds": found.thresholds,
        "deferral": found.deferral,
        "quality": found.quality,
        "middle": (found.middle,),
    }
    return Problem(**{**fields, **changes})


def test_each_stage_receives_the_share_that_the_judges_before_it_defer():
    found = grid()
    assert len(found.thresholds) == (FIRST_SHARES - 1) * SECOND_SHARES + 1
    for j in range(len(found.thresholds)):
        first, second = found.shares(j)
        assert found.middle.reached[j] == pytest.approx(first)
        assert found.deferral[j] == pytest.approx(first * second)
    assert (found.deferral[0], found.deferral[-1]) == (0.0, 1.0)


def test_the_losses_of_the_two_mixes_add_up():
    worth = mixed([rising(0.4), rising(0.1)])
    assert worth(0.0, 0.0) == 1.0
    assert worth(1.0, 0.0) == pytest.approx(0.6)
    assert worth(0.0, 1.0) == pytest.approx(0.9)
    assert worth(0.5, 0.3) == pytest.approx(1 - 0.2 - 0.03)


def test_deferral_stops_at_the_peak_of_each_judges_quality_curve():
    best = mixed([lambda a: -((a - 0.3) ** 2), lambda a: 0.0])
    found = chain_grid(lambda s: s, lambda s: s, best)
    top = max(range(len(found.quality)), key=found.quality.__getitem__)
    assert 1 - found.middle.reached[top] == pytest.approx(0.3, abs=0.05)


def test_more_demand_moves_work_from_the_best_variant_to_the_middle_one_and_then_to_the_first():
    calm, busy, flood = (solve(problem(demand)) for demand in (1.0, 20.0, 200.0))
    assert calm.point.works[2] == pytest.approx(1.0)
    assert busy.point.works[1] > busy.point.works[2]
    assert flood.point.works[1] < 0.3
    for solution in (calm, busy, flood):
        assert solution.shed_rps == pytest.approx(0, abs=1e-6)
        plan = solution.to_plan(problem(1.0), 1)
        assert plan.chain == ("light", "medium", "heavy")
        assert len(plan.thresholds) == 2


def test_a_chain_of_three_is_better_where_pairs_alone_lose_quality():
    three = solve(problem(20.0))
    found = problem(20.0)
    pair = {key: found.gpus[0].latency(key) for key in ("light", "heavy")}
    shares = tuple(i / 50 for i in range(51))
    two = Problem(
        gpus=(GpuType("gpu", 8, pair),),
        demand_rps=20.0,
        slo_s=8.0,
        thresholds=shares,
        deferral=shares,
        quality=tuple(rising(0.4)(1 - share) for share in shares),
    )
    worth = 0.6 + 0.4 * solve(two).point.quality
    low, high = min(found.quality), max(found.quality)
    assert low + (high - low) * three.point.quality > worth + 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"middle": ()}, "middle has 0 stages for a chain of 3 variants"),
        (
            {"deferral": (1.0,) * len(grid().deferral)},
            "deferral must not exceed the share that reaches the last middle stage",
        ),
    ],
)
def test_an_invalid_chain_is_refused(changes, message):
    with pytest.raises(PlanError, match=message):
        problem(1.0, **changes)
