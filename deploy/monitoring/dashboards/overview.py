"""Overview: whether the SLO is kept, at which quality, and what the replicas do."""

from __future__ import annotations

from typing import Any

from deploy.monitoring.dashboards.frame import dashboard
from deploy.monitoring.dashboards.queries import WINDOW, now, or_zero, quantiles, rate
from deploy.monitoring.panels import Alarm, Query, stat, timeseries
from weir import metrics


def overview() -> dict[str, Any]:
    return dashboard(
        "overview",
        "Weir: Overview",
        "Whether the SLO is kept, at which quality, and what the replicas do.",
        [*_numbers(), *_curves()],
    )


def _numbers() -> list[dict[str, Any]]:
    """The state of now, as single numbers."""
    return [
        stat("Demand", Query("weir:demand:rps1m"), unit="reqps", decimals=2, help="Requested images per second."),
        stat(
            "In time",
            Query("1 - weir:violations:ratio_rate5m"),
            unit="percentunit",
            decimals=2,
            colour="#2E9E6B",
            alarm=Alarm("below", 0.99),
            help="Share of the images requested in 5 minutes that were answered before the deadline.",
        ),
        stat(
            "Quality",
            Query("weir:quality:ratio_rate1m"),
            unit="percentunit",
            decimals=1,
            colour="#3366CC",
            help="Estimated share of good answers: a light image counts with its confidence, a heavy one with 1.",
        ),
        stat(
            "Light share",
            Query("weir:light_share:ratio_rate1m"),
            unit="percentunit",
            decimals=1,
            colour="#F2A93B",
            help="Share of answers with an image of the light variant.",
        ),
        stat(
            "Load",
            Query("weir:demand:rps1m / weir:capacity:rps"),
            unit="percentunit",
            decimals=0,
            colour="#2E9E6B",
            alarm=Alarm("above", 1),
            help="Demand divided by the capacity of the plan's replicas.",
        ),
        stat(
            "Alerts",
            Query('count(ALERTS{alertstate="firing"}) or vector(0)'),
            unit="short",
            colour="#2E9E6B",
            alarm=Alarm("above", 1),
            help="Alerts that fire now; docs/monitoring.md says what to do about each.",
        ),
    ]


def _curves() -> list[dict[str, Any]]:
    """The last minutes."""
    late = 'ray_weir_violations_total{kind="%s"}'
    return [
        timeseries(
            "Demand against capacity",
            [
                Query(rate(metrics.ASKED), "demand"),
                Query(rate(metrics.ADMITTED), "admitted"),
                Query("weir:capacity:rps", "capacity"),
                Query(or_zero(now(metrics.FORECAST)), "planned for"),
            ],
            unit="reqps",
            help="Requested and admitted images, the demand that the plan was made for, and what its replicas can "
            "generate if nothing is deferred.",
        ),
        timeseries(
            "Replicas by role",
            [Query(now(metrics.REPLICAS_READY, "role"), "{{role}}")],
            unit="short",
            style="stacked-steps",
            help="Live replicas, by their role in the plan.",
        ),
        timeseries(
            "SLO violations",
            [
                Query(f"(sum (rate({late % kind}[{WINDOW}]))) or vector(0)", kind)
                for kind in ("late", "failed", "refused")
            ],
            unit="reqps",
            style="stacked",
            help="Images that were answered after the deadline, failed, or were refused.",
        ),
        timeseries(
            "Latency",
            [*quantiles(metrics.LATENCY), Query(now(metrics.DEADLINE), "deadline")],
            unit="s",
            help="Time from admission to the answer, and the deadline.",
        ),
        timeseries(
            "Quality and light share",
            [Query("weir:quality:ratio_rate1m", "quality"), Query("weir:light_share:ratio_rate1m", "light share")],
            unit="percentunit",
            limits=(0, 1),
            help="The cost of high demand: the more answers come from the light variant, the lower the quality.",
        ),
        timeseries(
            "Answers by path",
            [Query(rate(metrics.ANSWERED, by="path"), "{{path}}")],
            unit="reqps",
            style="stacked",
            help="Light: the judge accepted the image. Light-deadline: the judge deferred it, but a heavy image "
            "would have been late. Heavy: generated from noise. Cache: resumed from the state of another prompt.",
        ),
    ]
