"""What a policy knows before the first request: the hardware, the deadline, the profiled curves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.diffserve import published_problem
from solvers.problem import GpuType, Problem, ShortRun
from weir.core import DeferralCurve
from weir.profiles import Profile, deferral_of
from weir.prompt_levels import LevelHead


@dataclass(frozen=True, slots=True)
class QualityCurve:
    """Measured quality of a mix by its light share: values at equal steps from all heavy (0) to all light (1).

    ``smaller_is_better`` holds for distances such as FID.
    """

    values: tuple[float, ...]
    smaller_is_better: bool = True

    def at(self, light_share: float) -> float:
        """The measured value, linear between the points."""
        return float(np.interp(light_share, np.linspace(0, 1, len(self.values)), self.values))

    def reward(self, light_share: float) -> float:
        """The same with larger being better."""
        return -self.at(light_share) if self.smaller_is_better else self.at(light_share)


@dataclass(frozen=True, slots=True)
class LevelStats:
    """Prompts for which one level was predicted, as measured: their ``share`` of all, F(t) of their light images, and
    the quality of their mix on the scale of :attr:`Setting.quality`."""

    share: float
    deferral: DeferralCurve
    quality: QualityCurve


@dataclass(frozen=True, slots=True)
class Setting:
    """One cascade on one set of GPUs.

    Attributes:
        gpus: types and counts at the start; ranks run through them in order.
        deferral: profiled F(t), a prior that live confidences correct.
        quality: None when it was not measured; deferring more then counts as better.
        discriminator_s: seconds that judging adds to a light batch beyond its profile.
        stepwise: images join and leave at every step; otherwise a batch is drawn as one.
        resumed: measured quality of images that went on from a cached state, as a share of a whole run's. It says
            nothing of distances such as FID.
        short_runs: lengths of heavy runs from noise that a plan may choose, with what they save and lose.
        light: name of the light variant, for plans of a service that holds several; None where there is one.
        levels: prompts by predicted level, from level 0, the hardest; empty: they are not told apart.
    """

    gpus: tuple[GpuType, ...]
    slo_s: float
    deferral: DeferralCurve
    quality: QualityCurve | None = None
    discriminator_s: float = 0.0
    stepwise: bool = False
    resumed: float = 1.0
    short_runs: tuple[ShortRun, ...] = ()
    levels: tuple[LevelStats, ...] = ()
    light: str | None = None

    @classmethod
    def of(
        cls, profile: Profile, gpus: int, slo_s: float, levels: LevelHead | None = None, resumed: float = 1.0
    ) -> Setting:
        """The setting of a measured family; its light times hold the discriminator. With a level head its measured
        qualities count, for those of the profile may be on another scale."""
        gpu = GpuType(profile.device, gpus, profile.light.latency, profile.heavy.latency)
        measured = profile.quality
        quality = QualityCurve(measured.values, measured.smaller_is_better) if measured else None
        stats: tuple[LevelStats, ...] = ()
        if levels is not None:
            quality = QualityCurve(levels.about.quality, smaller_is_better=False)
            stats = tuple(
                LevelStats(record.share, deferral_of(record.confidences), QualityCurve(record.quality, False))
                for record in levels.about.records
            )
        return cls(
            gpus=(gpu,),
            slo_s=slo_s,
            deferral=profile.deferral(),
            quality=quality,
            stepwise=profile.stepwise,
            resumed=resumed,
            short_runs=_short_runs(profile, quality) if quality else (),
            levels=stats,
        )

    @property
    def resumed_reward(self) -> float:
        """What a resumed image is worth, larger being better, on the scale of the curve's rewards."""
        if self.quality is None:
            return 1.0
        return self.quality.reward(0) * (1.0 if self.quality.smaller_is_better else self.resumed)

    @property
    def replicas(self) -> int:
        return sum(g.count for g in self.gpus)

    def published(
        self,
        demand_rps: float,
        *,
        gpus: int | None = None,
        queue_delay_s: tuple[float, float] = (0.0, 0.0),
        tie_break: float = 0.0,
    ) -> Problem:
        """DiffServe's own problem for this cascade, all GPUs (or so many) of the first type; see there."""
        first = self.gpus[0]
        return published_problem(
            first.light,
            first.heavy,
            self.deferral,
            gpus=self.replicas if gpus is None else gpus,
            demand_rps=demand_rps,
            slo_s=self.slo_s,
            queue_delay_s=queue_delay_s,
            tie_break=tie_break,
        )


def _short_runs(profile: Profile, quality: QualityCurve) -> tuple[ShortRun, ...]:
    """What was measured of each length; what it loses, as a share, also holds on another scale of quality."""
    if profile.quality is None:
        return ()
    whole, worse = profile.quality.values[0], 1.0 if profile.quality.smaller_is_better else -1.0
    return tuple(
        ShortRun(steps, profile.heavy.work(steps), worse * (value / whole - 1) * quality.at(0))
        for steps, value in sorted(profile.quality.by_heavy_steps.items())
    )
