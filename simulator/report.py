"""Summary of one simulated run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from controller.setting import QualityCurve
from simulator.fluid import WINDOW_S
from simulator.outcome import UNANSWERED, Outcome

#: Least length of a trace, seconds: requests that arrive at once have no rate otherwise.
SHORTEST_S = 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """Figures of one policy on one trace.

    Attributes:
        violation_ratio: share of the requests that were answered late or not at all.
        windowed_quality: mean over windows (by arrival, 30 s) of the measured quality at the window's light share; None
            when the family has no such curve.
        light_share: share of the answers with a light image.
        goodput_rps: answers in time per second of the trace, which counts as at least one second long.
        p50_s, p95_s, p99_s: latency percentiles of the answers.
        gpu_utilisation: busy share of all GPU time from the first arrival to the last answer.
        gpu_seconds_per_image: busy GPU time per answer.
        cost_per_1000_images: price of all GPUs over that time per 1,000 answers; None without a price.
    """

    policy: str
    requests: int
    violation_ratio: float
    windowed_quality: float | None
    light_share: float
    goodput_rps: float
    p50_s: float
    p95_s: float
    p99_s: float
    gpu_utilisation: float
    role_flips: int
    gpu_seconds_per_image: float
    cost_per_1000_images: float | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as a JSON-ready dictionary; latencies of a run without an answer are None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def windowed_quality(outcome: Outcome, quality: QualityCurve, window_s: float = WINDOW_S) -> float | None:
    """Returns the mean over windows of the quality at the window's light share, minus the loss of short heavy runs.

    Windows without an answer are left out.
    """
    answered = outcome.paths != UNANSWERED
    window = (outcome.arrivals_s[answered] // window_s).astype(int)
    if not len(window):
        return None
    counts = np.bincount(window)
    light = np.bincount(window, weights=outcome.light[answered])
    lost = np.bincount(window, weights=outcome.loss[answered])[counts > 0] / counts[counts > 0]
    shares = light[counts > 0] / counts[counts > 0]
    measured = np.array([quality.at(share) for share in shares])
    return float(np.mean(measured + lost if quality.smaller_is_better else measured - lost))


def report(outcome: Outcome, quality: QualityCurve | None, gpu_hour_price: float | None = None) -> Report:
    """Summarises a run.

    Args:
        gpu_hour_price: price of one GPU for an hour, in any currency.
    """
    requests = len(outcome.arrivals_s)
    answered = outcome.paths != UNANSWERED
    answers = int(answered.sum())
    latencies = outcome.latencies_s[answered]
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99)) if answers else (float("nan"),) * 3
    begin = float(outcome.arrivals_s[0]) if requests else 0.0
    trace_s = max(float(outcome.arrivals_s[-1]) - begin, SHORTEST_S) if requests else SHORTEST_S
    end_s = max(float(outcome.finished_s[answered].max()) - begin, trace_s) if answers else trace_s
    cost = None
    if gpu_hour_price is not None and answers:
        cost = gpu_hour_price * outcome.replicas * end_s / 3600 / answers * 1000
    return Report(
        policy=outcome.policy,
        requests=requests,
        violation_ratio=float(outcome.violated.mean()) if requests else 0.0,
        windowed_quality=windowed_quality(outcome, quality) if quality else None,
        light_share=float(outcome.light.sum() / answers) if answers else 0.0,
        goodput_rps=float((~outcome.violated).sum() / trace_s),
        p50_s=float(p50),
        p95_s=float(p95),
        p99_s=float(p99),
        gpu_utilisation=outcome.busy_s / (outcome.replicas * end_s),
        role_flips=outcome.role_changes,
        gpu_seconds_per_image=outcome.busy_s / answers if answers else 0.0,
        cost_per_1000_images=cost,
    )
