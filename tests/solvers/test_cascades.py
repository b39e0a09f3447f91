"""Tests of the selection of cascades: the front is the Pareto front, and the chosen chain is the best for the
demand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.cascades import Variant, chains, choice, chosen_chain, front
from solvers.enumerate import enumerate_optimum
from solvers.problem import GpuType
from tests.solvers.test_solve import cascade_problem, problems
from weir.core import LatencyProfile
from weir.errors import PlanError

variants = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=6).map(
    lambda rows: [Variant(f"v{i}", cost / 10, float(quality)) for i, (cost, quality) in enumerate(rows)]
)


def beats(a: Variant, b: Variant) -> bool:
    return (a.image_s, -a.quality) != (b.image_s, -b.quality) and a.image_s <= b.image_s and a.quality >= b.quality


@given(variants)
def test_no_variant_of_the_front_is_dominated(given_variants):
    kept = front(given_variants)
    worth = {(v.image_s, v.quality) for v in given_variants if not any(beats(o, v) for o in given_variants)}
    assert {(v.image_s, v.quality) for v in kept} == worth
    assert len(kept) == len(worth)


@given(variants, st.integers(2, 3))
def test_cost_and_quality_rise_along_a_chain(given_variants, longest):
    kept = front(given_variants)
    found = chains(given_variants, longest)
    assert (
        len(set(found))
        == len(found)
        == sum(
            {2: n * (n - 1) // 2, 3: n * (n - 1) * (n - 2) // 6}[k] for n in [len(kept)] for k in range(2, longest + 1)
        )
    )
    for chain in found:
        assert all(a.image_s < b.image_s and a.quality < b.quality for a, b in pairwise(chain))


@given(st.lists(problems(), min_size=1, max_size=3), st.integers(0, 100))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_the_chosen_chain_equals_enumeration(given_problems, demand):
    free = [replace(p, demand_rps=demand / 10, role_change_cost=0.0, gpu_cost=0.0) for p in given_problems]
    found = chosen_chain(free)
    best = [choice(i, p, enumerate_optimum(p)) for i, p in enumerate(free)]
    most = max(it.served for it in best)
    assert found.served == pytest.approx(most, abs=1e-5)
    if most == 1:
        top = max(it.quality for it in best if it.served == 1)
        assert found.quality == pytest.approx(top, abs=1e-3)


def pairs(demand: float):
    """Builds two chains with the same heavy variant: one with a good light variant and one with a fast light
    variant."""
    good = cascade_problem(demand_rps=demand)
    worse = tuple(q - 0.2 * (1 - q) for q in good.quality)
    fast = GpuType.pair("a100", 16, LatencyProfile((1, 2, 4), (0.02, 0.03, 0.05)), good.gpus[0].heavy)
    return good, replace(good, gpus=(fast,), quality=worse)


@pytest.mark.parametrize(("demand", "chain"), [(40.0, 0), (600.0, 1)])
def test_high_demand_selects_the_chain_with_the_faster_light_variant(demand, chain):
    assert chosen_chain(pairs(demand)).chain == chain


def test_a_running_chain_is_kept_until_another_is_better_by_more_than_the_switch_cost():
    good, fast = pairs(40.0)
    assert chosen_chain([good, fast], running=1, switch_cost=1.0).chain == 1
    assert chosen_chain([good, fast], running=1, switch_cost=0.0).chain == 0
    assert chosen_chain(pairs(600.0), running=0, switch_cost=1.0).chain == 1, "to serve more is worth any switch"


def test_invalid_variants_and_chains_are_refused_and_named():
    with pytest.raises(PlanError, match="variant slow: image_s is nan"):
        Variant("slow", float("nan"), 1.0)
    with pytest.raises(PlanError, match="names must differ; they are a, a"):
        front([Variant("a", 1.0, 1.0), Variant("a", 2.0, 2.0)])
    with pytest.raises(PlanError, match="chains is empty"):
        chosen_chain([])
    with pytest.raises(PlanError, match="different demands"):
        chosen_chain([cascade_problem(demand_rps=1.0), cascade_problem(demand_rps=2.0)])
