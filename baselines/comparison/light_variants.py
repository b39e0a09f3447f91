"""Cascades of several light variants in the twin: each pair alone, and the pair in use as the load changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from controller.policies.light_variants import WeirPairs
from controller.policies.weir import Weir
from controller.policy import best_batch
from controller.setting import Setting
from simulator.arrivals import Arrivals
from simulator.confidences import drawn
from simulator.engine import Simulation
from simulator.families import FAMILIES, family_setting
from simulator.fluid import WINDOW_S
from simulator.outcome import UNANSWERED
from solvers.cascades import SAME_SHARE, Variant, chains, chosen_pair
from weir.errors import ConfigError
from weir.profiles import load_profile

#: Qualities of one model in two measurements that differ by less, as a share, are of one scale.
SAME_SCALE = 0.05
#: Beyond any service's demand.
MOST_RPS = 1e5


@dataclass(frozen=True)
class Cascade:
    """One light variant before the heavy one, as measured."""

    light: str
    heavy: str
    setting: Setting


@dataclass(frozen=True, slots=True)
class PairsReport:
    """One run.

    Attributes:
        pair: its light variant; "chosen by the plan" where that changes.
        quality: mean over windows of 30 s, by the measured curve of the pair that drew.
        shares: of the answers, by light variant of the pair in use.
        changes: of the pair in use.
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
    """Cascades that end in one heavy variant.

    Args:
        families: names of published families, or profile files.

    Raises:
        ConfigError: names the family and what does not fit.
    """
    if not 1 <= len(families) <= 5:
        raise ConfigError(f"{len(families)} families; give one to five, each a light variant before the same heavy one")
    found: list[Cascade] = []
    for name in families:
        setting = family_setting(name, gpus, slo_s)
        if setting.quality is None:
            raise ConfigError(f"{name}: it says nothing of quality; `weir calibrate --profile` measures it")
        light, heavy = _names(name)
        if found:
            first = found[0]
            ours, theirs = first.setting.quality, setting.quality
            assert ours is not None  # the first was checked
            if heavy != first.heavy:
                raise ConfigError(f"{name}: its heavy variant is {heavy}, and that of {families[0]} {first.heavy}")
            if abs(ours.at(0.0) - theirs.at(0.0)) > SAME_SCALE * abs(ours.at(0.0)):
                raise ConfigError(
                    f"{name}: {heavy} alone has quality {theirs.at(0.0):g} there and {ours.at(0.0):g} in "
                    f"{families[0]}: measure both on the same prompts"
                )
        found.append(Cascade(light, heavy, setting))
    if len({cascade.light for cascade in found}) < len(found):
        raise ConfigError(f"two families have the light variant {found[-1].light}; give each once")
    return found


def _names(family: str) -> tuple[str, str]:
    if family in FAMILIES:
        known = FAMILIES[family]
        return known.models
    profile = load_profile(family)
    return profile.light.name, profile.heavy.name


def built(cascades: Sequence[Cascade]) -> tuple[tuple[Variant, ...], ...]:
    """The pairs on the Pareto front of quality and cost, of all variants that the cascades list."""
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
    """Those whose pair is on the front."""
    pairs = {(chain[0].name, chain[-1].name) for chain in built(cascades)}
    return [cascade for cascade in cascades if (cascade.light, cascade.heavy) in pairs]


def best_by_demand(cascades: Sequence[Cascade]) -> list[dict[str, object]]:
    """For demands that double up to the first that no pair serves: the pair, the share that it serves, its quality."""
    members = [Weir(cascade.setting) for cascade in cascades]
    counts = tuple(gpu.count for gpu in cascades[0].setting.gpus)
    quality = cascades[0].setting.quality
    assert quality is not None
    rows: list[dict[str, object]] = []
    demand = 1.0
    while demand < MOST_RPS:
        best = chosen_pair([member.problem(demand, counts) for member in members])
        value = -best.quality if quality.smaller_is_better else best.quality
        light = cascades[best.pair].light
        rows.append({"demand_rps": demand, "light": light, "served": float(best.served), "quality": float(value)})
        if best.served < 1 - SAME_SHARE:
            break
        demand *= 2
    return rows


def run_pairs(cascades: Sequence[Cascade], arrivals: Arrivals, seed: int = 0) -> list[PairsReport]:
    """Each pair alone, and all of them together; the same arrivals, and the same chance in every pair's confidences."""
    alone = [_run([cascade], arrivals, seed, cascade.light) for cascade in cascades]
    return [*alone, _run(cascades, arrivals, seed, "chosen by the plan")] if len(cascades) > 1 else alone


def _run(cascades: Sequence[Cascade], arrivals: Arrivals, seed: int, name: str) -> PairsReport:
    settings = [cascade.setting for cascade in cascades]
    confidences = np.stack([drawn(setting.deferral, len(arrivals), seed) for setting in settings])
    policy = WeirPairs(settings)
    run = Simulation(policy, arrivals, confidences[0], pairs=confidences)
    outcome = run.run()
    answered, pair = outcome.paths != UNANSWERED, np.array(run.drawn_by)
    window = (arrivals.times_s // WINDOW_S).astype(int)
    worth = np.full(len(arrivals), np.nan)
    for i, setting in enumerate(settings):
        mine = answered & (pair == i)
        assert setting.quality is not None
        for each in np.unique(window[mine]):
            here = mine & (window == each)
            worth[here] = setting.quality.at(float(outcome.light[here].mean()))
    windows = [float(worth[answered & (window == each)].mean()) for each in np.unique(window[answered])]
    return PairsReport(
        pair=name,
        violation_ratio=float(outcome.violated.mean()),
        goodput_rps=float((~outcome.violated).sum() / max(1.0, float(arrivals.times_s[-1] - arrivals.times_s[0]))),
        quality=float(np.mean(windows)),
        shares={c.light: float((pair[answered] == i).mean()) for i, c in enumerate(cascades)},
        changes=run.pair_changes,
    )
