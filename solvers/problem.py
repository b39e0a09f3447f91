"""The allocation problem: demand, deadline, hardware and quality, all as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from weir.core import LatencyProfile
from weir.errors import PlanError
from weir.plan import HEAVY, LIGHT


@dataclass(frozen=True, slots=True)
class GpuType:
    """All replicas of one type of GPU, with the latencies of each variant on it.

    Attributes:
        count: number of live replicas.
        latencies: latency profile by variant key, in the order of the chain: from the fastest to the best.
        running: number of replicas by the variant that they serve now; None when nothing runs yet, so that no change
            has a cost.
    """

    name: str
    count: int
    latencies: Mapping[str, LatencyProfile]
    running: Mapping[str, int] | None = None

    @classmethod
    def pair(
        cls, name: str, count: int, light: LatencyProfile, heavy: LatencyProfile, running_light: int | None = None
    ) -> GpuType:
        """Builds a type of GPU for a ladder of two variants."""
        running = None if running_light is None else {LIGHT: running_light, HEAVY: count - running_light}
        return cls(name, count, {LIGHT: light, HEAVY: heavy}, running)

    @property
    def variants(self) -> tuple[str, ...]:
        """Keys of the variants, in the order of the chain."""
        return tuple(self.latencies)

    @property
    def light(self) -> LatencyProfile:
        """Latency profile of the first, fastest variant."""
        return self.latencies[self.variants[0]]

    @property
    def heavy(self) -> LatencyProfile:
        """Latency profile of the last, best variant."""
        return self.latencies[self.variants[-1]]

    def latency(self, variant: str) -> LatencyProfile:
        return self.latencies[variant]


@dataclass(frozen=True, slots=True)
class CacheHit:
    """Requests that resume the heavy variant at one level K of the cache.

    Attributes:
        share: h_K, share of all requests that hit at this level.
        work: w_K = 1 − K/N plus fixed costs, as a share of a full heavy run.
        quality: quality of these images, on the scale of :attr:`Problem.quality`.
    """

    share: float
    work: float
    quality: float


@dataclass(frozen=True, slots=True)
class ShortRun:
    """Heavy runs from noise of fewer steps than the variant's own.

    Attributes:
        steps: number of steps of the run.
        work: share of a full heavy run, fixed costs included.
        loss: loss of quality against a full run, on the scale of :attr:`Problem.quality`.
    """

    steps: int
    work: float
    loss: float


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """Cache misses with about the same predicted level.

    Attributes:
        share: share of all misses.
        deferral, quality: F_gj and Q_gj of these prompts, by threshold, when they begin light.
        heavy_quality: quality when they start at the heavy variant.
    """

    share: float
    deferral: tuple[float, ...]
    quality: tuple[float, ...]
    heavy_quality: float


@dataclass(frozen=True, slots=True)
class MiddleStage:
    """A variant between the first and the last of a chain, by point of the grid.

    Attributes:
        thresholds: thresholds of the judge after this variant.
        reached: share of cache misses that all judges before this variant defer, 0…1.
    """

    thresholds: tuple[float, ...]
    reached: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One instance of the allocation problem.

    In a chain of more than two variants a grid point has one threshold for each judge. Points are in the order of
    ``deferral``, and the first one defers least at every stage.

    Attributes:
        gpus: the hardware, one entry per type, all with the variants of the chain.
        demand_rps: λ, requests per second to plan for.
        slo_s: seconds from admission to answer.
        thresholds: the grid t_j of the first judge's thresholds, 0…1; ascending in a chain of two.
        deferral: F_j, share of cache misses that every judge defers (in a chain of two: those below t_j); not falling.
        quality: Q_j, quality of the mix at t_j; larger is better, any scale (the solver rescales it to 0…1).
        hits: cache hits; empty when there is no cache.
        direct_cuts: values of the cut that the plan may choose: hits that save at least this share of the steps start
            at the heavy variant, the others begin light. (0,) starts all of them at the heavy variant.
        may_run_whole: whether the plan may ignore the cache and run hits from noise as if they were misses.
        short_runs: lengths of heavy runs that the plan may choose instead of the whole one. Only runs from noise get
            shorter; a hit that would leave more steps than such a run runs from noise as well.
        groups: misses by predicted level, from the easiest to the hardest; the plan may start the hardest ones at the
            heavy variant. Empty when prompts are not distinguished; all of them then begin light.
        middle: the stages between the first and the last, in a chain of more than two.
        light_utilisation, middle_utilisation, heavy_utilisation: share of the profiled throughput that a plan may count
            on, > 0, for the first stage, the middle stages and the last stage. The last value may lie close to 1,
            because a full last stage costs quality and not deadlines.
        unbacked_utilisation: the same for heavy images of requests that start at the heavy variant: no light image can
            replace a late one, so their queue costs deadlines or an additional light image. None means
            ``heavy_utilisation``.
        fixed_s: seconds of every deferred request outside the two batches: discriminator, hops, measured queue delays.
        light_residual, heavy_residual: wait for a replica of the first stage and of the later ones, as a share of its
            batch latency (0: the published model).
        role_change_cost: quality (scale 0…1) that avoiding one role change is worth.
        gpu_cost: quality (scale 0…1) that leaving one GPU unneeded is worth; a small value breaks ties.
        one_batch_size: whether all replicas of a role run the same batch size, as in the published problem.
    """

    gpus: tuple[GpuType, ...]
    demand_rps: float
    slo_s: float
    thresholds: tuple[float, ...]
    deferral: tuple[float, ...]
    quality: tuple[float, ...]
    hits: tuple[CacheHit, ...] = ()
    direct_cuts: tuple[float, ...] = (0.0,)
    may_run_whole: bool = False
    short_runs: tuple[ShortRun, ...] = ()
    groups: tuple[PromptGroup, ...] = ()
    middle: tuple[MiddleStage, ...] = ()
    light_utilisation: float = 1.0
    middle_utilisation: float = 1.0
    heavy_utilisation: float = 1.0
    unbacked_utilisation: float | None = None
    fixed_s: float = 0.0
    light_residual: float = 0.0
    heavy_residual: float = 0.0
    role_change_cost: float = 0.0
    gpu_cost: float = 0.0
    one_batch_size: bool = False

    def __post_init__(self) -> None:
        self._check_grid()
        self._check_choices()
        self._check_groups()
        self._check_chain()
        self._check_costs()

    def _check_grid(self) -> None:
        _need(
            math.isfinite(self.demand_rps) and self.demand_rps >= 0,
            f"demand_rps is {self.demand_rps}; it must be finite and at least 0",
        )
        _need(math.isfinite(self.slo_s) and self.slo_s > 0, f"slo_s is {self.slo_s}; it must be above 0")
        _need(sum(g.count for g in self.gpus) > 0, "gpus is empty; a plan needs at least one replica")
        _need(all(g.count >= 0 for g in self.gpus), "gpus: a count is negative")
        _need(
            len(self.thresholds) == len(self.deferral) == len(self.quality) > 0,
            "thresholds, deferral and quality must have one entry for each grid point",
        )
        values = (*self.thresholds, *self.deferral, *self.quality)
        _need(all(math.isfinite(v) for v in values), "thresholds, deferral and quality must be finite")
        _need(len(self.variants) > 2 or list(self.thresholds) == sorted(self.thresholds), "thresholds must ascend")
        _need(list(self.deferral) == sorted(self.deferral), "deferral must not fall along the thresholds")
        _need(self.deferral[0] >= 0 and self.deferral[-1] <= 1, "deferral must lie in 0…1")

    def _check_choices(self) -> None:
        _need(
            all(h.share >= 0 and h.work >= 0 for h in self.hits) and self.hit_share <= 1,
            "hits: shares and work must be at least 0 and the shares add up to at most 1",
        )
        _need(
            len(self.direct_cuts) > 0 and all(0 <= cut <= 1 for cut in self.direct_cuts),
            f"direct_cuts is {self.direct_cuts}; give at least one share of steps, each 0…1",
        )
        _need(
            all(0 < run.work <= 1 and math.isfinite(run.loss) and run.steps >= 1 for run in self.short_runs),
            "short_runs: work must lie above 0 and at most at 1, steps must be at least 1 and losses finite",
        )

    def _check_groups(self) -> None:
        for i, group in enumerate(self.groups):
            grid = len(self.thresholds)
            _need(
                len(group.deferral) == len(group.quality) == grid,
                f"groups[{i}]: deferral and quality must have one entry for each grid point",
            )
            _need(
                all(map(math.isfinite, (group.share, *group.deferral, *group.quality, group.heavy_quality))),
                f"groups[{i}]: every number must be finite",
            )
            _need(
                list(group.deferral) == sorted(group.deferral) and group.deferral[0] >= 0 and group.deferral[-1] <= 1,
                f"groups[{i}]: deferral must lie in 0…1 and not fall along the thresholds",
            )
            _need(group.share >= 0, f"groups[{i}]: share is {group.share}; it must be at least 0")
        total = sum(group.share for group in self.groups)
        _need(not self.groups or abs(total - 1) < 1e-6, f"groups: shares add up to {total:g}; they must add up to 1")

    def _check_chain(self) -> None:
        stages = len(self.variants)
        _need(stages >= 2, f"gpus: {self.gpus[0].name}: a chain has at least two variants")
        _need(
            all(gpu.variants == self.variants for gpu in self.gpus),
            f"gpus: every type must have the variants {', '.join(self.variants)}, in this order",
        )
        _need(len(self.middle) == stages - 2, f"middle has {len(self.middle)} stages for a chain of {stages} variants")
        _need(not (self.middle and self.groups), "groups: prompts are distinguished in a chain of two variants only")
        before: tuple[float, ...] = (1.0,) * len(self.deferral)
        for i, stage in enumerate(self.middle):
            _need(
                len(stage.thresholds) == len(stage.reached) == len(self.deferral),
                f"middle[{i}]: thresholds and reached must have one entry for each grid point",
            )
            _need(
                all(0 <= share <= most for share, most in zip(stage.reached, before, strict=True)),
                f"middle[{i}]: reached must lie in 0…1 and must not exceed the share that reaches the stage before",
            )
            _need(stage.reached[0] == min(stage.reached), f"middle[{i}]: the first grid point must defer least")
            before = stage.reached
        _need(
            not self.middle or all(share <= most for share, most in zip(self.deferral, before, strict=True)),
            "deferral must not exceed the share that reaches the last middle stage",
        )

    def _check_costs(self) -> None:
        _need(
            min(self.light_utilisation, self.middle_utilisation, self.heavy_utilisation, self.unbacked_weight) > 0,
            "light_utilisation, middle_utilisation, heavy_utilisation and unbacked_utilisation must be above 0",
        )
        _need(
            min(self.fixed_s, self.light_residual, self.heavy_residual, self.role_change_cost, self.gpu_cost) >= 0,
            "fixed_s, residuals and costs must be at least 0",
        )
        for gpu in self.gpus:
            for variant in self.variants:
                seconds = gpu.latency(variant).latency_s
                _need(
                    len(seconds) > 0 and all(math.isfinite(s) and s > 0 for s in seconds),
                    f"gpus: {gpu.name}: the {variant} latencies must be positive seconds",
                )

    @property
    def variants(self) -> tuple[str, ...]:
        """The chain, from the fastest variant to the best."""
        return self.gpus[0].variants

    @property
    def hit_share(self) -> float:
        """H = Σ h_K, share of the requests that hit the cache."""
        return sum(h.share for h in self.hits)

    @property
    def unbacked_weight(self) -> float:
        """Weight of an image that starts at the heavy variant, relative to a deferred one, which has a light image to
        fall back on."""
        unbacked = self.heavy_utilisation if self.unbacked_utilisation is None else self.unbacked_utilisation
        return self.heavy_utilisation / unbacked if unbacked > 0 else 0.0

    def utilisation(self, variant: str) -> float:
        ends = {self.variants[0]: self.light_utilisation, self.variants[-1]: self.heavy_utilisation}
        return ends.get(variant, self.middle_utilisation)

    def residual(self, variant: str) -> float:
        return self.light_residual if variant == self.variants[0] else self.heavy_residual

    def thresholds_at(self, j: int) -> tuple[float, ...]:
        """Returns the thresholds of grid point ``j``, one for each judge."""
        return (self.thresholds[j], *(stage.thresholds[j] for stage in self.middle))


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise PlanError(message)
