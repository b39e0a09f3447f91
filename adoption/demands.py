"""What a measured service would do at several demands, by the fast simulator, and the plan that it starts with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from controller.registry import make_policy
from controller.setting import Setting
from simulator.arrivals import poisson
from simulator.conditions import Conditions
from simulator.confidences import sample_confidences
from simulator.engine import simulate
from simulator.report import report
from simulator.request_stream import RequestStream
from weir.plan import Plan
from weir.profiles import Profile

#: Length of a simulation in deadlines, and its limits in seconds and in requests.
_DEADLINES, _LEAST_S, _MOST_S, _MOST_REQUESTS = 30, 120, 3600, 4_000
#: Demands to simulate, as shares of what the first variant alone can serve.
SHARES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class DemandRow:
    """Figures of a service at one demand.

    Attributes:
        quality: mean quality of the answers, None without a measured curve.
        late_share: share of the requests that were answered late or not at all.
        first_share: share of the answers that are images of the first variant.
    """

    demand_rps: float
    quality: float | None
    late_share: float
    first_share: float
    p50_s: float | None
    p95_s: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def first_plan(profile: Profile, replicas: int, slo_s: float) -> Plan:
    """The plan that the policy ``weir`` starts with."""
    return make_policy("weir", Setting.of(profile, replicas, slo_s)).first_plan()


def most_rps(profile: Profile, replicas: int) -> float:
    """Requests per second that the first variant alone can serve with full batches."""
    first = profile.light
    return replicas * max(b / s for b, s in zip(first.batch_sizes, first.latency_s, strict=True))


def rows_by_demand(profile: Profile, replicas: int, slo_s: float, demand_rps: float | None = None) -> list[DemandRow]:
    """Simulates Poisson arrivals at several demands.

    Args:
        demand_rps: a further demand, the one that the user expects.
    """
    most = most_rps(profile, replicas)
    demands = sorted({*(float(f"{share * most:.2g}") for share in SHARES), *([demand_rps] if demand_rps else [])})
    return [_row(profile, replicas, slo_s, demand) for demand in demands]


def _row(profile: Profile, replicas: int, slo_s: float, demand_rps: float) -> DemandRow:
    setting = Setting.of(profile, replicas, slo_s)
    seconds = int(np.clip(_DEADLINES * slo_s, _LEAST_S, _MOST_S))
    seconds = max(10, min(seconds, int(_MOST_REQUESTS / demand_rps)))
    arrivals = poisson(np.full(seconds, demand_rps), seed=0)
    if not len(arrivals):
        arrivals = poisson(np.full(max(1, int(8 / demand_rps)), demand_rps), seed=1)
    curves = {setting.variants[0]: setting.deferral} | {key: it.deferral for key, it in setting.middle.items()}
    confidences = {key: sample_confidences(curve, len(arrivals), 0) for key, curve in curves.items()}
    outcome = simulate(make_policy("weir", setting), RequestStream(arrivals, confidences), profile, Conditions())
    figures = report(outcome, setting.quality).to_dict()
    answers = max(1, int(outcome.answered.sum()))
    return DemandRow(
        demand_rps,
        figures["windowed_quality"],
        figures["violation_ratio"],
        float(outcome.by(setting.variants[0]).sum() / answers),
        figures["p50_s"],
        figures["p95_s"],
    )
