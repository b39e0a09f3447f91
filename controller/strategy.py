"""Which strategy approximates images now: cached states (AC), or smaller models (SM) while that does not pay. Pure.

AC pays while fetching a state takes less time than the steps that it saves, and while enough requests find one. The
paper switches on network congestion and cache failure (Agarwal et al., Middleware 2025) but does not say how; the rule
is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from weir.approximation_levels import Strategy
from weir.errors import PlanError


@dataclass(frozen=True, slots=True)
class SwitchRules:
    """Two limits for each measurement, apart from each other, so that noise around one does not switch back and forth.

    Attributes:
        fetch_limit, fetch_back: fetch time as a share of the time it saves: AC is left above the first, and taken up
            again below the second.
        hits_limit, hits_back: share of requests with a usable state: AC is left below the first, and taken up again
            above the second.
        trip_s: how long measurements have to speak against AC without a break before it is left.
        hold_s: how long they have to speak for it before it is taken up again; longer than a GPU is lost for when it
            loads another model (:attr:`weir.approximation_levels.Level.load_s`, 12 to 47 s in the published ladder).
    """

    fetch_limit: float = 1.0
    fetch_back: float = 0.5
    hits_limit: float = 0.2
    hits_back: float = 0.3
    trip_s: float = 10.0
    hold_s: float = 120.0

    def __post_init__(self) -> None:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise PlanError(message)

        need(
            0 < self.fetch_back < self.fetch_limit < math.inf,
            f"fetch_back is {self.fetch_back} and fetch_limit {self.fetch_limit}; they must ascend from above 0",
        )
        need(
            0 <= self.hits_limit < self.hits_back <= 1,
            f"hits_limit is {self.hits_limit} and hits_back {self.hits_back}; they must ascend within 0…1",
        )
        need(
            0 <= self.trip_s < math.inf and 0 <= self.hold_s < math.inf,
            f"trip_s is {self.trip_s} and hold_s {self.hold_s}; they must be finite and at least 0",
        )


@dataclass(frozen=True, slots=True)
class CacheHealth:
    """What was measured of the cache since the last look.

    Attributes:
        fetch_s: p95 seconds to fetch a state, infinite when the store does not answer. Under SM they come from probes;
            None when nothing was fetched.
        saved_s: mean seconds of denoising that a fetched state saves; see :func:`saved_seconds`.
        hit_share: share of requests with a usable state, whether it was fetched or not; None without any request.
    """

    fetch_s: float | None
    saved_s: float
    hit_share: float | None

    def __post_init__(self) -> None:
        if self.fetch_s is not None and not self.fetch_s >= 0:
            raise PlanError(f"fetch_s is {self.fetch_s}; it must be at least 0, or None when nothing was fetched")
        if not (math.isfinite(self.saved_s) and self.saved_s >= 0):
            raise PlanError(f"saved_s is {self.saved_s}; it must be finite and at least 0")
        if self.hit_share is not None and not 0 <= self.hit_share <= 1:
            raise PlanError(f"hit_share is {self.hit_share}; it must lie in 0…1, or be None without any request")


@dataclass(frozen=True, slots=True)
class StrategyState:
    """The strategy in force, and since when measurements have spoken for the other one without a break."""

    strategy: Strategy = Strategy.AC
    against_since_s: float | None = None


def saved_seconds(hits: Mapping[float, float], step_s: float) -> float:
    """Mean seconds of denoising that a hit saves: ``hits`` are the shares of requests by what is skipped, in units of
    ``step_s`` (steps, or shares of a run of ``step_s`` seconds), of any sum; 0 for none."""
    shares = sum(share for k, share in hits.items() if k > 0)
    return step_s * sum(k * share for k, share in hits.items()) / shares if shares > 0 else 0.0


def next_strategy(state: StrategyState, seen: CacheHealth, now_s: float, rules: SwitchRules) -> StrategyState:
    """The state after one look at the cache. What was not measured speaks for no change.

    Args:
        now_s: any clock that does not run backwards.
    """
    leaving = state.strategy is Strategy.AC
    if not (_speaks_against(seen, rules) if leaving else _speaks_for(seen, rules)):
        return replace(state, against_since_s=None)
    since = now_s if state.against_since_s is None else state.against_since_s
    if now_s - since < (rules.trip_s if leaving else rules.hold_s):
        return replace(state, against_since_s=since)
    return StrategyState(Strategy.SM if leaving else Strategy.AC)


def _speaks_against(seen: CacheHealth, rules: SwitchRules) -> bool:
    slow = seen.fetch_s is not None and seen.fetch_s > rules.fetch_limit * seen.saved_s
    return slow or (seen.hit_share is not None and seen.hit_share < rules.hits_limit)


def _speaks_for(seen: CacheHealth, rules: SwitchRules) -> bool:
    if seen.fetch_s is None:
        return False
    fast = seen.fetch_s < rules.fetch_back * seen.saved_s
    return fast and (seen.hit_share is None or seen.hit_share > rules.hits_back)
