"""The allocation problem: what the solver is told of time, hardware and quality, all as numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weir.core import LatencyProfile
from weir.errors import PlanError
from weir.plan import HEAVY, LIGHT


@dataclass(frozen=True, slots=True)
class GpuType:
    """All replicas of one type of GPU, with what each variant costs on it.

    Attributes:
        count: live replicas.
        latencies: by key of the variant, in the order of the chain: from the fastest to the best.
        running: replicas by key of the variant that they serve now; None when nothing runs yet (no change costs
            anything).
    """

    name: str
    count: int
    latencies: Mapping[str, LatencyProfile]
    running: Mapping[str, int] | None = None

    @classmethod
    def pair(
        cls, name: str, count: int, light: LatencyProfile, heavy: LatencyProfile, running_light: int | None = None
    ) -> GpuType:
        """A type of GPU for a ladder of two."""
        running = None if running_light is None else {LIGHT: running_light, HEAVY: count - running_light}
        return cls(name, count, {LIGHT: light, HEAVY: heavy}, running)

    @property
    def variants(self) -> tuple[str, ...]:
        """Keys of the variants, in order."""
        return tuple(self.latencies)

    @property
    def light(self) -> LatencyProfile:
        """The first variant's, the fastest."""
        return self.latencies[self.variants[0]]

    @property
    def heavy(self) -> LatencyProfile:
        """The last variant's, the best."""
        return self.latencies[self.variants[-1]]

    def latency(self, variant: str) -> LatencyProfile:
        return self.latencies[variant]


@dataclass(frozen=True, slots=True)
class CacheHit:
    """Requests that resume the heavy variant at one level K of the cache.

    Attributes:
        share: h_K, share of all requests that hit at this level.
        work: w_K = 1 − K/N plus fixed costs, as a share of a full heavy run.
        quality: of these images, on the scale of :attr:`Problem.quality`.
    """

    share: float
    work: float
    quality: float


@dataclass(frozen=True, slots=True)
class ShortRun:
    """Heavy runs from noise of fewer steps than the variant's own.

    Attributes:
        steps: that run.
        work: as a share of a full heavy run, fixed costs included.
        loss: quality that an image is worth less than one of a full run, on the scale of :attr:`Problem.quality`.
    """

    steps: int
    work: float
    loss: float


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """Cache misses for which about the same level was predicted.

    Attributes:
        share: of all misses.
        deferral, quality: F_gj and Q_gj of these prompts, by threshold, when they begin light.
        heavy_quality: when they go to the heavy variant at once.
    """

    share: float
    deferral: tuple[float, ...]
    quality: tuple[float, ...]
    heavy_quality: float


@dataclass(frozen=True, slots=True)
class MiddleStage:
    """A variant between the first and the last of a chain, by point of the grid.

    Attributes:
        thresholds: of the judge behind it.
        reached: share of cache misses that the judges before it defer, 0…1.
    """

    thresholds: tuple[float, ...]
    reached: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One instance of the allocation problem.

    In a chain of more than two variants a point of the grid is one threshold for each judge. Points are in the order of
    ``deferral``, and the first one defers least at every stage.

    Attributes:
        gpus: the hardware, one entry a type, all with the variants of the chain.
        demand_rps: λ, requests per second to plan for.
        slo_s: seconds from admission to answer.
        thresholds: the grid t_j of the first judge's thresholds, 0…1; ascending in a chain of two.
        deferral: F_j, share of cache misses that every judge defers: in a chain of two those below t_j; not falling.
        quality: Q_j, quality of the mix at t_j; larger is better, any scale (the solver rescales it to 0…1).
        hits: cache hits; empty when there is no cache.
        direct_cuts: the plan chooses one: hits that save at least this share of the steps go to the heavy variant at
            once, the others begin light. (0,): all of them at once.
        may_run_whole: the plan may leave the cache alone instead, and run hits from noise as if they were misses.
        short_runs: lengths of heavy runs that the plan may choose instead of the whole one. Only runs from
            noise get shorter; a hit that would leave more steps than that runs from noise too.
        groups: misses by predicted level, from the easiest to the hardest; the plan may send the hardest ones to the
            heavy variant at once. Empty: prompts are not told apart, and all begin light.
        middle: of a chain of more than two, the stages between the first and the last.
        light_utilisation, middle_utilisation, heavy_utilisation: share of the profiled throughput that a plan may count
            on, > 0, of the first stage, of those between and of the last one. The last one's may lie close to 1,
            because a last stage that is full costs quality and not deadlines.
        unbacked_utilisation: the same for heavy images of requests that begin heavy: no light image stands in for one
            that is late, so their queue costs deadlines or a light image more. None: the heavy one.
        fixed_s: seconds of every deferred request outside the two batches: discriminator, hops, measured queue delays.
        light_residual, heavy_residual: wait for a replica of the first stage and of the others, as a share of its batch
            latency (0: the published model).
        role_change_cost: quality (on the scale 0…1) worth giving up to spare one replica a change of role.
        gpu_cost: quality (on the scale 0…1) worth giving up to leave one GPU unneeded; breaks ties when small.
        one_batch_size: all replicas of a role run the same batch size, as in the published problem.
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
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise PlanError(message)

        need(
            math.isfinite(self.demand_rps) and self.demand_rps >= 0,
            f"demand_rps is {self.demand_rps}; it must be finite and at least 0",
        )
        need(math.isfinite(self.slo_s) and self.slo_s > 0, f"slo_s is {self.slo_s}; it must be above 0")
        need(sum(g.count for g in self.gpus) > 0, "gpus is empty; a plan needs at least one replica")
        need(all(g.count >= 0 for g in self.gpus), "gpus: a count is negative")
        need(
            len(self.thresholds) == len(self.deferral) == len(self.quality) > 0,
            "thresholds, deferral and quality must have one entry for each grid point",
        )
        values = (*self.thresholds, *self.deferral, *self.quality)
        need(all(math.isfinite(v) for v in values), "thresholds, deferral and quality must be finite")
        need(len(self.variants) > 2 or list(self.thresholds) == sorted(self.thresholds), "thresholds must ascend")
        need(list(self.deferral) == sorted(self.deferral), "deferral must not fall along the thresholds")
        need(self.deferral[0] >= 0 and self.deferral[-1] <= 1, "deferral must lie in 0…1")
        need(
            all(h.share >= 0 and h.work >= 0 for h in self.hits) and self.hit_share <= 1,
            "hits: shares and work must be at least 0 and the shares add up to at most 1",
        )
        need(
            len(self.direct_cuts) > 0 and all(0 <= cut <= 1 for cut in self.direct_cuts),
            f"direct_cuts is {self.direct_cuts}; give at least one share of steps, each 0…1",
        )
        need(
            all(0 < run.work <= 1 and math.isfinite(run.loss) and run.steps >= 1 for run in self.short_runs),
            "short_runs: work must lie above 0 and at most at 1, steps must be at least 1 and losses finite",
        )
        for i, group in enumerate(self.groups):
            grid = len(self.thresholds)
            need(
                len(group.deferral) == len(group.quality) == grid,
                f"groups[{i}]: deferral and quality must have one entry for each grid point",
            )
            need(
                all(map(math.isfinite, (group.share, *group.deferral, *group.quality, group.heavy_quality))),
                f"groups[{i}]: every number must be finite",
            )
            need(
                list(group.deferral) == sorted(group.deferral) and group.deferral[0] >= 0 and group.deferral[-1] <= 1,
                f"groups[{i}]: deferral must lie in 0…1 and not fall along the thresholds",
            )
            need(group.share >= 0, f"groups[{i}]: share is {group.share}; it must be at least 0")
        self._check_chain(need)
        total = sum(group.share for group in self.groups)
        need(not self.groups or abs(total - 1) < 1e-6, f"groups: shares add up to {total:g}; they have to add up to 1")
        need(
            min(self.light_utilisation, self.middle_utilisation, self.heavy_utilisation, self.unbacked_weight) > 0,
            "light_utilisation, middle_utilisation, heavy_utilisation and unbacked_utilisation must be above 0",
        )
        need(
            min(self.fixed_s, self.light_residual, self.heavy_residual, self.role_change_cost, self.gpu_cost) >= 0,
            "fixed_s, residuals and costs must be at least 0",
        )
        for gpu in self.gpus:
            for variant in self.variants:
                seconds = gpu.latency(variant).latency_s
                need(
                    len(seconds) > 0 and all(math.isfinite(s) and s > 0 for s in seconds),
                    f"gpus: {gpu.name}: the {variant} latencies must be positive seconds",
                )

    def _check_chain(self, need: Callable[[bool, str], None]) -> None:
        stages = len(self.variants)
        need(stages >= 2, f"gpus: {self.gpus[0].name}: a chain has at least two variants")
        need(
            all(gpu.variants == self.variants for gpu in self.gpus),
            f"gpus: every type must have the variants {', '.join(self.variants)}, in this order",
        )
        need(len(self.middle) == stages - 2, f"middle has {len(self.middle)} stages for a chain of {stages} variants")
        need(not (self.middle and self.groups), "groups: prompts are told apart in a chain of two variants only")
        before: tuple[float, ...] = (1.0,) * len(self.deferral)
        for i, stage in enumerate(self.middle):
            need(
                len(stage.thresholds) == len(stage.reached) == len(self.deferral),
                f"middle[{i}]: thresholds and reached must have one entry for each grid point",
            )
            need(
                all(0 <= share <= most for share, most in zip(stage.reached, before, strict=True)),
                f"middle[{i}]: reached must lie in 0…1 and must not exceed what reaches the stage before",
            )
            need(stage.reached[0] == min(stage.reached), f"middle[{i}]: the first grid point must defer least")
            before = stage.reached
        need(
            not self.middle or all(share <= most for share, most in zip(self.deferral, before, strict=True)),
            "deferral must not exceed what reaches the last middle stage",
        )

    @property
    def variants(self) -> tuple[str, ...]:
        """The chain, from the fastest variant to the best."""
        return self.gpus[0].variants

    @property
    def hit_share(self) -> float:
        """H = Σ h_K."""
        return sum(h.share for h in self.hits)

    @property
    def unbacked_weight(self) -> float:
        """What a heavy image that begins heavy weighs beside one with a light image behind it."""
        unbacked = self.heavy_utilisation if self.unbacked_utilisation is None else self.unbacked_utilisation
        return self.heavy_utilisation / unbacked if unbacked > 0 else 0.0

    def utilisation(self, variant: str) -> float:
        ends = {self.variants[0]: self.light_utilisation, self.variants[-1]: self.heavy_utilisation}
        return ends.get(variant, self.middle_utilisation)

    def residual(self, variant: str) -> float:
        return self.light_residual if variant == self.variants[0] else self.heavy_residual

    def thresholds_at(self, j: int) -> tuple[float, ...]:
        """Of a point of the grid, one for each judge."""
        return (self.thresholds[j], *(stage.thresholds[j] for stage in self.middle))
