"""Metrics of a replay: SLO violations, goodput, latency, paths and quality. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from traces.outcome import RequestOutcome
from traces.paths import in_order
from weir.cascade import FROM_CACHE
from weir.errors import ConfigError
from weir.plan import HEAVY

#: Round window lengths, seconds.
_WINDOWS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
#: Largest number of windows of a report by default.
_MOST_WINDOWS = 30
#: The client counts as late if its p99 lateness exceeds this share of the SLO.
LATE_CLIENT_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Figures:
    """Metrics of the requests that *arrived* from ``start_s`` to ``end_s``, whenever they ended.

    Attributes:
        late: number of images that came after the SLO.
        refused: number of requests answered with status 429 or 503.
        failed: number of requests with any other error, or without an answer.
        violation_ratio: share of late, refused and failed requests, 0…1.
        demand_rps: requests per second.
        goodput_rps: images within the SLO per second.
        p50_s, p95_s, p99_s: percentiles of the latency of images.
        light_share: share of images of other variants than the heavy one among images with a known path, 0…1.
        quality: mean quality of the images that have one.

    Attributes without any data are None.
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
    def of(cls, outcomes: Sequence[RequestOutcome], slo_s: float, start_s: float, end_s: float) -> Figures:
        """The metrics of ``outcomes``, which are those that arrived in the window."""
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
        status: HTTP status; 0 without an answer.
        code: error code.
        reason: error message of the first of these requests; other messages may contain other numbers.
        count: number of these requests.
    """

    status: int
    code: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Metrics of a replay, in total and over time.

    Attributes:
        planned: number of requests of the trace; larger than ``total.requests`` if the replay was interrupted.
        errors: number of requests by error code.
        reasons: reasons why requests got no image, the most frequent first.
        emulated: number of images of emulated workers.
        client_lateness_p99_s, client_lateness_max_s: how late the replay client sent requests.
        client_was_late: whether the p99 lateness exceeds LATE_CLIENT_SHARE of the SLO; the load then differs from the
            trace's.
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


@dataclass(frozen=True, slots=True)
class Scope:
    """What a summary of a replay counts.

    Attributes:
        slo_s: deadline, seconds.
        duration_s: duration of the trace; None: the time of the last arrival.
        planned: number of requests of the trace; None: the number of outcomes.
        window_s: length of a window; None: a round length that gives at most 30 windows.
    """

    slo_s: float
    duration_s: float | None = None
    planned: int | None = None
    window_s: float | None = None

    def check(self) -> None:
        """Checks the times.

        Raises:
            ConfigError: one is not positive.
        """
        for name, value in (("slo_s", self.slo_s), ("window_s", self.window_s)):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}; it must be above 0")


def summarise(outcomes: Sequence[RequestOutcome], scope: Scope) -> Summary:
    """Computes the metrics of a replay."""
    slo_s, window_s = scope.slo_s, scope.window_s
    last = max((o.arrival_s for o in outcomes), default=0.0)
    duration_s = max(scope.duration_s or 0.0, last) or 1.0
    if window_s is None:
        window_s = next((w for w in _WINDOWS_S if duration_s / w <= _MOST_WINDOWS), duration_s / _MOST_WINDOWS)
    windows = max(1, int(np.ceil(duration_s / window_s - 1e-9)))
    by_window: list[list[RequestOutcome]] = [[] for _ in range(windows)]
    for outcome in outcomes:
        by_window[min(int(outcome.arrival_s / window_s), windows - 1)].append(outcome)
    lateness = [o.lateness_s for o in outcomes]
    p99_lateness = _percentiles(lateness)[2] or 0.0
    return Summary(
        slo_s=slo_s,
        planned=len(outcomes) if scope.planned is None else scope.planned,
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


def _reasons(outcomes: Sequence[RequestOutcome]) -> tuple[Reason, ...]:
    """Groups failed requests by reason. Messages that differ only in numbers and quoted words are one reason."""
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
