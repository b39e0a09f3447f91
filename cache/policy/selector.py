"""From what is known of a cached run to the step that a request may resume it at. Pure.

K counts the steps that are skipped: a state of K is the latent that enters step K. What is known is the similarity of
the two prompts, or how well the cached picture fits the new prompt. The relation to K is a profile of a family,
measured by ``weir cache profile``; published ones are here by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

from weir.errors import ConfigError


class By(StrEnum):
    """What decides whether a cached run serves a new prompt."""

    SIMILARITY = "similarity"
    CONFIDENCE = "confidence"


@dataclass(frozen=True, slots=True)
class Selector:
    """Thresholds, the highest first.

    Attributes:
        levels: (threshold, K): what is strictly above the threshold may resume at K; K = ``steps`` stands for the
            finished picture.
        steps: denoising steps of a whole run, which the K belong to.
        by: what the thresholds are of: the similarity of the two prompts, or the discriminator's confidence that the
            cached *picture* is good enough for the new prompt.
        stride: a resumed run goes on with every so-many-th of the steps that are left; 1 runs them all.
        accept: the least confidence in the resumed picture itself; below, it is drawn anew from noise, and the better
            judged of the two is the answer. 0 takes every one.
    """

    levels: tuple[tuple[float, int], ...]
    steps: int = 50
    by: By = By.SIMILARITY
    stride: int = 1
    accept: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"a selector's steps are {self.steps}; they must be at least 1")
        if not 0 <= self.accept <= 1:
            raise ConfigError(f"a selector accepts from a confidence of {self.accept}; it must lie in 0…1")
        for similarity, k in self.levels:
            if not (math.isfinite(similarity) and 0 < k <= self.steps):
                raise ConfigError(f"a selector's level is ({similarity}, {k}); K must lie in 1…{self.steps}")
            if self.stride < 1 or self.steps % self.stride or k % self.stride:
                raise ConfigError(
                    f"a selector's stride is {self.stride}; it must divide {self.steps} steps and K = {k}"
                )
        for (high, more), (low, less) in pairwise(self.levels):
            if not (high > low and more > less):
                raise ConfigError(
                    f"a selector's levels ({high}, {more}) and ({low}, {less}) must both fall: a lower similarity "
                    "may skip fewer steps only"
                )

    @property
    def ks(self) -> tuple[int, ...]:
        """Every K that may be resumed at, ascending: what a whole run has to capture."""
        return tuple(sorted(k for _, k in self.levels))

    @property
    def least(self) -> float:
        """The similarity above which there is a hit at all."""
        return self.levels[-1][0] if self.levels else math.inf

    def select(self, similarity: float) -> int:
        """The K for a similarity; 0 is a miss, and so is a similarity that is no number."""
        return next((k for threshold, k in self.levels if similarity > threshold), 0)

    def for_steps(self, steps: int) -> Selector:
        """The same shares of a run of other length, which then leaves no steps out; levels that fall together keep the
        more cautious threshold."""
        if steps == self.steps:
            return self
        scaled: dict[int, float] = {}
        for similarity, k in self.levels:
            share = k * steps // self.steps
            if 0 < share < steps:
                scaled[share] = max(similarity, scaled.get(share, -math.inf))
        return Selector(tuple((s, k) for k, s in sorted(scaled.items(), reverse=True)), steps, self.by, 1, self.accept)

    def left(self, k: int) -> int:
        """Steps that a run still takes that resumes at ``k``."""
        return (self.steps - k) // self.stride if k else self.steps

    def to_dict(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"steps": self.steps, "levels": [list(level) for level in self.levels]}
        if self.by is By.CONFIDENCE:
            fields |= {"by": self.by.value, "stride": self.stride, "accept": self.accept}
        return fields


def usable(k: int, stored: Collection[int]) -> int:
    """The largest stored K that is no larger than ``k``; 0 when there is none (the hole rule)."""
    return max((s for s in stored if s <= k), default=0)


#: Of the similarity of two prompts: NIRVANA's (its sample code), AccuScale's (100 worked examples of its log).
PUBLISHED = {
    "nirvana": Selector(((0.95, 25), (0.90, 20), (0.85, 15), (0.75, 10), (0.65, 5))),
    "accuscale": Selector(((0.90, 20), (0.80, 15), (0.70, 10), (0.65, 5))),
}
#: MoDM's (its code), of the similarity of a prompt and a picture: by CLIP two prompts are mostly more alike than that.
MODM = Selector(((0.30, 30), (0.29, 25), (0.28, 15), (0.27, 10), (0.25, 5)))


def load_selector(source: str | Path) -> Selector:
    """A published selector by its name, or a profile file as ``weir cache profile`` writes it.

    Raises:
        ConfigError: names the source and the remedy.
    """
    if str(source) in PUBLISHED:
        return PUBLISHED[str(source)]
    if str(source) == "modm":
        raise ConfigError(
            f"modm: its thresholds are of a prompt and a picture, and here two prompts are compared; choose one of "
            f"{', '.join(PUBLISHED)}, or make one with `weir cache profile`"
        )
    path = Path(source)
    try:
        fields = json.loads(path.read_text())["selector"]
        return Selector(
            tuple((float(s), int(k)) for s, k in fields["levels"]),
            int(fields["steps"]),
            By(fields.get("by", By.SIMILARITY)),
            int(fields.get("stride", 1)),
            float(fields.get("accept", 0.0)),
        )
    except OSError:
        raise ConfigError(
            f"{source}: there is no such cache profile; choose one of {', '.join(PUBLISHED)}, or make one with "
            "`weir cache profile`"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{source}: not a cache profile ({error}); make one with `weir cache profile`") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}") from None
