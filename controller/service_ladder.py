"""Conversion of a service to a ladder of approximation levels: every K of its cache, and every variant.

Policies that assign levels to GPUs and prompts (``controller/level_policy.py``) plan on this ladder, on a cluster and
in the simulator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controller.batch_size import best_batch
from weir.approximation_levels import Ladder, Level, PromptGroup, Strategy
from weir.profiles import Profile
from weir.prompt_levels import LevelRecord

#: Least loss of quality from one level to the next, because a ladder needs strictly descending means.
LEAST_LOSS = 1e-6


@dataclass(frozen=True, slots=True)
class StoredStates:
    """Quality and frequency of the states in a cache, from a cache profile.

    Attributes:
        quality: mean quality of images that resume at K over all similarities of the prompts, by K, as a share of a
            whole run's.
        shares: share of the requests whose similarity to a cached prompt admits K, by K, where 0 is a miss. Empty when
            it is unknown.
    """

    quality: Mapping[int, float]
    shares: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptClass:
    """A class of prompts.

    Attributes:
        share: share of all prompts.
        quality: quality by name of the level, as a share of a whole run's; levels without an entry have their mean.
    """

    share: float
    quality: Mapping[str, float]


def service_ladder(
    profile: Profile, slo_s: float, states: StoredStates | None = None, records: Sequence[LevelRecord] = ()
) -> Ladder | None:
    """Builds the ladder of a family for policies that assign levels.

    Args:
        states: the states of the cache; None leaves whole runs only.
        records: records of a level head, from the hardest prompts to the easiest. The quality of resumed images was not
            measured by class, so it counts as the mean.

    Returns:
        The ladder; None when qualities were not measured as shares of the last variant's.
    """
    if profile.quality is None or profile.quality.smaller_is_better:
        return None
    classes = tuple(
        PromptClass(record.share, {profile.keys[0]: record.quality[-1] / record.quality[0]}) for record in records
    )
    return ladder_of(profile, slo_s, states, classes)


def ladder_of(
    profile: Profile, slo_s: float, states: StoredStates | None, classes: Sequence[PromptClass] = ()
) -> Ladder:
    """Builds the ladder of a family for any classes of prompts.

    Times are those of full batches, because a GPU under load runs full batches. Levels are named ``K=5`` or by the key
    of the variant.
    """
    last = profile.heavy
    batch = best_batch(last.latency, slo_s)
    qualities = {0: 1.0} | ({k: states.quality[k] for k in sorted(states.quality)} if states else {})
    found: list[Level] = []
    means: dict[str, float] = {}
    for place, (k, quality) in enumerate(qualities.items()):
        mean = means[f"K={k}"] = _mean(f"K={k}", quality, classes)
        mean = 1.0 if k == 0 else min(mean - LEAST_LOSS * place, found[-1].quality - LEAST_LOSS)
        seconds = last.latency.at(batch) * (1 - k / last.steps)
        found.append(
            Level(
                name=f"K={k}",
                strategy=Strategy.AC,
                skipped_steps=k,
                batch_sizes=(batch,),
                latency_s=(seconds,),
                quality=mean,
            )
        )
    levels = found + _smaller(profile, slo_s, found[0], means, classes)
    total = sum(each.share for each in classes)
    return Ladder(
        family=profile.family,
        device=profile.device,
        steps=last.steps,
        levels=tuple(levels),
        similarity_shares=_similarity_shares(states, list(qualities)),
        prompts=tuple(
            PromptGroup(
                share=each.share / total,
                quality=tuple(
                    level.quality * each.quality.get(level.name, means[level.name]) / means[level.name]
                    for level in levels
                ),
            )
            for each in classes
        ),
    )


def _smaller(
    profile: Profile, slo_s: float, whole: Level, means: dict[str, float], classes: Sequence[PromptClass]
) -> list[Level]:
    """Returns the levels of the variants before the last one, from the best to the fastest, without dominated ones.
    Adds the mean quality of each variant to ``means``."""
    found = [whole]
    for key in reversed(profile.keys[:-1]):
        variant = profile.variant(key)
        if variant.quality is None or variant.quality.smaller_is_better:
            continue
        batch = best_batch(variant.latency, slo_s)
        mean = means[key] = _mean(key, variant.quality.values[-1] / variant.quality.values[0], classes)
        level = Level(
            name=key,
            strategy=Strategy.SM,
            variant=key,
            batch_sizes=(batch,),
            latency_s=(variant.latency.at(batch),),
            quality=min(mean, whole.quality - LEAST_LOSS),
        )
        if level.latency_s[0] < found[-1].latency_s[0] and level.rate_rps() > found[-1].rate_rps():
            while level.quality >= found[-1].quality:
                found.pop()
            found.append(level)
    return found[1:]


def _mean(name: str, measured: float, classes: Sequence[PromptClass]) -> float:
    """Returns the mean quality over all prompts."""
    total = sum(each.share for each in classes)
    if not total:
        return measured
    return sum(each.share * each.quality.get(name, measured) for each in classes) / total


def _similarity_shares(states: StoredStates | None, ks: Sequence[int]) -> tuple[float, ...]:
    if states is None or not states.shares:
        return ()
    total = sum(states.shares.values())
    return tuple(states.shares.get(k, 0.0) / total for k in ks)
