"""Groups of prompts by predicted level, with their current shares and deferral curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from controller.cache_forecast import KEPT
from controller.curves import LiveDeferral
from controller.setting import LevelStats
from solvers.problem import PromptGroup

#: Number of requests that the measured shares of the levels weigh.
PRIOR_REQUESTS = 50.0


class LiveGroups:
    """Histogram of predicted levels with a deferral curve for each; empty for a family without a classifier.

    Args:
        levels: measured statistics, from level 0 (the hardest prompts) to the easiest.
    """

    def __init__(self, levels: Sequence[LevelStats]):
        self._levels = tuple(levels)
        self._curves = [LiveDeferral(level.deferral) for level in levels]
        self._counts = [PRIOR_REQUESTS * level.share for level in levels]

    def observe(self, missed: Mapping[int, int], judged: Iterable[tuple[int, float]]) -> None:
        """Adds one observation.

        Args:
            missed: number of requests without a cache hit, by predicted level.
            judged: predicted level and confidence of light images; entries with an unknown level are ignored.
        """
        if not self._levels:
            return
        self._counts = [KEPT * count + missed.get(level, 0) for level, count in enumerate(self._counts)]
        for level, confidence in judged:
            if 0 <= level < len(self._levels):
                self._curves[level].observe((confidence,))

    def groups(self, thresholds: Sequence[float]) -> tuple[PromptGroup, ...]:
        """Returns the groups for the allocation problem, one per level, from the easiest to the hardest."""
        total = sum(self._counts)
        if not self._levels or total <= 0:
            return ()
        found = []
        for level, count, curve in reversed(list(zip(self._levels, self._counts, self._curves, strict=True))):
            deferral = curve.at(thresholds)
            found.append(
                PromptGroup(
                    share=count / total,
                    deferral=deferral,
                    quality=tuple(level.quality.reward(1 - share) for share in deferral),
                    heavy_quality=level.quality.reward(0),
                )
            )
        return tuple(found)

    def levels_from(self, groups: Sequence[PromptGroup], entry: int) -> int:
        """Returns the plan rule for ``groups[entry:]``: prompts with a level below it start at the heavy variant."""
        return len(groups) - entry
