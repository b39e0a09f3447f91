"""The figures of a replay: how many answers came in time, how fast, by which path, how good. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from traces.outcome import Outcome
from traces.paths import in_order
from weir.cascade import FROM_CACHE
from weir.plan import HEAVY

#: Lengths of windows that read well on an axis, seconds.
_WINDOWS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
#: A report has at most so many windows, unless told otherwise.
_MOST_WINDOWS = 30
#: A client that sends later than this share of the SLO does not replay the trace any more, but its own limits.
LATE_CLIENT_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the requests that *arrived* from ``start_s`` to ``end_s``, wherever in time they ended.

    Attributes:
        late, refused, failed: the violations, each request in one of them at most. late: an image, but after the SLO;
            refused: 429 or 503; failed: any other error, or no answer.
        violation_ratio: their share of all requests, 0…1.
        demand_rps, goodput_rps: requests, and images within the SLO, per second.
        p50_s, p95_s, p99_s: latency of the images.
        light_share: images of other variants than the heavy one, over all whose path is known, 0…1.
        quality: mean of the images that have one.

    Whatever nothing is known about is None.
    """

    start_s: float
    end_s: float
    requests: int
    answered: int
    late: int
    refused: int
    failed: int
    violation_ratio: float | None
    demand_rps: float
    goodput_rps: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    light_share: float | None
    paths: dict[str, int]
    mean_confidence: float | None
    mean_steps: float | None
    quality: float | None

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], slo_s: float, start_s: float, end_s: float) -> Figures:
        """``outcomes`` are those that arrived in the window."""
        answered = [o for o in outcomes if o.answered]
        in_time = sum(o.met(slo_s) for o in answered)
        refused = sum(o.refused for o in outcomes)
        paths = Counter(o.path for o in answered if o.path)
        routed = paths.total()
        p50, p95, p99 = _percentiles([o.latency_s for o in answered])
        return cls(
            start_s=start_s,
            end_s=end_s,
            requests=len(outcomes),
            answered=len(answered),
            late=len(answered) - in_time,
            refused=refused,
            failed=len(outcomes) - len(answered) - refused,
            violation_ratio=1 - in_time / len(outcomes) if outcomes else None,
            demand_rps=len(outcomes) / (end_s - start_s),
            goodput_rps=in_time / (end_s - start_s),
            p50_s=p50,
            p95_s=p95,
            p99_s=p99,
            light_share=1 - (paths[HEAVY] + paths[FROM_CACHE]) / routed if routed else None,
            paths={path: paths[path] for path in in_order(paths)},
            mean_confidence=_mean([o.confidence for o in answered]),
            mean_steps=_mean([o.steps for o in answered]),
            quality=_mean([o.quality for o in answered]),
        )


@dataclass(frozen=True, slots=True)
class Reason:
    """Requests that got no image for the same reason.

    Attributes:
        status: of HTTP; 0 when no answer came.
        code: of the error.
        reason: what was said to the first of them; of others it may name other numbers.
    """

    status: int
    code: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole replay, in total and over time.

    Attributes:
        planned: requests of the trace; more than ``total.requests`` when the replay was interrupted.
        errors: how often each error code came.
        reasons: why requests got no image, the most frequent first.
        emulated: images that no model drew.
        client_lateness_p99_s, client_lateness_max_s: how late the replay itself sent.
        client_was_late: by more than LATE_CLIENT_SHARE of the SLO at p99; the load was then not the trace's.
    """

    slo_s: float
    planned: int
    total: Figures
    windows: tuple[Figures, ...]
    errors: dict[str, int]
    reasons: tuple[Reason, ...]
    emulated: int
    client_lateness_p99_s: float
    client_lateness_max_s: float
    client_was_late: bool


def summarise(
    outcomes: Sequence[Outcome],
    slo_s: float,
    *,
    duration_s: float | None = None,
    planned: int | None = None,
    window_s: float | None = None,
) -> Summary:
    """Measures a replay.

    Args:
        duration_s: of the trace; by default until the last arrival.
        planned: requests of the trace; by default all have an outcome.
        window_s: by default a round length that gives at most 30 windows.
    """
    last = max((o.arrival_s for o in outcomes), default=0.0)
    duration_s = max(duration_s or 0.0, last) or 1.0
    if window_s is None:
        window_s = next((w for w in _WINDOWS_S if duration_s / w <= _MOST_WINDOWS), duration_s / _MOST_WINDOWS)
    windows = max(1, int(np.ceil(duration_s / window_s - 1e-9)))
    by_window: list[list[Outcome]] = [[] for _ in range(windows)]
    for outcome in outcomes:
        by_window[min(int(outcome.arrival_s / window_s), windows - 1)].append(outcome)
    lateness = [o.lateness_s for o in outcomes]
    p99_lateness = _percentiles(lateness)[2] or 0.0
    return Summary(
        slo_s=slo_s,
        planned=len(outcomes) if planned is None else planned,
        total=Figures.of(outcomes, slo_s, 0.0, duration_s),
        windows=tuple(
            Figures.of(arrived, slo_s, i * window_s, min((i + 1) * window_s, duration_s))
            for i, arrived in enumerate(by_window)
        ),
        reasons=_reasons(outcomes),
        errors=dict(Counter(o.error for o in outcomes if o.error).most_common()),
        emulated=sum(bool(o.emulated) for o in outcomes),
        client_lateness_p99_s=p99_lateness,
        client_lateness_max_s=max(lateness, default=0.0),
        client_was_late=p99_lateness > LATE_CLIENT_SHARE * slo_s,
    )


def _reasons(outcomes: Sequence[Outcome]) -> tuple[Reason, ...]:
    """Messages that differ in numbers and quoted words alone are one reason."""
    failed = [o for o in outcomes if o.error]
    alike = [(o.status, o.error, re.sub(r"'.*?'|\d+(\.\d+)?", "…", o.reason)) for o in failed]
    first = {key: o for key, o in reversed(list(zip(alike, failed, strict=True)))}
    return tuple(
        Reason(first[key].status, first[key].error, first[key].reason, count)
        for key, count in Counter(alike).most_common()
    )


def _percentiles(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    if not values:
        return None, None, None
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return float(p50), float(p95), float(p99)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
