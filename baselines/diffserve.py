"""DiffServe as published (Ahmad et al., MLSys 2025), with the formulas of its artifact, its defects included.

The demand is 1.2 × the number of requests in flight, not a rate. The queue delay is the ratio of two counts, used as
seconds. Requests go to a random replica, and batches are greedy. The drop bound is 1.5 × 15 s for every deadline
(``controller.py`` and ``model.py`` of the artifact).
"""

from __future__ import annotations

from collections import deque

from controller.observation import Observation
from controller.policy import PUBLISHED, Policy
from controller.setting import Setting
from solvers.solve import solve
from weir.plan import Plan

#: Seconds between plans.
PERIOD_S = 5
OVER_PROVISION = 1.2
#: ``pandas.ewm(com=2.1)`` over the last 20 samples.
ALPHA, SAMPLES = 1 / 3.1, 20
#: Cost of a GPU that breaks ties among optimal allocations; below any step of the threshold grid.
TIE_BREAK = 1e-6


class Ewm:
    """Moving average: ``pandas.Series.ewm(com=2.1, adjust=True).mean()`` of the last 20 samples; zeros are ignored."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)

    def observe(self, sample: float) -> None:
        if sample:
            self._samples.append(sample)

    @property
    def mean(self) -> float:
        weights = [(1 - ALPHA) ** i for i in range(len(self._samples))]
        newest_first = reversed(self._samples)
        return sum(w * s for w, s in zip(weights, newest_first, strict=True)) / sum(weights) if weights else 0.0


class DiffServe(Policy):
    """DiffServe's policy as published; see the module."""

    name = "diffserve"

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.rules = PUBLISHED
        self._demand, self._light, self._heavy = Ewm(), Ewm(), Ewm()
        self._light_queue, self._heavy_queue = Ewm(), Ewm()
        self._ticks = 0

    def first_plan(self) -> Plan:
        """Returns the plan without demand: half of the workers (one of them a sink) are light, batches have 8 images,
        and everything is deferred."""
        n = self.setting.replicas
        light = -(-(n + 1) // 2)
        return self.split(light, n - light, light_batch=8, heavy_batch=8, threshold=1.0)

    def observe(self, seen: Observation) -> Plan | None:
        in_flight = seen.in_flight + seen.late_answers
        self._demand.observe(OVER_PROVISION * in_flight)
        self._light.observe(in_flight)
        self._heavy.observe(seen.deferred_in_flight + seen.late_deferred)
        first, last = self.setting.variants[0], self.setting.last
        self._light_queue.observe(seen.queued.get(first, 0))
        self._heavy_queue.observe(seen.queued.get(last, 0))
        self._ticks += 1
        if self._ticks % PERIOD_S or not self._demand.mean:
            return None
        delays = [
            queue.mean / demand.mean if demand.mean else 0.0
            for queue, demand in ((self._light_queue, self._light), (self._heavy_queue, self._heavy))
        ]
        problem = self.setting.published(
            self._demand.mean, gpus=sum(seen.replicas), queue_delay_s=(delays[0], delays[1]), tie_break=TIE_BREAK
        )
        solution = solve(problem)
        self.account.solves(self._demand.mean, solution)
        if solution.shed_rps > 0:
            # The artifact's program is infeasible here and its control thread ends; the running plan stays.
            return None
        # The artifact gives every spare worker the heavy role.
        light = solution.count(first)
        return self.split(
            light,
            sum(seen.replicas) - light,
            light_batch=solution.batch_size(first) or 1,
            heavy_batch=solution.batch_size(last) or 1,
            threshold=solution.threshold,
            reason=f"{self._demand.mean:.1f} requests in flight; {solution.deferral:.0%} of the images are deferred",
        )
