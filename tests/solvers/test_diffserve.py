"""Tests of the published problem: the solver finds the optima of the artifact's own formulation on its own tables."""

from __future__ import annotations

import pytest

from baselines.published import cascade
from solvers.backends import installed
from solvers.diffserve import published_problem
from solvers.problem import GpuType
from solvers.solve import solve
from weir.plan import HEAVY, LIGHT

# (t*, F(t*)) for 16 GPU workers without queue delay: optima of DiffServe's published program
# (qaware_cascade_ILP.py) over its published latencies and deferral tables; None where it is infeasible.
GOLDEN = {
    "diffserve-1": {
        4: (1.0, 1.0), 8: (1.0, 1.0), 12: (1.0, 1.0), 16: (1.0, 1.0), 20: (0.32, 0.81), 24: (0.23, 0.63),
        28: (0.17, 0.539), 32: (0.115, 0.469), 40: (0.055, 0.371), 48: (0.025, 0.287), 64: (0.01, 0.2),
        96: (0.0, 0.0), 128: (0.0, 0.0),
    },
    "diffserve-2": {
        4: (1.0, 1.0), 8: (1.0, 1.0), 12: (1.0, 1.0), 16: (1.0, 1.0), 20: (0.375, 0.815), 24: (0.275, 0.672),
        28: (0.235, 0.572), 32: (0.205, 0.505), 40: (0.145, 0.405), 48: (0.11, 0.337), 64: (0.065, 0.25),
        96: (0.03, 0.152), 128: (0.02, 0.115),
    },
    "diffserve-3": {
        1: (1.0, 1.0), 2: (1.0, 1.0), 4: (0.265, 0.656), 6: (0.145, 0.405), 8: (0.075, 0.272), 10: (0.045, 0.202),
        12: (0.03, 0.152), 16: (0.015, 0.093), 20: (0.005, 0.037), 28: (0.0, 0.0), 34: (0.0, 0.0), 37: None,
    },
}  # fmt: skip
ROWS = [(name, demand, best) for name, rows in GOLDEN.items() for demand, best in rows.items()]


def published(name: str, demand: float, queue_delay_s: tuple[float, float] = (0.0, 0.0)):
    c = cascade(name)
    gpus = GpuType.pair("gpu", 16, c.light, c.heavy)
    return published_problem(gpus, c.deferral, demand_rps=demand, slo_s=c.slo_s, queue_delay_s=queue_delay_s)


@pytest.mark.parametrize("solver", installed())
@pytest.mark.parametrize(("name", "demand", "best"), ROWS)
def test_every_backend_finds_the_published_optimum(name, demand, best, solver):
    solution = solve(published(name, demand), solver)
    if best is None:
        assert solution.shed_rps > 0
    else:
        assert solution.shed_rps == 0
        assert (solution.threshold, solution.deferral) == best


def test_queue_delay_rules_out_slow_batches():
    # 0.10 + 3.68 + 1.3 s is late, so the heavy batch has to be 2 (2.16 s) and the threshold has to fall.
    solution = solve(published("diffserve-1", 20, queue_delay_s=(0.3, 1.0)))
    assert solution.batch_size(HEAVY) == 2
    assert solution.threshold < 0.32


def test_a_role_runs_one_batch_size():
    for demand in (10, 20, 40, 70):
        solution = solve(published("diffserve-1", demand))
        for variant in (LIGHT, HEAVY):
            assert len({a.batch_size for a in solution.allocations if a.variant == variant}) <= 1


def test_the_published_deferral_tables_ascend_to_one():
    for name in ("diffserve-1", "diffserve-2", "diffserve-3"):
        shares = cascade(name).deferral.shares
        assert len(shares) == 201
        assert shares[0] == 0
        assert shares[-1] == 1
        assert list(shares) == sorted(shares)
