"""Switch between the approximation strategies: cached states (AC), or smaller models (SM) while AC does not pay off.

AC pays off while fetching a state takes less time than the steps that it saves, and while enough requests find a state.
The paper switches on network congestion and cache failure (Agarwal et al., Middleware 2025) without publishing the
rule; this rule is Weir's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from weir.approximation_levels import Strategy
from weir.errors import PlanError


@dataclass(frozen=True, slots=True)
class SwitchRules:
    """Limits of the switch, with hysteresis: two separate limits per measurement, so that noise causes no oscillation.

    Attributes:
        fetch_limit, fetch_back: fetch time as a share of the time it saves: above the first limit AC ends, and below
            the second one it resumes.
        hits_limit, hits_back: share of requests with a usable state: below the first limit AC ends, and above the
            second one it resumes.
        trip_s: seconds for which the measurements must be unfavourable without interruption before AC ends.
        hold_s: seconds for which they must be favourable before AC resumes; longer than a GPU needs to load another
            model (:attr:`weir.approximation_levels.Level.load_s`, 12 to 47 s in the published ladder).
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
    """Measurements of the cache since the last call.

    Attributes:
        fetch_s: p95 seconds to fetch a state, infinite when the store does not answer; None when nothing was fetched.
            Under SM the fetches are probes.
        saved_s: mean seconds of denoising that a fetched state saves; see :func:`saved_seconds`.
        hit_share: share of requests with a usable state, fetched or not; None without any request.
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
    """The strategy in force, and the time since which the measurements favour the other one without interruption."""

    strategy: Strategy = Strategy.AC
    against_since_s: float | None = None


def saved_seconds(hits: Mapping[float, float], step_s: float) -> float:
    """Returns the mean seconds of denoising that a hit saves; 0 without hits.

    Args:
        hits: share of requests by the amount that is skipped, in units of ``step_s``: steps, or shares of a run of
            ``step_s`` seconds. The shares need not add up to 1.
    """
    shares = sum(share for k, share in hits.items() if k > 0)
    return step_s * sum(k * share for k, share in hits.items()) / shares if shares > 0 else 0.0


def next_strategy(state: StrategyState, seen: CacheHealth, now_s: float, rules: SwitchRules) -> StrategyState:
    """Returns the state after one measurement of the cache. A missing measurement favours no change.

    Args:
        now_s: time of a monotonic clock.
    """
    leaving = state.strategy is Strategy.AC
    if not (_is_unfavourable(seen, rules) if leaving else _is_favourable(seen, rules)):
        return replace(state, against_since_s=None)
    since = now_s if state.against_since_s is None else state.against_since_s
    if now_s - since < (rules.trip_s if leaving else rules.hold_s):
        return replace(state, against_since_s=since)
    return StrategyState(Strategy.SM if leaving else Strategy.AC)


def _is_unfavourable(seen: CacheHealth, rules: SwitchRules) -> bool:
    slow = seen.fetch_s is not None and seen.fetch_s > rules.fetch_limit * seen.saved_s
    return slow or (seen.hit_share is not None and seen.hit_share < rules.hits_limit)


def _is_favourable(seen: CacheHealth, rules: SwitchRules) -> bool:
    if seen.fetch_s is None:
        return False
    fast = seen.fetch_s < rules.fetch_back * seen.saved_s
    return fast and (seen.hit_share is None or seen.hit_share > rules.hits_back)
