"""Approaches to use a cache, by name: Weir's, NIRVANA's, and the baselines of the comparison. Pure.

An approach decides how a request is served by the similarity of the nearest cached prompt. All run on the same code and
the same models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from cache.policy.catalog import Insert, Rules
from cache.policy.selector import MODM, PUBLISHED, Selector
from weir.errors import ConfigError


class Act(StrEnum):
    """How a request is served."""

    GENERATE = "generate"  #: the heavy variant, from noise
    RESUME = "resume"  #: the heavy variant, from the neighbour's state at K
    RENOISE = "renoise"  #: the heavy variant, from the neighbour's image with the noise of step K
    RETURN = "return"  #: the neighbour's image, unchanged
    LIGHT = "light"  #: the light variant
    FEWER = "fewer"  #: the heavy variant from noise, with as few steps as K would leave


@dataclass(frozen=True, slots=True)
class Approach:
    """One way to use a cache.

    Attributes:
        on_hit, on_miss: how requests above and below the least similarity are served.
        rules: similarity → K, and which states are kept; None: no lookups.
        eviction: name of its eviction policy.
        corpus: whether the cache is a fixed set of images, without insertions.
        between: what the similarity compares.
    """

    name: str
    on_hit: Act
    on_miss: Act
    rules: Rules | None
    says: str
    eviction: str = "lru"
    corpus: bool = False
    between: str = "prompts"

    @property
    def steps(self) -> int:
        """Denoising steps of a whole run."""
        return self.rules.selector.steps if self.rules else 50

    def act(self, k: int) -> Act:
        return self.on_hit if k else self.on_miss

    def saved(self, k: int) -> int:
        """Number of heavy denoising steps that a request with this K saves."""
        act = self.act(k)
        if act in (Act.RETURN, Act.LIGHT):
            return self.steps
        if act is Act.RENOISE:
            return k
        return self.steps - self.rules.selector.left(k) if self.rules and act in (Act.RESUME, Act.FEWER) else 0


def _whole(threshold: float) -> Selector:
    """A selector whose only level is the whole run: a hit is answered with a finished image."""
    return Selector(((threshold, 50),))


_NIRVANA = Rules(PUBLISHED["nirvana"], Insert.MISSES, 1)

APPROACHES: dict[str, Callable[[Selector], Approach]] = {
    "weir": lambda s: Approach(
        "weir",
        Act.RESUME,
        Act.GENERATE,
        Rules(s),
        "resume from the best of four neighbours; keep states after hits too",
        "weir",
    ),
    "judged": lambda s: Approach(
        "judged",
        Act.RESUME,
        Act.GENERATE,
        Rules(s, candidates=32),
        "resume from that of 32 neighbours in whose image the discriminator has most confidence for the new prompt",
        "weir",
        between="prompt and image",
    ),
    "nirvana": lambda s: Approach(
        "nirvana",
        Act.RESUME,
        Act.GENERATE,
        _NIRVANA,
        "resume from the nearest by the published thresholds; keep states after misses only (NSDI 2024)",
        "lcbfu",
    ),
    "gptcache": lambda s: Approach(
        "gptcache",
        Act.RETURN,
        Act.GENERATE,
        Rules(_whole(0.8), Insert.MISSES, 1),
        "return the neighbour's image above GPTCache's default similarity, 0.8",
    ),
    "pinecone": lambda s: Approach(
        "pinecone",
        Act.RETURN,
        Act.GENERATE,
        Rules(_whole(0.65), Insert.MISSES, 1),
        "return the neighbour's image above 0.65, NIRVANA's threshold of a hit, else generate",
    ),
    "crs": lambda s: Approach(
        "crs",
        Act.RETURN,
        Act.RETURN,
        Rules(_whole(-1.0), Insert.MISSES, 1),
        "always return the best image of a fixed corpus by CLIP",
        corpus=True,
        between="prompt and image",
    ),
    "small-model": lambda s: Approach("small-model", Act.LIGHT, Act.LIGHT, None, "the light variant for everything"),
    "vanilla": lambda s: Approach(
        "vanilla", Act.GENERATE, Act.GENERATE, None, "the heavy variant from noise, all steps"
    ),
    "fewer-steps": lambda s: Approach(
        "fewer-steps",
        Act.FEWER,
        Act.GENERATE,
        Rules(s),
        "the heavy variant from noise with as few steps as the cache would leave",
    ),
    "modm": lambda s: Approach(
        "modm",
        Act.RENOISE,
        Act.GENERATE,
        Rules(MODM, Insert.ALL, 1),
        "re-noise the image that fits the prompt best (MoDM, ASPLOS 2026)",
        "fifo",
        between="prompt and image",
    ),
}


def approach(name: str, selector: Selector | None = None) -> Approach:
    """Returns the approach of a name; ``selector`` replaces the thresholds of approaches without thresholds of their
    own.

    Raises:
        ConfigError: there is no approach of that name.
    """
    if name not in APPROACHES:
        raise ConfigError(f"there is no cache policy {name!r}; choose one of {', '.join(APPROACHES)}")
    return APPROACHES[name](selector or PUBLISHED["nirvana"])
