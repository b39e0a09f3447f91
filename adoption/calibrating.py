"""Brings the measurements together: a profile with confidences and quality curves, and the ladder that is worth it."""

from __future__ import annotations

from typing import Any

import numpy as np

from adoption.context import Context
from adoption.images import Round
from baselines.comparison.light_variants import Cascade, best_by_demand, usable
from cache.encoder import family_encoder
from controller.policies.weir import LONGEST
from controller.setting import Setting
from training.evaluate import by_confidence, quality_by_share
from training.level_head import LEAST, fit_levels
from training.level_pairs import LevelPairs
from weir.errors import ConfigError
from weir.profiles import Profile, QualityProfile

#: Factor between the whole time of a light and a heavy run and the deadline of a service whose user names none.
_SLACK = 3.0


def calibrate(context: Context) -> dict[str, Any]:
    """The profile with the confidences and the quality curve of every lighter variant."""
    measured = Profile.model_validate(context.done("profile"))
    chosen, last = context.done("discriminators"), measured.variants[context.last]
    heavy = context.scores(Round(context.last))
    shorter = {n: float(context.scores(Round(context.last, steps=n)).mean()) for n in context.choices.levels}
    variants = dict(measured.variants)
    for key in context.lighter:
        light, confidence = context.scores(Round(key)), np.array(chosen[key]["confidences"])
        quality = quality_by_share(light, heavy, by_confidence(confidence))
        curve = QualityProfile(values=tuple(quality), smaller_is_better=False, by_heavy_steps=shorter)
        variants[key] = _with_judging(measured, key, chosen[key]["ms"] / 1000).model_copy(
            update={"confidences": tuple(confidence.tolist()), "quality": curve}
        )
    variants[context.last] = last
    return measured.model_copy(update={"variants": variants}).model_dump(mode="json")


def _with_judging(measured: Profile, key: str, judging_s: float) -> Any:
    """A variant's times with those of its discriminator, which did not exist when they were measured."""
    variant = measured.variants[key]
    assert variant.fixed is not None  # `weir profile` measures it
    times = tuple(s + b * judging_s for b, s in zip(variant.batch_sizes, variant.latency_s, strict=True))
    fixed = variant.fixed.model_copy(update={"discriminator_s": judging_s})
    return variant.model_copy(update={"latency_s": times, "fixed": fixed})


def deadline_s(context: Context, profile: Profile) -> float:
    """The deadline that the user names, or one that leaves time to wait beside a light and a heavy run."""
    if context.choices.slo_s is not None:
        return context.choices.slo_s
    alone = sum(profile.variants[key].latency_s[0] for key in (profile.keys[0], profile.keys[-1]))
    return float(f"{max(1.0, _SLACK * alone):.2g}")


def ladder(context: Context) -> dict[str, Any]:
    """The lighter variants that are worth having, by quality and cost, and the best one for each demand."""
    profile = Profile.model_validate(context.done("calibration"))
    slo_s, replicas = deadline_s(context, profile), context.choices.replicas
    cascades = []
    for key in context.lighter:
        pair = {key: profile.variants[key], context.last: profile.variants[context.last]}
        setting = Setting.of(profile.model_copy(update={"variants": pair}), replicas, slo_s)
        cascades.append(Cascade(key, context.last, setting))
    kept = usable(cascades)
    by_demand = best_by_demand(kept) if kept else []
    best = _best_for(by_demand, context.choices.demand_rps)
    chosen = _longest([it.light for it in kept], [str(row["light"]) for row in by_demand], best)
    lighter = [key for key in context.lighter if key in chosen] or [context.lighter[0]]
    left_out = [key for key in context.lighter if key not in lighter]
    return {"lighter": lighter, "left_out": left_out, "by_demand": by_demand, "best": best, "slo_s": slo_s}


def _longest(usable_ones: list[str], by_demand: list[str], best: str | None) -> list[str]:
    """At most as many lighter variants as a cascade may have: the one for the user's demand first, then those that are
    best at most demands."""
    often = sorted(dict.fromkeys(by_demand), key=by_demand.count, reverse=True)
    return list(dict.fromkeys([*([best] if best else []), *often, *usable_ones]))[: LONGEST - 1]


def _best_for(rows: list[dict[str, object]], demand_rps: float | None) -> str | None:
    """The best lighter variant for a demand; None where the user names none."""
    if demand_rps is None or not rows:
        return None
    above = [row for row in rows if float(str(row["demand_rps"])) >= demand_rps]
    return str((above or rows[-1:])[0]["light"])


def levels(context: Context) -> dict[str, Any]:
    """A level head for a family of two variants, from the images with fewer steps."""
    steps = context.choices.levels
    if not steps or len(context.lighter) != 1:
        why = "no shorter runs were asked for (--levels)" if not steps else "levels are fitted on one lighter variant"
        return {"fitted": False, "why": why}
    if len(context.prompts) < LEAST:
        return {"fitted": False, "why": f"a level head needs at least {LEAST} prompts"}
    light = context.lighter[0]
    rounds = [Round(context.last), *(Round(context.last, steps=n) for n in steps), Round(light)]
    names = (f"{context.last}-{context.family.heavy.steps}", *(f"{context.last}-{n}" for n in steps), light)
    confidences = np.array(context.done("discriminators")[light]["confidences"])
    pairs = LevelPairs(context.prompts, names, np.stack([context.scores(it) for it in rounds], 1), confidences)
    encoder = family_encoder(context.family)
    try:
        head, report = fit_levels(
            pairs, encoder.encode(context.prompts), encoder.version, context.family.name, alpha=0.95
        )
    except ConfigError as error:
        return {"fitted": False, "why": error.message}
    file = context.results.folder("levels") / "levels.safetensors"
    head.save(file)
    worth_it = report.gained > 0
    why = "" if worth_it else "its predictions gain nothing over a random choice"
    return {"fitted": worth_it, "why": why, "file": str(file), "gained": report.gained, "accuracy": report.accuracy}
