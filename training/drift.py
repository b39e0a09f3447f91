"""Whether a level classifier still holds: what its levels lose by the light variant, realised against recorded. Pure.

Realised losses come from shadow samples: prompts of now, drawn at every rung of the ladder and judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.level_pairs import LevelPairs
from weir.errors import ConfigError
from weir.prompt_levels import LevelHead


@dataclass(frozen=True, slots=True)
class DriftRules:
    """When to alarm, and when to be calm again; apart from each other, so that noise around one does not toggle.

    Attributes:
        limit, back: difference of losses, in units of the quality: alarm where it is surely above the first, calm where
            it is surely below the second. A mean that is not sure changes nothing.
        sure: standard errors.
        least: samples of a level below which it says nothing.
    """

    limit: float = 0.03
    back: float = 0.06
    sure: float = 2.0
    least: int = 30

    def __post_init__(self) -> None:
        if not (0 <= self.limit < self.back and self.sure > 0 and self.least >= 2):
            raise ConfigError("drift rules: need 0 ≤ limit < back, sure above 0 and least of at least 2")


@dataclass(frozen=True, slots=True)
class LevelDrift:
    """Prompts of one predicted level: what they were recorded to lose, what they lose now, and its standard error."""

    level: str
    samples: int
    recorded: float
    realised: float
    error: float

    @property
    def difference(self) -> float:
        return abs(self.realised - self.recorded)


def level_drifts(head: LevelHead, pairs: LevelPairs, vectors: np.ndarray) -> tuple[LevelDrift, ...]:
    """By predicted level, from level 0.

    Args:
        vectors: of the pairs' prompts, [N, D].

    Raises:
        ConfigError: the samples are of another ladder.
    """
    if pairs.rungs != head.about.rungs:
        raise ConfigError(
            f"shadow samples of the rungs {', '.join(pairs.rungs)}; the level head has {', '.join(head.about.rungs)}"
        )
    predicted, lost = head.levels(vectors), pairs.quality[:, 0] - pairs.quality[:, -1]
    found = []
    for level, (name, record) in enumerate(zip(head.about.rungs, head.about.records, strict=True)):
        mine = lost[predicted == level]
        recorded = record.quality[0] - record.quality[-1]
        realised = float(mine.mean()) if len(mine) else recorded
        error = float(mine.std(ddof=1) / math.sqrt(len(mine))) if len(mine) > 1 else math.inf
        found.append(LevelDrift(name, len(mine), recorded, realised, error))
    return tuple(found)


def alarmed(drifts: Sequence[LevelDrift], rules: DriftRules, was: bool = False) -> bool:
    """Whether the classifier is to be fitted again: one level has surely drifted or, after an alarm, not every level
    with enough samples is surely back."""
    told = [it for it in drifts if it.samples >= rules.least]
    if any(it.difference - rules.sure * it.error > rules.limit for it in told):
        return True
    return was and not (told and all(it.difference + rules.sure * it.error < rules.back for it in told))
