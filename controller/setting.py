"""The setting of a policy: the hardware, the deadline and the profiled curves, known before the first request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from controller.service_ladder import StoredStates, service_ladder
from solvers.diffserve import published_problem
from solvers.problem import GpuType, Problem, ShortRun
from weir.approximation_levels import Ladder
from weir.core import DeferralCurve
from weir.errors import ConfigError
from weir.plan import HEAVY
from weir.profiles import Profile, QualityProfile, deferral_of
from weir.prompt_levels import LevelHead


@dataclass(frozen=True, slots=True)
class QualityCurve:
    """Measured quality of a mix by its light share.

    Attributes:
        values: qualities at equal steps of the light share, from all heavy (0) to all light (1).
        smaller_is_better: True for distances such as FID.
    """

    values: tuple[float, ...]
    smaller_is_better: bool = True

    def at(self, light_share: float) -> float:
        """Returns the quality at a light share, interpolated linearly."""
        return float(np.interp(light_share, np.linspace(0, 1, len(self.values)), self.values))

    def reward(self, light_share: float) -> float:
        """Returns the quality at a light share on a scale where larger is better."""
        return -self.at(light_share) if self.smaller_is_better else self.at(light_share)


@dataclass(frozen=True, slots=True)
class LevelStats:
    """Measured statistics of the prompts with one predicted level.

    Attributes:
        share: share of all prompts.
        deferral: F(t) of their light images.
        quality: quality of their mix, on the scale of :attr:`Setting.quality`.
    """

    share: float
    deferral: DeferralCurve
    quality: QualityCurve


@dataclass(frozen=True, slots=True)
class JudgedVariant:
    """Measurements of a variant of the ladder that is followed by a judge.

    Attributes:
        deferral: F(t) of its images.
        quality: quality of mixes of this variant with the last one; None when it was not measured.
        confidences: confidences of single images, with the prompts in the same order for every variant; empty when they
            were not measured.
    """

    deferral: DeferralCurve
    quality: QualityCurve | None = None
    confidences: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """One ladder of variants on one set of GPUs, with all its measurements.

    Attributes:
        gpus: types and counts at the start, with the latencies of every variant; ranks run through them in order.
        deferral, quality, confidences: measurements of the first variant, see :class:`JudgedVariant`. Without a
            measured quality, deferring more counts as better.
        discriminator_s: seconds that judging adds to a batch of the first variant beyond its profile.
        stepwise: whether images join and leave at every step; otherwise a batch runs as a whole.
        resumed: measured quality of images that resumed from a cached state, as a share of a whole run's. It does not
            apply to distances such as FID.
        short_runs: lengths of the last variant's runs from noise that a plan may choose, with their work and loss.
        levels: statistics of the prompts by predicted level, from level 0, the hardest; empty when prompts are not
            distinguished.
        middle: the variants between the first and the last, by key.
        ladder: approximation levels for policies that assign them; None when their quality is unknown. The variants of
            its levels are keys.
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
    confidences: tuple[float, ...] = ()
    middle: Mapping[str, JudgedVariant] = field(default_factory=dict)
    ladder: Ladder | None = None

    @classmethod
    def of(
        cls,
        profile: Profile,
        gpus: int,
        slo_s: float,
        levels: LevelHead | None = None,
        resumed: float = 1.0,
        states: StoredStates | None = None,
    ) -> Setting:
        """Builds the setting of a profiled family, whose latencies of judged variants include the discriminator.

        Args:
            levels: level head; its measured qualities replace those of the profile, which may be on another scale.
            resumed: see the class.
            states: states of the cache; None without a cache, or when they were not measured.
        """
        first, *middle = profile.keys[:-1]
        gpu = GpuType(profile.device, gpus, {key: profile.variant(key).latency for key in profile.keys})
        quality = _curve(profile.variant(first).quality)
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
            deferral=profile.deferral(first),
            quality=quality,
            stepwise=profile.stepwise,
            resumed=resumed,
            short_runs=_short_runs(profile, quality) if quality else (),
            levels=stats,
            confidences=profile.variant(first).confidences,
            middle={
                key: JudgedVariant(
                    profile.deferral(key), _curve(profile.variant(key).quality), profile.variant(key).confidences
                )
                for key in middle
            },
            ladder=service_ladder(profile, slo_s, states, levels.about.records if levels else ()),
        )

    @classmethod
    def of_ladder(cls, ladder: Ladder, gpus: int, slo_s: float) -> Setting:
        """Builds the setting of a published ladder, which has levels but no cascade and no measurements of a judge.

        Raises:
            ConfigError: names the argument that is out of range.
        """
        if gpus < 1:
            raise ConfigError(f"gpus is {gpus}; it must be at least 1")
        if not 0 < slo_s < 3600:
            raise ConfigError(f"slo is {slo_s}; it must lie in 0…3600 s")
        smaller = sorted((level for level in ladder.levels if level.variant), key=lambda level: level.latency_s[0])
        latencies = {level.variant: level.latency for level in smaller} | {HEAVY: ladder.levels[0].latency}
        return cls(
            gpus=(GpuType(ladder.device, gpus, latencies),),
            slo_s=slo_s,
            deferral=DeferralCurve((0.0, 1.0), (0.0, 1.0)),
            ladder=ladder,
        )

    @property
    def variants(self) -> tuple[str, ...]:
        """Keys of the ladder, from the fastest variant to the best."""
        return self.gpus[0].variants

    @property
    def last(self) -> str:
        """Key of the best variant."""
        return self.variants[-1]

    def chain(self, variants: Sequence[str]) -> Setting:
        """Returns the setting of a chain of these variants, which are in the order of the ladder and end in its last
        one.

        The predicted levels were fitted on the first and the last variant, so other chains have no levels.
        """
        first = variants[0]
        whole = tuple(variants) == self.variants
        found = replace(
            self,
            gpus=tuple(
                replace(gpu, latencies={variant: gpu.latency(variant) for variant in variants}) for gpu in self.gpus
            ),
            middle={variant: self.middle[variant] for variant in variants[1:-1]},
            levels=self.levels if whole and len(variants) == 2 else (),
        )
        if first == self.variants[0]:
            return found
        own = self.middle[first]
        return replace(found, deferral=own.deferral, quality=own.quality, confidences=own.confidences)

    @property
    def resumed_reward(self) -> float:
        """Quality of a resumed image on the scale of :meth:`QualityCurve.reward`; larger is better."""
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
        """Builds DiffServe's problem (:func:`~solvers.diffserve.published_problem`) for the first and the last variant,
        with all GPUs (or ``gpus`` of them) of the first type."""
        first = self.gpus[0]
        count, latencies = (
            self.replicas if gpus is None else gpus,
            {self.variants[0]: first.light, self.last: first.heavy},
        )
        return published_problem(
            GpuType("gpu", count, latencies),
            self.deferral,
            demand_rps=demand_rps,
            slo_s=self.slo_s,
            queue_delay_s=queue_delay_s,
            tie_break=tie_break,
        )


def _curve(measured: QualityProfile | None) -> QualityCurve | None:
    return QualityCurve(measured.values, measured.smaller_is_better) if measured else None


def _short_runs(profile: Profile, quality: QualityCurve) -> tuple[ShortRun, ...]:
    """Returns the measured short runs. Their losses are relative, so they apply to another scale of quality as well."""
    if profile.quality is None:
        return ()
    whole, worse = profile.quality.values[0], 1.0 if profile.quality.smaller_is_better else -1.0
    return tuple(
        ShortRun(steps, profile.heavy.work(steps), worse * (value / whole - 1) * quality.at(0))
        for steps, value in sorted(profile.quality.by_heavy_steps.items())
    )
