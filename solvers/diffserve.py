"""DiffServe's allocation problem (Ahmad et al., MLSys 2025; ``qaware_cascade_ILP.py`` of its artifact) as an instance
of :class:`~solvers.problem.Problem`.

The instance has one type of GPU, no cache, the whole profiled throughput, no cost of role changes, one batch size per
role, and the threshold itself as the quality. Each queue delay counts once against the deadline; the wait for a batch
and the discriminator do not count.

Each capacity constraint of the published program has a product of a binary and an integer variable. Weir's program has
none, because it counts GPUs for each batch size. The optimal threshold is the same.
"""

from __future__ import annotations

from solvers.problem import GpuType, Problem
from weir.core import DeferralCurve


def published_problem(
    gpus: GpuType,
    deferral: DeferralCurve,
    *,
    demand_rps: float,
    slo_s: float,
    queue_delay_s: tuple[float, float] = (0.0, 0.0),
    tie_break: float = 0.0,
) -> Problem:
    """Builds the problem "max t subject to the published constraints".

    Where the published problem is infeasible, this one sheds demand: :attr:`Solution.shed_rps` is then above 0.

    Args:
        gpus: the GPU workers (S − 1 in the artifact, which reserves one worker as a sink), with the latencies of the
            light and the heavy variant.
        queue_delay_s: q_light and q_heavy.
        tie_break: cost of a GPU; above 0 it selects one of the allocations with the optimal threshold.
    """
    return Problem(
        gpus=(gpus,),
        demand_rps=demand_rps,
        slo_s=slo_s,
        thresholds=deferral.thresholds,
        deferral=deferral.shares,
        quality=deferral.thresholds,
        fixed_s=sum(queue_delay_s),
        gpu_cost=tie_break,
        one_batch_size=True,
    )
