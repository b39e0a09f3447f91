"""Drift of a level head: compares the quality that its levels lose with the light variant with the recorded loss. Pure.

The realised losses come from shadow samples: recent prompts that were generated at every rung of the ladder and judged.
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
    """When an alarm starts and when it ends. The two limits differ, so that noise around one does not toggle the alarm.

    Attributes:
        limit: difference of losses, in units of the quality, above which the alarm starts.
        back: difference of losses below which the alarm ends.
        sure: distance of the difference from a limit, in standard errors, that counts as significant. A difference that
            is not significant changes nothing.
        least: levels with fewer samples are ignored.
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
    """Prompts of one predicted level: their recorded loss of quality, their loss now, and its standard error."""

    level: str
    samples: int
    recorded: float
    realised: float
    error: float

    @property
    def difference(self) -> float:
        return abs(self.realised - self.recorded)


def level_drifts(head: LevelHead, pairs: LevelPairs, vectors: np.ndarray) -> tuple[LevelDrift, ...]:
    """The drift of every predicted level, from level 0.

    Args:
        vectors: embeddings of the prompts of ``pairs``, [N, D].

    Raises:
        ConfigError: the samples were taken on another ladder.
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
    """Whether the head has to be fitted again.

    That is so when a level has drifted significantly or, after an alarm (``was``), until every level with enough
    samples is significantly back.
    """
    counted = [it for it in drifts if it.samples >= rules.least]
    if any(it.difference - rules.sure * it.error > rules.limit for it in counted):
        return True
    return was and not (counted and all(it.difference + rules.sure * it.error < rules.back for it in counted))
