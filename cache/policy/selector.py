"""Selectors choose the step that a request may resume a cached run at. Pure.

K is the number of steps that are skipped: a state of K is the latent that enters step K. A selector goes by the
similarity of the two prompts, or by the confidence that the cached image fits the new prompt. Its thresholds are a
profile of a family, measured by ``weir cache profile``, or published ones by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

from weir.errors import ConfigError
from weir.json_files import read_json


class By(StrEnum):
    """The measure that a selector's thresholds apply to."""

    SIMILARITY = "similarity"
    CONFIDENCE = "confidence"


@dataclass(frozen=True, slots=True)
class Selector:
    """Thresholds in descending order.

    Attributes:
        levels: (threshold, K): values strictly above the threshold may resume at K; K = ``steps`` is the finished
            image.
        steps: denoising steps of a whole run, to which the K refer.
        by: measure of the thresholds: the similarity of the two prompts, or the discriminator's confidence that the
            cached *image* is good enough for the new prompt.
        stride: a resumed run runs every ``stride``-th of the remaining steps; 1 runs them all.
        accept: smallest confidence in a resumed image; below it the image is generated again from noise, and the better
            judged of the two is the answer. 0 accepts all.
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
            raise ConfigError(f"a selector's accept is {self.accept}; it must lie in 0…1")
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
                    f"a selector's levels ({high}, {more}) and ({low}, {less}) must both decrease: a lower similarity "
                    "must skip fewer steps"
                )

    @property
    def ks(self) -> tuple[int, ...]:
        """Every K that may be resumed at, ascending: the states that a whole run captures."""
        return tuple(sorted(k for _, k in self.levels))

    @property
    def least(self) -> float:
        """The lowest threshold of a hit."""
        return self.levels[-1][0] if self.levels else math.inf

    def select(self, similarity: float) -> int:
        """The K for a similarity; 0 is a miss, also for NaN."""
        return next((k for threshold, k in self.levels if similarity > threshold), 0)

    def for_steps(self, steps: int) -> Selector:
        """The selector for a run of another length: the same shares of steps, without a stride.

        Levels with the same K afterwards keep the highest threshold.
        """
        if steps == self.steps:
            return self
        scaled: dict[int, float] = {}
        for similarity, k in self.levels:
            share = k * steps // self.steps
            if 0 < share < steps:
                scaled[share] = max(similarity, scaled.get(share, -math.inf))
        return Selector(tuple((s, k) for k, s in sorted(scaled.items(), reverse=True)), steps, self.by, 1, self.accept)

    def left(self, k: int) -> int:
        """Number of steps of a run that resumes at ``k``."""
        return (self.steps - k) // self.stride if k else self.steps

    def to_dict(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"steps": self.steps, "levels": [list(level) for level in self.levels]}
        if self.by is By.CONFIDENCE:
            fields |= {"by": self.by.value, "stride": self.stride, "accept": self.accept}
        return fields


def usable(k: int, stored: Collection[int]) -> int:
    """The largest stored K that is no larger than ``k``; 0 when there is none (the hole rule)."""
    return max((s for s in stored if s <= k), default=0)


#: Published thresholds of the similarity of two prompts: NIRVANA's (sample code), AccuScale's (100 examples of its
#: log).
PUBLISHED = {
    "nirvana": Selector(((0.95, 25), (0.90, 20), (0.85, 15), (0.75, 10), (0.65, 5))),
    "accuscale": Selector(((0.90, 20), (0.80, 15), (0.70, 10), (0.65, 5))),
}
#: MoDM's thresholds (its code) of the similarity of a prompt and an image, lower in CLIP than that of two prompts.
MODM = Selector(((0.30, 30), (0.29, 25), (0.28, 15), (0.27, 10), (0.25, 5)))


def load_selector(source: str | Path) -> Selector:
    """Loads a published selector by its name, or a profile file of ``weir cache profile``.

    Raises:
        ConfigError: there is no such selector; the message names the source and the remedy.
    """
    if str(source) in PUBLISHED:
        return PUBLISHED[str(source)]
    if str(source) == "modm":
        raise ConfigError(
            f"modm: its thresholds compare a prompt and an image, and the cache compares two prompts; choose one of "
            f"{', '.join(PUBLISHED)}, or make one with `weir cache profile`"
        )
    path = Path(source)
    try:
        fields = read_json(path)["selector"]
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
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ConfigError(f"{source}: not a cache profile ({error}); make one with `weir cache profile`") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}") from None
