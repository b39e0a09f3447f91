"""Simulation of several light variants with one heavy variant: each pair alone, and a ladder of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np

from controller.batch_size import best_batch
from controller.policies.weir import Weir
from controller.registry import make_policy
from controller.setting import JudgedVariant, Setting
from simulator.arrivals import Arrivals
from simulator.conditions import Conditions
from simulator.confidences import sample_confidences
from simulator.engine import simulate
from simulator.families import FAMILIES, family_setting
from simulator.fluid import WINDOW_S
from simulator.outcome import Outcome
from simulator.request_stream import RequestStream
from solvers.cascades import SAME_SHARE, Variant, chains, chosen_chain
from solvers.problem import GpuType
from weir.core import LatencyProfile
from weir.errors import ConfigError
from weir.profiles import load_profile

#: Two measured qualities of one model are on the same scale when they differ by less than this share.
SAME_SCALE = 0.05
#: Upper limit of the demands that are tried.
MOST_RPS = 1e5


@dataclass(frozen=True)
class Cascade:
    """A pair of a light and a heavy variant with its measurements."""

    light: str
    heavy: str
    setting: Setting


@dataclass(frozen=True, slots=True)
class PairsReport:
    """Figures of one run.

    Attributes:
        pair: the light variant; "chosen by the plan" for the ladder of all variants.
        quality: mean over windows of 30 s, by the measured curve of each light variant.
        shares: share of the answers by variant.
        changes: number of changes of the chain in use.
    """

    pair: str
    violation_ratio: float
    goodput_rps: float
    quality: float
    shares: dict[str, float]
    changes: int

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def read_cascades(families: Sequence[str], gpus: int, slo_s: float | None = None) -> list[Cascade]:
    """Reads cascades that end in the same heavy variant.

    Args:
        families: names of published families, or profile files.

    Raises:
        ConfigError: a family does not fit; the message names it and the reason.
    """
    if not 1 <= len(families) <= 5:
        raise ConfigError(f"{len(families)} families; give one to five, each a light variant before the same heavy one")
    found: list[Cascade] = []
    for name in families:
        setting = family_setting(name, gpus, slo_s)
        if setting.quality is None:
            raise ConfigError(f"{name}: the quality was not measured; `weir calibrate --profile` measures it")
        light, heavy = _names(name)
        if found:
            first = found[0]
            ours, theirs = first.setting.quality, setting.quality
            assert ours is not None  # checked when the first family was read
            if heavy != first.heavy:
                raise ConfigError(f"{name}: its heavy variant is {heavy}; that of {families[0]} is {first.heavy}")
            if abs(ours.at(0.0) - theirs.at(0.0)) > SAME_SCALE * abs(ours.at(0.0)):
                raise ConfigError(
                    f"{name}: {heavy} alone has quality {theirs.at(0.0):g} here and {ours.at(0.0):g} in {families[0]}; "
                    "measure both on the same prompts"
                )
        found.append(Cascade(light, heavy, setting))
    if len({cascade.light for cascade in found}) < len(found):
        raise ConfigError(f"two families have the light variant {found[-1].light}; give each light variant once")
    return found


def _names(family: str) -> tuple[str, str]:
    if family in FAMILIES:
        known = FAMILIES[family]
        return known.models
    profile = load_profile(family)
    return profile.light.name, profile.heavy.name


def built(cascades: Sequence[Cascade]) -> tuple[tuple[Variant, ...], ...]:
    """Returns the pairs on the Pareto front of quality and cost, among all variants of the cascades."""
    variants: dict[str, Variant] = {}
    for cascade in cascades:
        gpu, quality, slo_s = cascade.setting.gpus[0], cascade.setting.quality, cascade.setting.slo_s
        assert quality is not None
        for name, latency, limit_s, share in (
            (cascade.light, gpu.light, slo_s / 2, 1.0),
            (cascade.heavy, gpu.heavy, slo_s, 0.0),
        ):
            batch = best_batch(latency, limit_s)
            variants.setdefault(name, Variant(name, latency.at(batch) / batch, quality.reward(share)))
    return chains(tuple(variants.values()))


def usable(cascades: Sequence[Cascade]) -> list[Cascade]:
    """Returns the cascades whose pair is on the front."""
    pairs = {(chain[0].name, chain[-1].name) for chain in built(cascades)}
    return [cascade for cascade in cascades if (cascade.light, cascade.heavy) in pairs]


def best_by_demand(cascades: Sequence[Cascade]) -> list[dict[str, object]]:
    """Returns the best pair, its served share and its quality for demands that double until no pair serves all of
    it."""
    members = [Weir(cascade.setting) for cascade in cascades]
    counts = tuple(gpu.count for gpu in cascades[0].setting.gpus)
    quality = cascades[0].setting.quality
    assert quality is not None
    rows: list[dict[str, object]] = []
    demand = 1.0
    while demand < MOST_RPS:
        best = chosen_chain([member.problem(demand, counts) for member in members])
        value = -best.quality if quality.smaller_is_better else best.quality
        light = cascades[best.chain].light
        rows.append({"demand_rps": demand, "light": light, "served": float(best.served), "quality": float(value)})
        if best.served < 1 - SAME_SHARE:
            break
        demand *= 2
    return rows


def run_pairs(cascades: Sequence[Cascade], arrivals: Arrivals, seed: int = 0) -> list[PairsReport]:
    """Simulates each pair alone and all of them together, on the same arrivals with the same random numbers for the
    confidences."""
    alone = [_run([cascade], arrivals, seed, cascade.light) for cascade in cascades]
    return [*alone, _run(cascades, arrivals, seed, "chosen by the plan")] if len(cascades) > 1 else alone


def ladder_setting(cascades: Sequence[Cascade]) -> Setting:
    """Builds the setting of a ladder of all light variants, the fastest first, and the heavy one."""
    ordered = sorted(cascades, key=lambda it: it.setting.gpus[0].light.at(1))
    first = ordered[0].setting
    gpu = first.gpus[0]
    latencies = {ordered[0].light: gpu.light}
    for it in ordered[1:]:
        own = it.setting.gpus[0].light
        # The time of the discriminator is a separate term for the first variant only.
        judged_s = tuple(seconds + it.setting.discriminator_s for seconds in own.latency_s)
        latencies[it.light] = LatencyProfile(own.batch_sizes, judged_s)
    latencies[ordered[0].heavy] = gpu.heavy
    return replace(
        first,
        gpus=(GpuType(gpu.name, gpu.count, latencies),),
        middle={
            it.light: JudgedVariant(it.setting.deferral, it.setting.quality, it.setting.confidences)
            for it in ordered[1:]
        },
        levels=(),
        ladder=None,
    )


def _run(cascades: Sequence[Cascade], arrivals: Arrivals, seed: int, name: str) -> PairsReport:
    setting = ladder_setting(cascades)
    confidences = {it.light: sample_confidences(it.setting.deferral, len(arrivals), seed) for it in cascades}
    requests, conditions = RequestStream(arrivals, confidences), Conditions(seed=seed)
    outcome = simulate(make_policy("weir", setting), requests, conditions=conditions)
    chains_in_use = [plan.chain for plan in outcome.plans]
    answers = max(1, int(outcome.answered.sum()))
    return PairsReport(
        pair=name,
        violation_ratio=float(outcome.violated.mean()),
        goodput_rps=float((~outcome.violated).sum() / max(1.0, float(arrivals.times_s[-1] - arrivals.times_s[0]))),
        quality=_quality(outcome, cascades),
        shares={variant: float(outcome.by(variant).sum() / answers) for variant in outcome.ladder},
        changes=sum(a != b for a, b in pairwise(chains_in_use)),
    )


def _quality(outcome: Outcome, cascades: Sequence[Cascade]) -> float:
    """Returns the mean quality over windows at the light share of each window. Several light variants are weighted by
    their shares."""
    window = (outcome.arrivals_s // WINDOW_S).astype(int)
    answers = np.bincount(window, outcome.answered)
    light = np.bincount(window, outcome.light, len(answers))
    found = np.zeros(len(answers))
    for it in cascades:
        curve = it.setting.quality
        assert curve is not None  # checked by read_cascades
        mine = np.bincount(window, outcome.by(it.light), len(answers))
        weights = np.divide(mine, light, out=np.full(len(light), 1 / len(cascades)), where=light > 0)
        found += weights * np.array([curve.at(share) for share in light / np.maximum(1, answers)])
    return float(np.mean(found[answers > 0]))
